"""Traces of some steps: those that the config names, and the next ones when somebody asks.

Whoever makes the file `profile_now` in a run's folder gets a trace of the next steps.
"""

from absl import logging
from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np

from blip3o_jax.train import goodput

ASK = "profile_now"
STEPS = 3  # of a trace that was asked for


class Profiler:
  """Starts and stops traces; a context manager, which ends the one that runs.

  Args:
    steps: (first, last) of the config, or (). workdir: of the run; traces lie in its `profile`.
  """

  def __init__(self, steps: tuple[int, ...], workdir: epath.Path, clock: goodput.Clock):
    self._first, self._last = steps or (-1, -1)
    self._workdir, self._clock = workdir, clock
    self._until = 0  # so many steps are finished when the running trace ends; 0 without one

  def before(self, index: int) -> None:
    """To call before each step (counted from 0) is dispatched; waits for nothing."""
    if self._until and self._clock.steps.finished >= self._until:
      self._end()
    if index == self._first and not self._until:
      self._begin(index, self._last - self._first)

  def look(self, done: int) -> None:
    """To call at a logged line: begins a trace where process 0 sees that one is asked for."""
    ask = self._workdir / ASK
    asked = jax.process_index() == 0 and not self._until and ask.exists()
    if jax.process_count() > 1:
      asked = bool(multihost_utils.broadcast_one_to_all(np.asarray(asked)))
    if not asked or self._until:
      return
    if jax.process_index() == 0:
      ask.unlink()
    self._begin(done, STEPS)

  def __enter__(self) -> "Profiler":
    return self

  def __exit__(self, *_: object) -> None:
    if self._until:
      self._end()

  def _begin(self, index: int, steps: int) -> None:
    folder = self._workdir / "profile"
    logging.info("tracing steps %d to %d into %s", index + 1, index + steps, folder)
    with self._clock.spent("other"):
      jax.profiler.start_trace(str(folder))
    self._until = self._clock.steps.dispatched + steps

  def _end(self) -> None:
    with self._clock.spent("other"):
      jax.profiler.stop_trace()
    self._until = 0
    logging.info("the trace is written: %s/profile", self._workdir)
