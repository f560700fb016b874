"""Spikes of the loss or of the gradients: the update of such a step is skipped, inside the step.

Knows scalars and a train state, no model and no optimiser. Nothing here waits for the device.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from blip3o_jax.train import moments


@dataclasses.dataclass(frozen=True)
class Spikes:
  """Which updates are skipped. A step that is not finite is none of them: it ends the run.

  A step is held against the geometric mean of those before it that were no spikes, newer ones
  weighing more. A skipped step leaves parameters, average and optimiser as they were.

  Attributes:
    grad_norm: skip where the norm of the gradients, before clipping, is more than so many times
      their mean; 0 is off. loss: the same for the loss, which must not be negative; 0 is off.
    stop: so many spikes in a row end the run. after: so many steps before anything is skipped.
    memory: about so many steps make up the mean.
  """

  grad_norm: float = 0.0
  loss: float = 0.0
  stop: int = 10
  after: int = 100
  memory: int = 100

  def __post_init__(self) -> None:
    for name in ("grad_norm", "loss"):
      value = getattr(self, name)
      if value and not 1 < value < math.inf:
        raise ValueError(f"spikes.{name} {value}: expected 0 (off), or a factor above 1")
    for name in ("stop", "after", "memory"):
      if getattr(self, name) < 1:
        raise ValueError(f"spikes.{name} {getattr(self, name)}: expected at least 1")

  @property
  def on(self) -> bool:
    """Whether anything is ever skipped."""
    return self.grad_norm > 0 or self.loss > 0


OFF = Spikes()


def shapes(place: Any) -> dict[str, Any]:
  """What a train state remembers, as ShapeDtypeStructs; all zeros at the start of a run.

  mean: float32[2], decaying sums of the logarithms of norm and loss. seen: int32[], steps in them.
  skipped: int32[], updates skipped so far. row: int32[], of them in a row up to now. stopped:
  int32[], the step (counted from 1) at which there were too many in a row; 0 while there is none.
  """
  out: dict[str, Any] = {"mean": jax.ShapeDtypeStruct((2,), jnp.float32, sharding=place)}
  for name in ("seen", "skipped", "row", "stopped"):
    out[name] = jax.ShapeDtypeStruct((), jnp.int32, sharding=place)
  return out


def updates(state: Any) -> jax.Array:
  """int32[], updates done before this step: fewer than steps by those that were skipped."""
  return state.step - state.spikes["skipped"] if state.spikes else state.step


def judged(
  cfg: Spikes, old: Any, grad_norm: jax.Array, loss: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """(bool[], whether the update is skipped; what is remembered after this step).

  Args:
    old: the train state before the update. grad_norm, loss: scalars of the step.
  """
  before = old.spikes
  found = jnp.stack([grad_norm, loss]).astype(jnp.float32)
  fine = jnp.isfinite(found).all()
  logs = jnp.log(jnp.maximum(found, jnp.finfo(jnp.float32).tiny))
  rate = 1 - 1 / cfg.memory
  total = 1 - rate ** before["seen"].astype(jnp.float32)  # the weights of a decaying sum
  usual = before["mean"] / jnp.where(total > 0, total, 1)
  factors = jnp.asarray([cfg.grad_norm or math.inf, cfg.loss or math.inf], jnp.float32)
  high = (logs - usual > jnp.log(factors)).any()
  skip = high & fine & (before["seen"] >= cfg.after)
  counts = fine & ~skip
  row = jnp.where(skip, before["row"] + 1, 0)
  ends = (before["stopped"] == 0) & (row >= cfg.stop)
  after = {
    "mean": jnp.where(counts, rate * before["mean"] + (1 - rate) * logs, before["mean"]),
    "seen": before["seen"] + counts,
    "skipped": before["skipped"] + skip,
    "row": row,
    "stopped": jnp.where(ends, old.step + 1, before["stopped"]),
  }
  return skip, after


def chosen(skip: jax.Array, old: Any, new: Any) -> Any:
  """The train state `new`, or after a spike `old` with the step counted.

  Moments in the host's memory are those of `new`, which has left them as they were.
  """

  def one(before: jax.Array, after: jax.Array) -> jax.Array:
    return after if moments.is_on_host(after) else jnp.where(skip, before, after)

  return jax.tree.map(one, old.replace(step=new.step, spikes=new.spikes), new)
