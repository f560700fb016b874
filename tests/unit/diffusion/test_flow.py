"""Flow matching: path, laws of time, loss, schedules, samplers, noise."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip3o_jax.diffusion import flow

# Spec 4.4, 30 steps.
TRUNCATED = [int(1000 * (30 - i) / 30 + 1e-9) for i in range(30)]


def histogram_error(t: np.ndarray, density: Callable[[np.ndarray], np.ndarray]) -> float:
  """The largest gap between a histogram of 20 bins and a density, in standard errors."""
  edges = np.linspace(0, 1, 21)
  fine = (np.arange(20 * 200) + 0.5) / 4000
  mass = density(fine).reshape(20, 200).mean(1) / 20
  counts, _ = np.histogram(t, edges)
  spread = np.sqrt(len(t) * mass * (1 - mass)) + 1
  return float(np.abs((counts - len(t) * mass) / spread).max())


def logit_normal(mean: float, std: float) -> Callable[[np.ndarray], np.ndarray]:
  def density(t: np.ndarray) -> np.ndarray:
    logit = np.log(t / (1 - t))
    bell = np.exp(-0.5 * ((logit - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))
    return bell / (t * (1 - t))

  return density


def shifted(s: float) -> Callable[[np.ndarray], np.ndarray]:
  return lambda t: s / (s + (1 - s) * t) ** 2


@pytest.mark.parametrize(
  ("law", "density"),
  [
    (flow.Law(), np.ones_like),
    (flow.Law("logit_normal"), logit_normal(0, 1)),
    (flow.Law("logit_normal", mean=0.8, std=0.6), logit_normal(0.8, 0.6)),
    (flow.Law("shifted", shift=1.0), np.ones_like),
    (flow.Law("shifted", shift=3.0), shifted(3)),
    (flow.Law("shifted", shift=0.5), shifted(0.5)),
  ],
)
def test_densities(law: flow.Law, density: Callable[[np.ndarray], np.ndarray]) -> None:
  t = np.asarray(flow.times(jax.random.key(0), 200_000, law))
  assert t.dtype == np.float32
  assert t.min() > 0
  assert t.max() <= 1
  assert histogram_error(t - 5e-4 * (law.kind == "uniform"), density) < 4.5


def test_uniform_is_the_released_table() -> None:
  u = (np.arange(1000) + 0.5) / 1000
  t = np.asarray(jax.jit(lambda u: flow.quantile(u, flow.Law()))(jnp.float32(u)))
  np.testing.assert_array_equal(t, np.arange(1000, 0, -1, dtype=np.float32) / np.float32(1000))
  timesteps = np.asarray(jax.jit(lambda t: flow.TRAIN_STEPS * t)(t))
  odd = timesteps[timesteps != np.round(timesteps)]
  assert sorted(np.round(odd)) == [127, 251, 253, 254, 502, 503, 506, 507, 508, 511]
  assert sorted(np.round(odd[odd < np.round(odd)])) == [251, 253, 502, 506, 511]


@pytest.mark.parametrize("kind", ["uniform", "logit_normal", "shifted"])
def test_extreme_draws_stay_inside(kind: str) -> None:
  u = jnp.asarray([0, 2.0**-23, 1 - 2.0**-23], jnp.float32)
  t = np.asarray(flow.quantile(u, flow.Law(kind, shift=3.0)))  # type: ignore[arg-type]
  assert np.all((t > 0) & (t <= 1))


def test_bad_law() -> None:
  with pytest.raises(ValueError, match="must be positive"):
    flow.Law("logit_normal", std=0.0)


def test_mix_and_loss() -> None:
  rng = np.random.default_rng(0)
  x0, noise = (jnp.asarray(rng.normal(size=(3, 2, 2, 5)), jnp.float32) for _ in range(2))
  t = jnp.asarray([0.001, 0.5, 1.0], jnp.float32)
  x_t = np.asarray(flow.mix(x0, noise, t))
  np.testing.assert_allclose(x_t[1], (x0[1] + noise[1]) / 2, rtol=1e-6)
  np.testing.assert_array_equal(x_t[2], noise[2])
  seen = []

  def fn(x: jax.Array, timesteps: jax.Array) -> jax.Array:
    seen.append((x, timesteps))
    return (noise - x0).at[1].add(2.0)

  np.testing.assert_allclose(flow.loss(fn, x0, noise, t), [0, 4, 0], atol=1e-5)
  np.testing.assert_array_equal(seen[0][0], x_t)
  np.testing.assert_array_equal(seen[0][1], 1000 * t)


def test_released_timesteps() -> None:
  sigmas, timesteps = flow.schedule(30)
  assert timesteps.tolist() == TRUNCATED
  assert TRUNCATED[:3] + TRUNCATED[-3:] == [1000, 966, 933, 100, 66, 33]
  assert sigmas.shape == (31,)
  assert sigmas[-1] == 0
  assert sigmas.dtype == timesteps.dtype == np.float32
  _, exact = flow.schedule(30, truncate=False)
  np.testing.assert_allclose(exact, 1000 * np.linspace(1, 1 / 30, 30), rtol=1e-6)


@pytest.mark.parametrize("steps", [4, 8, 10, 20, 25, 28, 30, 40, 50, 100])
def test_truncation_at_other_lengths(steps: int) -> None:
  wanted = [1000 * (steps - i) // steps for i in range(steps)]
  assert flow.schedule(steps)[1].tolist() == wanted


def test_shifted_schedule() -> None:
  sigmas, timesteps = flow.schedule(10, truncate=False, shift=3.0)
  plain = np.linspace(1, 0.1, 10)
  np.testing.assert_allclose(sigmas[:-1], 3 * plain / (1 + 2 * plain), rtol=1e-6)
  np.testing.assert_allclose(timesteps, 1000 * sigmas[:-1], rtol=1e-6)
  with pytest.raises(ValueError, match="at least 1"):
    flow.schedule(0)


def oscillator(x: jax.Array, timesteps: jax.Array) -> jax.Array:
  """dx/dt = x cos(5 t), whose solution is x exp(sin(5 t) / 5)."""
  return x * jnp.cos(5 * timesteps / 1000)[:, None]


def test_orders_of_convergence() -> None:
  noise = jnp.asarray([[1.0], [2.0]])
  truth = np.asarray(noise) * np.exp(-np.sin(5) / 5)

  def error(sample: Callable[..., jax.Array], steps: int) -> float:
    return float(np.abs(sample(oscillator, noise, flow.table(steps, False)) - truth).max())

  assert error(flow.euler, 20) / error(flow.euler, 40) == pytest.approx(2, rel=0.15)
  assert error(flow.heun, 40) / error(flow.heun, 80) == pytest.approx(4, rel=0.15)
  assert error(flow.heun, 20) < error(flow.euler, 40)  # 39 evaluations against 40


def test_heun_by_hand() -> None:
  x = jnp.asarray([[0.3], [1.7]])
  sigmas, timesteps = flow.schedule(3, truncate=False)
  wanted = x
  for i in range(3):
    delta = sigmas[i + 1] - sigmas[i]
    slope = oscillator(wanted, jnp.full((2,), timesteps[i]))
    if i < 2:
      ahead = oscillator(wanted + delta * slope, jnp.full((2,), timesteps[i + 1]))
      slope = (slope + ahead) / 2
    wanted = wanted + delta * slope
  np.testing.assert_allclose(flow.heun(oscillator, x, flow.table(3, False)), wanted, rtol=1e-5)
  one = flow.euler(oscillator, x, flow.table(1))
  np.testing.assert_allclose(flow.heun(oscillator, x, flow.table(1, False)), one, rtol=1e-6)


@pytest.mark.parametrize(("sample", "evaluations"), [(flow.euler, 7), (flow.heun, 13)])
def test_one_loop_and_its_evaluations(sample: Callable[..., jax.Array], evaluations: int) -> None:
  traced, run = [], []

  def fn(x: jax.Array, timesteps: jax.Array) -> jax.Array:
    traced.append(x.dtype)
    jax.debug.callback(lambda t: run.append(t), timesteps)
    return (0.1 * x).astype(jnp.bfloat16)

  out = jax.jit(lambda x: sample(fn, x, flow.table(7)))(jnp.ones((2, 3), jnp.bfloat16))
  jax.effects_barrier()
  assert out.dtype == jnp.float32
  assert traced == [jnp.float32]
  assert len(run) == evaluations


@pytest.mark.parametrize("steps", [flow.euler_steps, flow.heun_steps])
def test_segments_are_the_loop_bit_for_bit(steps: Callable[..., flow.State]) -> None:
  """One program goes through all steps, or from any to any; what it expects ends where it does."""
  noise, table = jax.random.normal(jax.random.key(0), (2, 5)), flow.table(7, False)

  @jax.jit
  def go(state: flow.State, table: flow.Table, first: Any, last: Any) -> flow.State:
    return steps(lambda x, t: jnp.sin(3 * x) + t[:, None] / 700, state, table, first, last)

  whole = go(flow.begin(noise), table, np.int32(0), np.int32(7))
  for ends in (range(1, 8), (3, 4, 7)):
    state, first = flow.begin(noise), 0
    for last in ends:
      state, first = go(state, table, np.int32(first), np.int32(last)), last
    np.testing.assert_array_equal(state.x, whole.x)
    np.testing.assert_array_equal(state.slope, whole.slope)
  assert go._cache_size() == 1  # type: ignore[attr-defined]
  np.testing.assert_array_equal(flow.expected(whole, table, 7), whole.x)
  sample = flow.euler if steps is flow.euler_steps else flow.heun
  alone = sample(lambda x, t: jnp.sin(3 * x) + t[:, None] / 700, noise, table)
  np.testing.assert_allclose(alone, whole.x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("steps", [flow.euler_steps, flow.heun_steps])
def test_data_that_are_expected(steps: Callable[..., flow.State]) -> None:
  """Of a network that knows them they are right after every step."""
  x0, noise = jax.random.normal(jax.random.key(1), (2, 3, 4))
  table, state = flow.table(5, False, 3.0), flow.begin(noise)
  np.testing.assert_allclose(flow.expected(state, table, 0), np.zeros((3, 4)), atol=1e-6)
  for done in range(1, 6):
    state = steps(lambda x, t: noise - x0, state, table, done - 1, done)
    np.testing.assert_allclose(flow.expected(state, table, done), x0, atol=1e-5)


def test_noise_does_not_depend_on_the_batch() -> None:
  three = flow.noise(jnp.asarray([5, 6, 7], jnp.uint32), (2, 2, 4))
  alone = flow.noise(jnp.asarray([6]), (2, 2, 4))
  assert three.dtype == jnp.float32
  np.testing.assert_array_equal(three[1:2], alone)
  keys = jax.vmap(jax.random.key)(jnp.asarray([7, 5]))
  np.testing.assert_array_equal(flow.noise(keys, (2, 2, 4)), three[jnp.asarray([2, 0])])
  many = np.asarray(flow.noise(jnp.arange(1000), (8,)))
  assert abs(many.mean()) < 0.04
  assert many.std() == pytest.approx(1, abs=0.04)
