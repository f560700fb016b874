"""Flow matching: the straight path, laws of training times, the loss, and samplers.

Mathematics over any (x, timesteps) -> velocity; knows no network. Convention of the release (spec
section 4): t in (0, 1] with t = 1 noise (their sigma), x_t = (1-t) x0 + t noise, velocity = noise -
x0, and the network is given 1000 t. (The paper's t is 1 - t and its velocity has the other sign.)
"""

from collections.abc import Callable
import dataclasses
from typing import Any
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Velocity = Callable[[jax.Array, jax.Array], jax.Array]
Weights = Literal["bell", "shoulder"]  # what an error counts at each time, see `training`

TRAIN_STEPS = 1000
# t of the release's table, float32 division on the host: XLA may multiply by 1/1000 instead.
TABLE = np.arange(TRAIN_STEPS, 0, -1).astype(np.float32) / np.float32(TRAIN_STEPS)


@dataclasses.dataclass(frozen=True)
class Law:
  """How training times are distributed.

  Attributes:
    kind: "uniform" over the released table of 1000 times; "logit_normal", the sigmoid of a normal
      of `mean` and `std`; "shifted", s u / (1 + (s-1) u) of a uniform u with s = `shift`.
  """

  kind: Literal["uniform", "logit_normal", "shifted"] = "uniform"
  mean: float = 0.0
  std: float = 1.0
  shift: float = 1.0

  def __post_init__(self) -> None:
    if self.std <= 0 or self.shift <= 0:
      raise ValueError(f"std {self.std} and shift {self.shift} must be positive")


def times(key: jax.Array, n: int, law: Law) -> jax.Array:
  """n independent times of a law: float32[n] in (0, 1]."""
  return quantile(jax.random.uniform(key, (n,)), law)


def quantile(u: jax.Array, law: Law) -> jax.Array:
  """Times from uniform draws u, float32[...] in [0, 1): float32[...] in (0, 1] (spec 4.2).

  "uniform" is the release's floor(1000 u)-th entry of a falling table; the others rise with u.
  """
  if law.kind == "uniform":
    return jnp.asarray(TABLE)[jnp.floor(u * TRAIN_STEPS).astype(jnp.int32)]
  u = u.astype(jnp.float32) + 2.0**-24  # draws are multiples of 2^-23: now inside (0, 1)
  if law.kind == "logit_normal":
    return jax.nn.sigmoid(law.mean + law.std * jax.scipy.special.ndtri(u))
  return law.shift * u / (1 + (law.shift - 1) * u)


