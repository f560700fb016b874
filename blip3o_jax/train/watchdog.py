"""Ends a process that stands still: stacks of all its threads into the log, then exit code 76.

Each process of a run watches itself. Works while the main thread hangs in a call to a device or to
a file system: a thread of its own writes to the standard error and leaves, without any clean-up.
"""

import dataclasses
import faulthandler
import math
import os
import threading
import time

import jax

from blip3o_jax.train import goodput
from blip3o_jax.train import meeting

EXIT = 76
WATCHED = ("step", "data")  # what may not last; compiles, saves, evaluation and sampling may
GRACE = 10.0  # seconds that the other processes have for their own stacks, before they are told


@dataclasses.dataclass(frozen=True)
class Watchdog:
  """When a run that stands still ends: no step is finished for both of these times.

  Attributes:
    times: so many times the median of the last hundred steps; 0 is off. seconds: and at least so
      long; alone before two steps are finished, when there is no median yet.
  """

  times: float = 30.0
  seconds: float = 600.0

  def __post_init__(self) -> None:
    if self.times and not 1 < self.times < math.inf:
      raise ValueError(f"watchdog.times {self.times}: expected 0 (off), or more than 1 and finite")
    if not 0 < self.seconds < math.inf:
      raise ValueError(f"watchdog.seconds {self.seconds}: expected more than 0, and finite")


class Watcher:
  """The thread that watches a clock; a context manager. Does nothing where `cfg` is off."""

  def __init__(self, cfg: Watchdog, clock: goodput.Clock):
    self._cfg, self._clock = cfg, clock
    self._stop = threading.Event()
    self._thread = threading.Thread(target=self._work, daemon=True, name="watchdog")

  def __enter__(self) -> "Watcher":
    if self._cfg.times:
      self._thread.start()
    return self

  def __exit__(self, *_: object) -> None:
    self._stop.set()
    if self._cfg.times:
      self._thread.join()

  def _work(self) -> None:
    clock, steps = self._clock, self._clock.steps
    tick = min(1.0, self._cfg.seconds / 10)
    idle, seen, last = 0.0, -1, time.monotonic()
    while not self._stop.wait(tick):
      now = time.monotonic()
      # A process that was stopped, or a machine that has no time for it, does not stand still.
      since, last = min(now - last, 2 * tick), now
      if clock.kind not in WATCHED or steps.finished != seen:
        idle, seen = 0.0, steps.finished
        continue
      idle += since
      median = steps.median()
      if idle > max(self._cfg.seconds, self._cfg.times * median):
        self._leave(idle, median)

  def _leave(self, idle: float, median: float) -> None:
    """Writes without a lock that a stuck thread may hold, and ends the process."""
    steps = self._clock.steps
    ran = self._clock.kind == "data" and steps.finished == steps.dispatched
    where = "the next batch of data" if ran else "a device"
    known = f"the median step takes {median:.3g} s" if median else "no median is known yet"
    text = (
      f"watchdog: process {jax.process_index()} (PID {os.getpid()}) has not finished a step for "
      f"{idle:.0f} s and waits for {where}; {steps.finished} steps since the start, {known}. "
      f"Leaving with exit code {EXIT} (config.watchdog); the stacks of all threads:\n"
    )
    os.write(2, text.encode())
    faulthandler.dump_traceback(2, all_threads=True)
    if jax.process_count() > 1:
      time.sleep(GRACE)
      # Else they would take this one for lost, and leave with that code and without their stacks.
      meeting.stop(EXIT, f"its watchdog: no step was finished for {idle:.0f} s")
    os._exit(EXIT)
