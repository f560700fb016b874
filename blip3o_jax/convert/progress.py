"""Lines about long work: how far, how fast, how long still."""

from collections.abc import Callable
import threading
import time

Say = Callable[[str], None]


class Progress:
  """Counts bytes from several threads and says a line every few seconds.

  Args:
    verb: what is done. total: bytes in all. say: takes a line. every: seconds between lines.
  """

  def __init__(self, verb: str, total: int, say: Say, *, every: float = 10.0):
    self._verb, self._total, self._say, self._every = verb, total, say, every
    self._lock, self._done = threading.Lock(), 0
    self._start = self._last = time.monotonic()

  def add(self, count: int) -> None:
    """Counts bytes as done."""
    with self._lock:
      self._done += count
      now = time.monotonic()
      if now - self._last < self._every:
        return
      self._last = now
      rate = self._done / (now - self._start)
      left = (self._total - self._done) / max(rate, 1.0)
      line = f"{self._verb} {size(self._done)} of {size(self._total)}, {rate / 1e6:.0f} MB/s"
    self._say(f"{line}, {duration(left)} left")

  def end(self) -> None:
    """Says what the whole took."""
    taken = time.monotonic() - self._start
    rate = self._done / max(taken, 1e-3) / 1e6
    self._say(f"{self._verb} {size(self._done)} in {duration(taken)}, {rate:.0f} MB/s")


def size(count: float) -> str:
  """Bytes in decimal units, as files are listed: "24.1 GB"."""
  for unit in ("B", "kB", "MB"):
    if count < 1000:
      return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
    count /= 1000
  return f"{count:.2f} GB"


def duration(seconds: float) -> str:
  """Seconds as "8 s", "2 min 5 s" or "3 h 10 min"."""
  whole = round(seconds)
  if whole < 60:
    return f"{whole} s"
  if whole < 3600:
    return f"{whole // 60} min {whole % 60} s"
  return f"{whole // 3600} h {whole % 3600 // 60} min"
