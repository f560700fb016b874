"""Where the time of a run goes, over all its starts: goodput.json in its folder.

Knows clocks and names, no model and no data. The loop never waits for the devices here: a thread
sees when they have finished a step.
"""

import collections
from collections.abc import Iterator
import contextlib
import json
import queue
import statistics
import threading
import time
from typing import Any
from typing import Literal

from absl import logging
from etils import epath
import jax

from blip3o_jax import files

Kind = Literal[
  "step", "data", "compile", "save", "restore", "evaluation", "sampling", "other", "lost"
]
KINDS: tuple[Kind, ...] = Kind.__args__  # type: ignore[attr-defined]
NAME = "goodput.json"


class Steps:
  """Sees on a thread when the devices have finished each step that the loop has dispatched.

  Attributes:
    dispatched, finished: how many, in this process. at: when the last one was finished, by
      `time.monotonic`.
  """

  def __init__(self) -> None:
    self.dispatched = self.finished = 0
    self.at = time.monotonic()
    self._between: collections.deque[float] = collections.deque(maxlen=100)
    self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
    self._thread = threading.Thread(target=self._work, daemon=True, name="steps")

  def follow(self, array: jax.Array) -> None:
    """Counts a step as dispatched; `array` is of what it gives, and not donated."""
    if not self.dispatched:
      self._thread.start()
    self.dispatched += 1
    self._queue.put(array)

  def median(self) -> float:
    """Seconds from one finished step to the next, of the last hundred; 0 before the second."""
    found = list(self._between)
    return statistics.median(found) if found else 0.0

  def close(self) -> None:
    """Ends the thread; a device that is stuck holds it, and nobody waits for that."""
    if self.dispatched:
      self._queue.put(None)
      self._thread.join(1.0)

  def _work(self) -> None:
    while (array := self._queue.get()) is not None:
      try:
        jax.block_until_ready(array)
      except Exception:  # the loop meets it too, and raises it
        return
      now = time.monotonic()
      if self.finished:
        self._between.append(now - self.at)
      self.at = now
      self.finished += 1


class Clock:
  """Seconds of this process by kind, and with those of earlier starts in `totals`.

  Time counts as what it is `spent` on, else as "other", but as long as the devices work on steps it
  is "step", whatever the host does meanwhile. "lost" are steps that were done again.

  Args:
    workdir: of the run; process 0 reads and writes goodput.json there.

  Attributes:
    kind: what the host does now. steps: what the devices have finished.
  """

  def __init__(self, workdir: epath.PathLike):
    self._path, self._primary = epath.Path(workdir) / NAME, jax.process_index() == 0
    self.kind: Kind = "other"
    self.steps = Steps()
    self._mark = time.monotonic()
    self._seconds: dict[str, float] = dict.fromkeys(KINDS, 0.0)
    self._step = self._done = self._lost = self._starts = 0

  def __enter__(self) -> "Clock":
    return self

  def __exit__(self, *_: object) -> None:
    self.steps.close()

  @contextlib.contextmanager
  def spent(self, kind: Kind) -> Iterator[None]:
    """The time inside is of this kind, but for what is spent on another inside."""
    before = self.kind
    self._switch(kind)
    try:
      yield
    finally:
      self._switch(before)

  def waiting(self, batches: Iterator[Any]) -> Iterator[Any]:
    """The batches; the time until each is there is of the kind "data"."""
    while True:
      with self.spent("data"):
        found = next(batches, None)
      if found is None:
        return
      yield found

  def begin(self, step: int) -> None:
    """Takes over what earlier starts spent, of a run that goes on after `step`."""
    if not self._primary or not self._path.exists():
      self._step, self._starts = step, 1
      return
    try:
      found = json.loads(self._path.read_text())
      seconds = {kind: float(found["seconds"][kind]) for kind in KINDS}
      last, done, lost, starts = (int(found[x]) for x in ("step", "done", "lost", "starts"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      text = f"{type(error).__name__}: {error}"
      logging.warning("%s: cannot be read (%s); its times count from here on", self._path, text)
      self._step, self._starts = step, 1
      return
    again = min(max(last - step, 0), done)
    if again:
      moved = seconds["step"] * again / done
      seconds["step"] -= moved
      seconds["lost"] += moved
      text = "%d steps after step %d were lost with the process and are done again"
      logging.warning(text, last - step, step)
    self._seconds = {kind: seconds[kind] + self._seconds[kind] for kind in KINDS}
    self._step, self._starts = step, starts + 1
    self._done, self._lost = done - again, lost + again

  def totals(self) -> dict[str, float]:
    """Seconds of each kind up to now, over all starts."""
    self._switch(self.kind)
    return dict(self._seconds)

  def working(self) -> float:
    """Seconds in which there were steps, or data for them were waited for, over all starts."""
    totals = self.totals()
    return totals["step"] + totals["data"]

  def write(self, step: int) -> dict[str, float]:
    """Writes goodput.json after `step`; gives goodput, and the seconds of each kind.

    Goodput is the share of all time in which devices worked on steps that were kept.
    """
    self._done, self._step = self._done + step - self._step, step
    seconds = self.totals()
    goodput = seconds["step"] / max(sum(seconds.values()), 1e-9)
    if self._primary:
      facts = {"step": step, "done": self._done, "lost": self._lost, "starts": self._starts}
      rounded = {kind: round(value, 3) for kind, value in seconds.items()}
      record = facts | {"goodput": round(goodput, 4), "seconds": rounded}
      files.write_text(self._path, json.dumps(record, indent=2) + "\n")  # type: ignore[arg-type]
    return {"goodput": goodput} | {f"seconds/{kind}": value for kind, value in seconds.items()}

  def summary(self) -> str:
    """One line for people."""
    seconds = self.totals()
    whole = sum(seconds.values())
    largest = sorted(seconds.items(), key=lambda item: -item[1])
    parts = [f"{kind} {files.duration(value)}" for kind, value in largest if value >= 0.5]
    lost = f" ({self._lost} steps done again)" if self._lost else ""
    share = seconds["step"] / max(whole, 1e-9)
    starts = f"{self._starts} start" + "s" * (self._starts > 1)
    return f"goodput {share:.0%} of {files.duration(whole)} in {starts}: {', '.join(parts)}{lost}"

  def _switch(self, kind: Kind) -> None:
    now = time.monotonic()
    busy_until = now if self.steps.finished < self.steps.dispatched else self.steps.at
    busy = min(max(busy_until - self._mark, 0.0), now - self._mark)
    self._seconds["step"] += busy
    self._seconds[self.kind] += now - self._mark - busy
    self._mark, self.kind = now, kind
