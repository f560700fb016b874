"""Noise prediction on a discrete schedule, and its Euler sampler (spec 5.4). Knows no network.

x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) noise for t = 0 ... train_steps - 1. The sampler works with
sigma = sqrt((1 - abar) / abar), x = x0 + sigma noise, and hands the network x / sqrt(sigma^2 + 1).
Tables are made in float64 and used in float32.
"""

from collections.abc import Callable
import dataclasses
from typing import Any
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Predict = Callable[[Any, Any], jax.Array]


@dataclasses.dataclass(frozen=True)
class Schedule:
  """The noise schedule; the defaults are the released decoder's.

  Attributes:
    beta_start, beta_end: of the variances added per step. betas: "scaled_linear" is linear in the
      square root.
    train_steps: length of the table.
    spacing: which timesteps a sampler visits. steps_offset: added to them with "leading".
  """

  beta_start: float = 0.00085
  beta_end: float = 0.012
  betas: Literal["linear", "scaled_linear"] = "scaled_linear"
  train_steps: int = 1000
  spacing: Literal["leading", "trailing", "linspace"] = "leading"
  steps_offset: int = 1


def alphas(schedule: Schedule) -> np.ndarray:
  """float64[train_steps]: abar_t, the share of the signal's variance that is left at t."""
  power = 0.5 if schedule.betas == "scaled_linear" else 1.0
  ends = schedule.beta_start**power, schedule.beta_end**power
  betas = np.linspace(*ends, schedule.train_steps, dtype=np.float64) ** (1 / power)
  return np.cumprod(1.0 - betas)


def steps(schedule: Schedule, count: int) -> tuple[np.ndarray, np.ndarray]:
  """What a sampler of `count` network calls visits, from noise to image.

  Returns:
    sigmas float32[count + 1], the last 0, and timesteps float32[count].

  Raises:
    ValueError: fewer than one step, or more than the table has.
  """
  total = schedule.train_steps
  if not 1 <= count <= total:
    raise ValueError(f"steps {count}: expected 1 to {total}")
  if schedule.spacing == "leading":
    timesteps = np.arange(count)[::-1] * (total // count) + float(schedule.steps_offset)
  elif schedule.spacing == "trailing":
    timesteps = np.round(np.arange(total, 0, -total / count)) - 1.0
  else:
    timesteps = np.linspace(0, total - 1, count)[::-1]
  abar = alphas(schedule)
  sigmas = np.interp(timesteps, np.arange(total), np.sqrt((1 - abar) / abar))
  return np.append(sigmas, 0.0).astype(np.float32), timesteps.astype(np.float32)


def initial_scale(schedule: Schedule, sigma: float) -> float:
  """Standard deviation of the sampler's start at its first `sigma`."""
  return float(np.sqrt(sigma**2 + 1)) if schedule.spacing == "leading" else float(sigma)


class Table(NamedTuple):
  """What a sampler visits, padded so that another number of steps compiles nothing.

  Attributes:
    sigmas: float32[S + 1]. timesteps: float32[S]. steps: int32[], how many of the S there are.
    start: float32[], standard deviation of the sampler's start.
  """

  sigmas: Any
  timesteps: Any
  steps: Any
  start: Any


def table(schedule: Schedule, count: int) -> Table:
  """The `steps` of a schedule as a table, on the host; its length is a power of two.

  Raises:
    ValueError: as `steps`.
  """
  sigmas, timesteps = steps(schedule, count)
  room = (0, max(64, 1 << (count - 1).bit_length()) - count)
  start = initial_scale(schedule, float(sigmas[0]))
  return Table(np.pad(sigmas, room), np.pad(timesteps, room), np.int32(count), np.float32(start))


class State(NamedTuple):
  """Where a sampler is between two steps.

  Attributes:
    x: float32[B, ...], the point that it has reached. noise: float32[B, ...], what the network last
      took for the noise in it; at the start the noise itself.
  """

  x: Any
  noise: Any


def begin(noise: Any, start: Any) -> State:
  """The state before the first step, of noise float[B, ...]; `start` is the table's."""
  noise = noise.astype(np.float32)
  return State(noise * start, noise)


def expected(state: State, table: Table, done: int) -> np.ndarray:
  """The sample float32[B, ...] without the noise seen last, after `done` steps; on the host."""
  return np.asarray(state.x) - table.sigmas[done] * np.asarray(state.noise)


def euler_steps(fn: Predict, state: State, table: Table, first: Any, last: Any) -> State:
  """Euler's rule from step `first` to before step `last`, one lax loop; to be jitted.

  Args:
    fn: (x float32[B, ...] of unit variance, timesteps float32[B]) -> predicted noise.
  """
  sigmas, timesteps = jnp.asarray(table.sigmas), jnp.asarray(table.timesteps)

  def step(i: jax.Array, state: State) -> State:
    x = state.x
    times = jnp.full(x.shape[:1], timesteps[i], jnp.float32)
    found = fn(x / jnp.sqrt(jnp.square(sigmas[i]) + 1), times).astype(jnp.float32)
    return State(x + (sigmas[i + 1] - sigmas[i]) * found, found)

  return jax.lax.fori_loop(first, last, step, state)


def euler(fn: Predict, noise: Any, table: Table) -> jax.Array:
  """The sample float32[B, ...] of an epsilon-predicting network; to be jitted.

  Args:
    fn: see `euler_steps`.
    noise: float[B, ...] of unit variance.
  """
  return euler_steps(fn, begin(noise, table.start), table, 0, table.steps).x  # type: ignore[no-any-return]


def times(key: jax.Array, count: int, schedule: Schedule) -> jax.Array:
  """int32[count], uniform over the table."""
  return jax.random.randint(key, (count,), 0, schedule.train_steps)


def mix(x0: jax.Array, noise: jax.Array, timesteps: jax.Array, schedule: Schedule) -> jax.Array:
  """x_t float32[B, ...] of clean x0 and noise at int timesteps[B]."""
  abar = alphas(schedule)
  shape = (-1,) + (1,) * (x0.ndim - 1)
  keep = jnp.asarray(np.sqrt(abar), jnp.float32)[timesteps].reshape(shape)
  add = jnp.asarray(np.sqrt(1 - abar), jnp.float32)[timesteps].reshape(shape)
  return keep * x0.astype(jnp.float32) + add * noise.astype(jnp.float32)


def loss(
  fn: Predict, x0: jax.Array, noise: jax.Array, timesteps: jax.Array, schedule: Schedule
) -> jax.Array:
  """float32[B]: mean square error of the predicted noise, one number a sample, unreduced.

  Args:
    fn: (x_t float32[B, ...], timesteps[B]) -> predicted noise.
    x0, noise: float[B, ...]. timesteps: int[B].
  """
  error = fn(mix(x0, noise, timesteps, schedule), timesteps).astype(jnp.float32) - noise
  return jnp.mean(jnp.square(error), tuple(range(1, x0.ndim)))
