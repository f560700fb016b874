"""The UNet: released size, independence of batch mates, recomputation, precision, bad configs."""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip3o_jax import sharding
from blip3o_jax.models import unet

TINY = unet.Config(
  channels=(8, 16),
  heads=(2, 2),
  depths=(0, 2),
  mid_depth=2,
  resnets=1,
  context_dim=12,
  time_ids_dim=4,
  groups=4,
)


Fill = Callable[..., Any]


def build(fill: Fill, cfg: unet.Config = TINY) -> unet.UNet:
  """A UNet with the same random parameters for the same sizes."""
  return fill(lambda: unet.UNet(cfg, rngs=nnx.Rngs(0)))


def inputs(cfg: unet.Config, batch: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """x, timesteps, context."""
  keys = jax.random.split(jax.random.key(1), 3)
  x = jax.random.normal(keys[0], (batch, 4, 4, cfg.in_channels))
  t = jax.random.uniform(keys[1], (batch,), maxval=999)
  return x, t, jax.random.normal(keys[2], (batch, 4, cfg.context_dim))


@jax.jit
def run(model: unet.UNet, x: jax.Array, t: jax.Array, context: jax.Array) -> jax.Array:
  ids = jnp.broadcast_to(jnp.array([64.0, 64, 0, 0, 64, 64]), (len(x), 6))
  condition = unet.Condition(model.prepare(context), jnp.mean(context, 1), ids)
  return model(x, t, condition)


def test_released_size() -> None:
  model = nnx.eval_shape(lambda: unet.UNet(unet.VARIANTS["emu2_gen"], rngs=nnx.Rngs(0)))
  leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
  assert sum(leaf.size for leaf in leaves) == 2_525_520_644
  mesh = jax.sharding.AbstractMesh((1, 64, 4), sharding.MESH_AXES)
  sharding.shardings(model, mesh)  # type: ignore[arg-type]  # raises for a dim that does not divide


def test_batch_mates_do_not_matter(fill: Fill) -> None:
  model = build(fill)
  x, t, context = inputs(TINY, 3)
  together = run(model, x, t, context)
  alone = run(model, x[1:2], t[1:2], context[1:2])
  np.testing.assert_allclose(together[1:2], alone, atol=1e-5)


def test_time_condition_and_pooled_part_matter(fill: Fill) -> None:
  model = build(fill)
  x, t, context = inputs(TINY, 1)
  base = run(model, x, t, context)
  assert float(jnp.abs(run(model, x, t + 100, context) - base).max()) > 1e-4
  assert float(jnp.abs(run(model, x, t, context + 1) - base).max()) > 1e-4


def test_recomputation_changes_nothing(fill: Fill) -> None:
  small = dataclasses.replace(TINY, depths=(0, 1), mid_depth=0)
  x, t, context = inputs(small, 1)

  def grads(cfg: unet.Config) -> list[jax.Array]:
    loss = jax.jit(jax.grad(lambda m: jnp.mean(run(m, x, t, context) ** 2)))
    return jax.tree.leaves(loss(build(fill, cfg)))

  again = grads(dataclasses.replace(small, remat="full"))
  for a, b in zip(grads(small), again, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_bfloat16_is_near_and_gives_float32(fill: Fill) -> None:
  x, t, context = inputs(TINY, 2)
  full = run(build(fill), x, t, context)
  half = dataclasses.replace(TINY, dtype="bfloat16")
  found = run(build(fill, half), x, t, context)
  assert found.dtype == jnp.float32
  # Eight bits of mantissa through a dozen layers.
  assert float(jnp.linalg.norm(found - full) / jnp.linalg.norm(full)) < 0.03


def test_without_second_condition_and_middle_attention(fill: Fill) -> None:
  cfg = dataclasses.replace(TINY, time_ids_dim=0, mid_depth=0, depths=(1, 0))
  model = build(fill, cfg)
  assert model.add_embedding is None
  assert run(model, *inputs(cfg, 2)).shape == (2, 4, 4, 4)


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    (dict(heads=(2,)), "differ in length"),
    (dict(groups=5), "not divided by 5 groups"),
    (dict(heads=(2, 3)), "3 heads"),
  ],
)
def test_bad_config(fields: dict[str, object], words: str) -> None:
  with pytest.raises(ValueError, match=words):
    dataclasses.replace(TINY, **fields)  # type: ignore[arg-type]
