"""Counters of the server, and their text for Prometheus."""

from bisect import bisect_left
from collections import Counter
from collections import defaultdict
from collections.abc import Mapping
import threading

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
SIZES = (1, 2, 4, 8, 16, 32)


class Histogram:
  """Counts of values that are at most each of `bounds`."""

  def __init__(self, bounds: tuple[float, ...]):
    self.bounds, self.counts, self.sum = bounds, [0] * (len(bounds) + 1), 0.0

  def add(self, value: float) -> None:
    self.counts[bisect_left(self.bounds, value)] += 1
    self.sum += value

  def lines(self, name: str) -> list[str]:
    total, out = 0, [f"# TYPE {name} histogram"]
    for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
      total += count
      out.append(f'{name}_bucket{{le="{bound}"}} {total}')
    return [*out, f"{name}_sum {self.sum:g}", f"{name}_count {total}"]


class Metrics:
  """What happened so far. Any thread may count."""

  def __init__(self) -> None:
    self._lock = threading.Lock()
    self._requests: Counter[tuple[str, int]] = Counter()
    self._counts: defaultdict[str, float] = defaultdict(float)
    self._seconds, self._sizes = Histogram(SECONDS), Histogram(SIZES)

  def answered(self, path: str, status: int, seconds: float) -> None:
    """A request to a path that the server has, and its answer."""
    with self._lock:
      self._requests[path, status] += 1
      self._seconds.add(seconds)

  def ran(self, verb: str, size: int, seconds: float) -> None:
    """A batch of the model."""
    with self._lock:
      self._counts[f'blip3o_items_total{{verb="{verb}"}}'] += size
      self._counts[f'blip3o_busy_seconds_total{{verb="{verb}"}}'] += seconds
      self._sizes.add(size)

  def text(self, gauges: Mapping[str, float]) -> str:
    """All of it in Prometheus's text format; `gauges` are {name: value now}."""
    with self._lock:
      lines = ["# TYPE blip3o_requests_total counter"]
      for (path, status), count in sorted(self._requests.items()):
        lines.append(f'blip3o_requests_total{{path="{path}",status="{status}"}} {count}')
      told = set()
      for name, value in sorted(self._counts.items()):
        family = name.partition("{")[0]
        lines += [] if family in told else [f"# TYPE {family} counter"]
        told.add(family)
        lines.append(f"{name} {value:g}")
      lines += self._seconds.lines("blip3o_request_seconds")
      lines += self._sizes.lines("blip3o_batch_size")
    for name, value in gauges.items():
      lines += [f"# TYPE blip3o_{name} gauge", f"blip3o_{name} {value:g}"]
    return "\n".join(lines) + "\n"
