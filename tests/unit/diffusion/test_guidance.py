"""Guidance: the formula, its cost, and that sampling touches the condition once."""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip3o_jax.diffusion import flow
from blip3o_jax.diffusion import guidance
from blip3o_jax.models import next_dit

CONFIG = next_dit.Config(
  in_channels=6, grid=2, condition_dim=10, dim=32, depth=2, heads=4, kv_heads=2, multiple_of=16
)


@pytest.fixture(scope="module")
def dit() -> next_dit.NextDiT:
  model = next_dit.NextDiT(CONFIG, rngs=nnx.Rngs(0))
  gate = model.layers.gate
  gate.set_value(gate[...] + 0.5)  # as built the cross-attention is off
  return model


STEPS = 6  # of the sampler


def conditions(batch: int) -> jax.Array:
  return jax.random.normal(jax.random.key(3), (batch, 5, 10))


def counted(batches: list[int]) -> guidance.Conditioned:
  def fn(x: jax.Array, t: jax.Array, condition: Any) -> jax.Array:
    batches.append(len(x))
    return x * condition["a"] + t[:, None]

  return fn


def test_formula_and_number_of_evaluations() -> None:
  x, t = jnp.asarray([[1.0, 2.0], [3.0, 4.0]]), jnp.asarray([10.0, 20.0])
  condition, null = {"a": jnp.asarray([[2.0], [3.0]])}, {"a": jnp.asarray([[0.5]])}
  batches: list[int] = []
  guided = guidance.cfg(counted(batches), condition, null, 3.0)(x, t)
  with_null, with_condition = x * 0.5 + t[:, None], x * condition["a"] + t[:, None]
  np.testing.assert_allclose(guided, with_null + 3 * (with_condition - with_null), rtol=1e-6)
  assert batches == [4]
  batches.clear()
  plain = guidance.cfg(counted(batches), condition, None, 3.0)(x, t)
  np.testing.assert_array_equal(plain, with_condition)
  assert batches == [2]
  traced = jax.jit(lambda s: guidance.cfg(counted([]), condition, null, s)(x, t))(3.0)
  np.testing.assert_allclose(traced, guided, rtol=1e-6)


def test_join_follows_the_axes(dit: next_dit.NextDiT) -> None:
  prepare = jax.jit(lambda dit, z: dit.prepare(z))
  null, given = prepare(dit, jnp.zeros((1, 5, 10))), prepare(dit, conditions(3))
  both = guidance.join(null, given, next_dit.BATCH_AXES)
  assert both.k.shape == (2, 6, 5, 2, 8)
  assert both.pooled.shape == (6, 32)
  np.testing.assert_array_equal(both.v[:, 1], null.v[:, 0])
  np.testing.assert_array_equal(both.v[:, 3:], given.v)


def sample(dit: next_dit.NextDiT, z: jax.Array, noise: jax.Array, scale: float) -> jax.Array:
  condition = dit.prepare(z)
  null = None if scale == 1 else dit.prepare(jnp.zeros((1, *z.shape[1:])))
  velocity = guidance.cfg(dit, condition, null, scale, next_dit.BATCH_AXES)
  return flow.euler(velocity, noise, flow.table(STEPS))


def dots(jaxpr: Any) -> int:
  """Matmuls of a jaxpr, each loop counted as often as it runs."""
  total = 0
  for eqn in jaxpr.eqns:
    lengths = {"scan": eqn.params.get("length"), "while": STEPS}
    times = lengths.get(eqn.primitive.name, 1)
    total += eqn.primitive.name == "dot_general"
    for value in eqn.params.values():
      inner = getattr(value, "jaxpr", value)
      total += times * dots(inner) if hasattr(inner, "eqns") else 0
  return total


@pytest.mark.parametrize(("scale", "prepared"), [(1.0, 1), (3.0, 2)])
def test_the_condition_is_projected_once(
  dit: next_dit.NextDiT, scale: float, prepared: int
) -> None:
  """Matmuls of a run = steps x those of one call + those of preparing the conditions in use."""
  z, noise, t = conditions(3), jnp.ones((3, 2, 2, 6)), jnp.ones((3,))
  prepare = dots(jax.make_jaxpr(dit.prepare)(z).jaxpr)
  assert prepare == 3 + 2 * CONFIG.depth  # projection, pooled embedding, keys and values
  call = dots(jax.make_jaxpr(dit)(noise, t, dit.prepare(z)).jaxpr)
  # Modulation, q k v q, output, three of the MLP; two attentions of two products each.
  assert call == 5 + 13 * CONFIG.depth
  run = jax.make_jaxpr(lambda z: sample(dit, z, noise, scale))(z).jaxpr
  assert dots(run) == STEPS * call + prepared * prepare


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_an_image_does_not_depend_on_its_batch(dit: next_dit.NextDiT, scale: float) -> None:
  z = conditions(3)
  noise = flow.noise(jnp.asarray([11, 12, 13]), (2, 2, 6))
  run = jax.jit(lambda z, noise: sample(dit, z, noise, scale))
  three, alone = run(z, noise), run(z[1:2], flow.noise(jnp.asarray([12]), (2, 2, 6)))
  np.testing.assert_allclose(three[1:2], alone, rtol=1e-4, atol=1e-5)
  assert np.abs(three[0] - three[1]).max() > 1e-2
