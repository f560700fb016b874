"""The discrete schedule and its sampler: constants of spec 5.4, the loss."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip3o_jax.diffusion import eps

RELEASED = eps.Schedule()


def test_constants_of_the_release() -> None:
  sigmas, timesteps = eps.steps(RELEASED, 50)
  np.testing.assert_array_equal(timesteps[[0, 1, -1]], [981, 961, 1])
  np.testing.assert_allclose(sigmas[0], 13.1204, atol=1e-4)
  np.testing.assert_allclose(sigmas[-4:], [0.2018, 0.1415, 0.0413, 0.0], atol=1e-4)
  np.testing.assert_allclose(eps.initial_scale(RELEASED, sigmas[0]), 13.1585, atol=1e-4)
  sigmas, timesteps = eps.steps(RELEASED, 12)
  np.testing.assert_array_equal(timesteps[[0, 1, -2, -1]], [914, 831, 84, 1])
  np.testing.assert_allclose(eps.initial_scale(RELEASED, sigmas[0]), 9.0472, atol=1e-4)
  assert sigmas.dtype == timesteps.dtype == np.float32


@pytest.mark.parametrize("count", [0, 1001])
def test_impossible_steps(count: int) -> None:
  with pytest.raises(ValueError, match=f"steps {count}: expected 1 to 1000"):
    eps.steps(RELEASED, count)


def test_sampler_recovers_what_a_perfect_network_knows() -> None:
  x0 = jax.random.normal(jax.random.key(0), (2, 3, 3, 1))
  noise = jax.random.normal(jax.random.key(1), x0.shape)
  abar = jnp.asarray(eps.alphas(RELEASED), jnp.float32)

  def fn(x: jax.Array, t: jax.Array) -> jax.Array:
    a = abar[t.astype(int)][:, None, None, None]
    return (x - jnp.sqrt(a) * x0) / jnp.sqrt(1 - a)  # x is scaled to unit variance

  table = eps.table(RELEASED, 8)
  np.testing.assert_allclose(eps.euler(fn, noise, table), x0, atol=1e-4)


def test_segments_are_the_loop_bit_for_bit() -> None:
  """And a network that knows the sample is seen to expect it after every step."""
  x0, noise = jax.random.normal(jax.random.key(0), (2, 2, 3))
  abar, table = jnp.asarray(eps.alphas(RELEASED), jnp.float32), eps.table(RELEASED, 5)

  def fn(x: jax.Array, t: jax.Array) -> jax.Array:
    a = abar[t.astype(int)][:, None]
    return (x - jnp.sqrt(a) * x0) / jnp.sqrt(1 - a)

  @jax.jit
  def program(state: eps.State, table: eps.Table, first: Any, last: Any) -> eps.State:
    return eps.euler_steps(fn, state, table, first, last)

  start = eps.begin(np.asarray(noise), table.start)
  whole, state = program(start, table, np.int32(0), np.int32(5)), start
  for done in range(1, 6):
    state = program(state, table, np.int32(done - 1), np.int32(done))
    np.testing.assert_allclose(eps.expected(state, table, done), x0, atol=1e-4)
  np.testing.assert_array_equal(state.x, whole.x)
  np.testing.assert_array_equal(state.noise, whole.noise)
  np.testing.assert_array_equal(eps.expected(whole, table, 5), whole.x)
  np.testing.assert_array_equal(program(start, table, np.int32(2), np.int32(2)).x, start.x)


def test_loss_is_per_sample_and_zero_for_the_noise() -> None:
  key = jax.random.key(2)
  x0, noise = jax.random.normal(key, (2, 4, 3, 3, 2))
  t = eps.times(key, 4, RELEASED)
  assert t.dtype == jnp.int32
  np.testing.assert_array_equal(eps.loss(lambda x, t: noise, x0, noise, t, RELEASED), np.zeros(4))
  found = eps.loss(lambda x, t: noise + t[:, None, None, None], x0, noise, t, RELEASED)
  np.testing.assert_allclose(found, np.square(np.float32(t)), rtol=1e-5)


def test_times_cover_the_table() -> None:
  t = np.asarray(eps.times(jax.random.key(3), 20000, RELEASED))
  assert t.min() < 5
  assert t.max() > 994
  assert t.max() < 1000
  assert abs(t.mean() - 499.5) < 10


def test_mix_ends() -> None:
  x0, noise = jnp.ones((2, 2)), -jnp.ones((2, 2))
  x = eps.mix(x0, noise, jnp.array([0, 999]), RELEASED)
  abar = eps.alphas(RELEASED)
  np.testing.assert_allclose(x[:, 0], np.sqrt(abar[[0, 999]]) - np.sqrt(1 - abar[[0, 999]]), 1e-5)
