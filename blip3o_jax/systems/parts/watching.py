"""The steps of samplers, watched: how far a call is, what it will look like, and where it may end.

A sampler is a compiled loop from any step to any other. Nobody watches: it is called once. Somebody
does: it is called step by step, or some steps at a time, the same program, so the same numbers come
out bit for bit. A call takes a millisecond or two, which is much beside a step of a small model.
"""

from collections.abc import Callable
import dataclasses
import functools
import time
from typing import Any
from typing import NamedTuple
from typing import TypeVar

import jax
import numpy as np

State = TypeVar("State")
Preview = Callable[[], np.ndarray]


class Step(NamedTuple):
  """What has been done of a stage.

  Attributes:
    stage: its name: "features", what the pictures are to show, or "pixels".
    done, total: its steps.
    preview: gives the pictures that are expected now, uint8[B, H, W, 3], computed when it is
      called, at any time; None where nothing can be seen yet.
  """

  stage: str
  done: int
  total: int
  preview: Preview | None


# Called between steps. What it raises ends the call, and is what the call raises.
Watch = Callable[[Step], None]


@dataclasses.dataclass(frozen=True)
class Paced:
  """A `Watch` that is called about every so many seconds, after as many steps as were done then."""

  watch: Watch
  every: float

  def __call__(self, step: Step) -> None:
    self.watch(step)


def run(
  advance: Callable[[State, np.int32, np.int32], State],
  state: State,
  total: int,
  watch: Watch | None,
  stage: str,
  preview: Callable[[State, int], np.ndarray] | None = None,
) -> State:
  """All steps of a sampler: at once, or one by one with a call of `watch` after each, see `Paced`.

  Args:
    advance: (state, first, last) -> the state before step `last`, of that before step `first`; a
      compiled program that has the two as arguments.
    state: a pytree of arrays, which `advance` leaves alone: a preview may read it later.
    preview: (state, steps that were done) -> pictures.

  Raises:
    Whatever `watch` raises.
  """
  if watch is None:
    return advance(state, np.int32(0), np.int32(total))
  begun, done, size = state, 0, 1
  every = watch.every if isinstance(watch, Paced) else 0.0
  while done < total:
    first, done, start = done, min(total, done + size), time.monotonic()
    # On a mesh a state that lies otherwise than the first would ask for another program.
    state = jax.tree.map(_laid, advance(state, np.int32(first), np.int32(done)), begun)
    # Waits: a step that is said to be done is, and one that is not wanted does not begin.
    state = jax.block_until_ready(state)
    size = max(1, int(every * (done - first) / max(time.monotonic() - start, 1e-9)))
    shown = None if preview is None else functools.partial(preview, state, done)
    watch(Step(stage, done, total, shown))
  return state


def _laid(array: Any, like: Any) -> Any:
  """An array over the devices as another one, if both are of jax.

  What lies so stays: a program takes what was put somewhere for another kind of argument than what
  simply lies there, and would be compiled once more.
  """
  if not (isinstance(array, jax.Array) and isinstance(like, jax.Array)):
    return array
  return array if array.sharding == like.sharding else jax.device_put(array, like.sharding)


def once(
  made: State,
  watch: Watch | None,
  stage: str,
  preview: Callable[[np.ndarray], np.ndarray] | None = None,
) -> State:
  """A stage of a single step, whose result is `made`; see `run`."""
  if watch is not None:
    made = jax.block_until_ready(made)
    shown = None if preview is None else functools.partial(preview, np.asarray(made))
    watch(Step(stage, 1, 1, shown))
  return made
