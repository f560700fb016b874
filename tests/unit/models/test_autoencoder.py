"""The autoencoder: released size, patches, sides, recomputation."""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip3o_jax import sharding
from blip3o_jax.models import autoencoder

TINY = autoencoder.Config(channels=(8, 16), depth=1, groups=4)


Fill = Callable[..., Any]


def build(fill: Fill, cfg: autoencoder.Config = TINY) -> autoencoder.Autoencoder:
  """An autoencoder with the same random parameters for the same sizes."""
  return fill(lambda: autoencoder.Autoencoder(cfg, rngs=nnx.Rngs(0)))


def images(batch: int, side: int) -> jax.Array:
  return jax.random.uniform(jax.random.key(1), (batch, side, side, 3), minval=-1)


@jax.jit
def both(model: autoencoder.Autoencoder, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  mean, logvar = model.encode(x)
  return mean, logvar, model.decode(mean)


def test_released_size() -> None:
  cfg = autoencoder.VARIANTS["sdxl"]
  model = nnx.eval_shape(lambda: autoencoder.Autoencoder(cfg, rngs=nnx.Rngs(0)))
  leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
  assert sum(leaf.size for leaf in leaves) == 83_653_863
  assert cfg.factor == 8
  mesh = jax.sharding.AbstractMesh((1, 64, 4), sharding.MESH_AXES)
  sharding.shardings(model, mesh)  # type: ignore[arg-type]  # raises for a dim that does not divide


@pytest.mark.parametrize("patch", [1, 2])
def test_shapes_and_batch_mates(fill: Fill, patch: int) -> None:
  cfg = dataclasses.replace(TINY, patch_size=patch)
  model = build(fill, cfg)
  x = images(3, 8)
  mean, logvar, decoded = both(model, x)
  side = 8 // cfg.factor
  assert mean.shape == logvar.shape == (3, side, side, 4)
  assert decoded.shape == x.shape
  for a, b in zip((mean, logvar, decoded), both(model, x[2:]), strict=True):
    np.testing.assert_allclose(a[2:], b, atol=1e-5)


def test_fold_keeps_rows_columns_and_channels_apart() -> None:
  x = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
  y = autoencoder.fold(x, 2)
  assert y.shape == (2, 2, 3, 12)
  np.testing.assert_array_equal(y[1, 1, 2].reshape(2, 2, 3), x[1, 2:4, 4:6])
  np.testing.assert_array_equal(autoencoder.unfold(y, 2), x)


def test_recomputation_changes_nothing(fill: Fill) -> None:
  x = images(1, 4)

  def grads(cfg: autoencoder.Config) -> list[jax.Array]:
    model = build(fill, cfg)
    return jax.tree.leaves(jax.jit(jax.grad(lambda m: jnp.mean(both(m, x)[2] ** 2)))(model))

  again = grads(dataclasses.replace(TINY, remat="full"))
  for a, b in zip(grads(TINY), again, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_odd_side(fill: Fill) -> None:
  model = build(fill)
  with pytest.raises(ValueError, match="not multiples of 2"):
    model.encode(images(1, 5))


def test_groups_that_do_not_divide() -> None:
  with pytest.raises(ValueError, match="do not divide into 5 groups"):
    dataclasses.replace(TINY, groups=5)