def noise(seeds: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Unit normals from one seed an image, so that a draw does not depend on its batch mates.

  Args:
    seeds: int[B], or B keys.
    shape: of one image.

  Returns:
    float32[B, *shape].
  """
  is_key = jnp.issubdtype(jnp.asarray(seeds).dtype, jax.dtypes.prng_key)
  keys = seeds if is_key else jax.vmap(jax.random.key)(jnp.asarray(seeds))
  return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def mix(x0: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
  """The point at time t, float[B], of the path from x0 to noise, both float[B, ...]; float32."""
  t = t.astype(jnp.float32).reshape(-1, *(1,) * (x0.ndim - 1))
  return (1 - t) * x0.astype(jnp.float32) + t * noise.astype(jnp.float32)


def loss(fn: Velocity, x0: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
  """The mean squared error of the velocity, one number a sample (spec 4.2).

  Args:
    fn: (x_t, timesteps float32[B] = 1000 t) -> velocity.
    x0, noise: float[B, ...]. t: float32[B] in (0, 1].

  Returns:
    float32[B], the mean over all but the batch.
  """
  velocity = noise.astype(jnp.float32) - x0.astype(jnp.float32)
  error = fn(mix(x0, noise, t), TRAIN_STEPS * t).astype(jnp.float32) - velocity
  return jnp.mean(error * error, tuple(range(1, x0.ndim)))


def schedule(
  steps: int, truncate: bool = True, shift: float = 1.0, last: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Times of a sampler from noise to data, computed on the host (spec 4.4).

  The order of the roundings decides some truncated values: float64 spacing, cast to float32, times
  float32 1000, truncated.

  Args:
    steps: N.
    truncate: timesteps cut to integers, as released; otherwise exact.
    shift: s of s t / (1 + (s-1) t); 1 as released.
    last: the last time before 0, unshifted, if not 1 / steps; the spacing is then a float32 step,
      taken from the nearer end (Nexus-Gen spec 7).

  Returns:
    sigmas float32[N+1] from 1 to 0, timesteps float32[N] in 0..1000.

  Raises:
    ValueError: fewer than one step.
  """
  if steps < 1:
    raise ValueError(f"a sampler of {steps} steps, expected at least 1")
  if last is None:
    sigmas = np.linspace(1, 1 / steps, steps).astype(np.float32)
  else:
    sigmas = _spaced(steps, last)
  sigmas = np.float32(shift) * sigmas / (1 + np.float32(shift - 1) * sigmas)
  timesteps = sigmas * np.float32(TRAIN_STEPS)
  timesteps = np.trunc(timesteps) if truncate else timesteps
  return np.append(sigmas, np.float32(0)), timesteps


def _spaced(steps: int, last: float) -> np.ndarray:
  """float32[steps] from 1 to `last`; a float64 holds the product and the sum exactly."""
  step = (np.float32(last) - np.float32(1)) / np.float32(max(1, steps - 1))
  i = np.arange(steps)
  rising, falling = (
    1 + np.float64(step) * i,
    np.float64(np.float32(last)) - step * (steps - 1.0 - i),
  )
  return np.where(i < max(1, steps // 2), rising, falling).astype(np.float32)


def training(shift: float, last: float, by_time: Weights = "bell") -> tuple[np.ndarray, np.ndarray]:
  """The table that training draws its times from by index (Nexus-Gen spec 9.4).

  Args:
    shift, last: as in `schedule`, of `TRAIN_STEPS` steps. by_time: "bell" around the timestep 500,
      less its lowest value, which is at 1000, as released; "shoulder" is the same up to 500 and its
      highest value from there to 1000.

  Returns:
    sigmas float32[1000], falling from 1, and their weights float32[1000], of mean 1.
  """
  sigmas, timesteps = schedule(TRAIN_STEPS, False, shift, last)
  away = timesteps.astype(np.float64) / TRAIN_STEPS - 0.5
  bell = np.exp(-2 * np.square(away))
  bell -= bell.min()
  if by_time == "shoulder":
    bell = np.where(away > 0, bell.max(), bell)
  return sigmas[:-1], (bell / bell.mean()).astype(np.float32)


class Table(NamedTuple):
  """What a sampler visits, padded so that another number of steps compiles nothing.

  Attributes:
    timesteps: float32[S], what the network is given. deltas: float32[S], from each time to the
      next. steps: int32[], how many of the S there are.
  """

  timesteps: Any
  deltas: Any
  steps: Any


def table(
  steps: int, truncate: bool = True, shift: float = 1.0, last: float | None = None
) -> Table:
  """The `schedule` of these arguments as a table, on the host; its length is a power of two.

  Raises:
    ValueError: fewer than one step.
  """
  sigmas, timesteps = schedule(steps, truncate, shift, last)
  room = (0, max(64, 1 << (steps - 1).bit_length()) - steps)
  return Table(np.pad(timesteps, room), np.pad(np.diff(sigmas), room), np.int32(steps))


class State(NamedTuple):
  """Where a sampler is between two steps.

  Attributes:
    x: float32[B, ...], the point that it has reached. slope: float32[B, ...], the velocity by which
      it came there; at the start the noise, as if nothing but zeros were expected.
  """

  x: Any
  slope: Any


def begin(noise: jax.Array) -> State:
  """The state at t = 1, of noise float[B, ...]."""
  x = noise.astype(jnp.float32)
  return State(x, x)


def expected(state: State, table: Table, done: int) -> np.ndarray:
  """The data float32[B, ...] that the last velocity points to, after `done` steps; on the host."""
  time = -np.sum(table.deltas[done:], dtype=np.float32)  # what is left on the way to 0
  return np.asarray(state.x) - time * np.asarray(state.slope)


def euler_steps(fn: Velocity, state: State, table: Table, first: Any, last: Any) -> State:
  """Euler's rule from step `first` to before step `last` in one loop; both may be traced.

  Args:
    fn: (x float32[B, ...], timesteps float32[B]) -> velocity; evaluated once a step.
  """
  timesteps, deltas = jnp.asarray(table.timesteps), jnp.asarray(table.deltas)

  def step(i: jax.Array, state: State) -> State:
    x = state.x
    slope = fn(x, jnp.full(x.shape[:1], timesteps[i])).astype(jnp.float32)
    return State(x + deltas[i] * slope, slope)

  return jax.lax.fori_loop(first, last, step, state)


def heun_steps(fn: Velocity, state: State, table: Table, first: Any, last: Any) -> State:
  """As `euler_steps` by Heun's rule; the last step of the table (to t = 0) by Euler's.

  Second order for two evaluations a step, but one in the last. Prediction and correction alternate
  in one loop, so that the network is traced and compiled once.
  """
  timesteps, deltas = jnp.asarray(table.timesteps), jnp.asarray(table.deltas)
  Carry = tuple[State, jax.Array, jax.Array]

  def step(i: jax.Array, carry: Carry) -> Carry:
    # Evaluation 0 predicts step 0; then each step is corrected at its end and the next predicted.
    (x, _), start, predicted = carry
    correct = i % 2 == 1
    velocity = fn(x, jnp.full(x.shape[:1], timesteps[(i + 1) // 2])).astype(jnp.float32)
    start = jnp.where(correct, start, x)
    slope = jnp.where(correct, (predicted + velocity) / 2, velocity)
    return State(start + deltas[i // 2] * slope, slope), start, velocity

  end = jnp.minimum(2 * last, 2 * table.steps - 1)
  return jax.lax.fori_loop(2 * first, end, step, (state, state.x, state.slope))[0]


def euler(fn: Velocity, noise: jax.Array, table: Table) -> jax.Array:
  """Integrates from noise to data by Euler's rule in one loop (spec 4.4).

  Args:
    fn: (x float32[B, ...], timesteps float32[B]) -> velocity; evaluated once a step.
    noise: float[B, ...].

  Returns:
    float32[B, ...].
  """
  return euler_steps(fn, begin(noise), table, 0, table.steps).x


def heun(fn: Velocity, noise: jax.Array, table: Table) -> jax.Array:
  """Integrates from noise to data by Heun's rule, see `heun_steps`.

  Args, Returns: as `euler`.
  """
  return heun_steps(fn, begin(noise), table, 0, table.steps).x
