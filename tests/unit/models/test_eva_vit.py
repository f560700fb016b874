"""The EVA tower: sizes, pooling order, the patch embedding, bad input."""

import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip3o_jax import sharding
from blip3o_jax import trees
from blip3o_jax.models import eva_vit

SMALL = eva_vit.Config(image_size=24, patch_size=6, dim=16, depth=2, heads=2, mlp_dim=40)


def test_released_parameter_count() -> None:
  cfg = eva_vit.VARIANTS["eva_clip_e14plus"]
  model = nnx.eval_shape(lambda: eva_vit.EvaVit(cfg, rngs=nnx.Rngs(0)))
  values = trees.flatten(nnx.to_pure_dict(nnx.state(model)))
  assert sum(math.prod(v.shape) for v in values.values()) == 4_350_208_256
  sharding.param_axes(model)


def test_patch_embedding_is_a_convolution() -> None:
  embed = eva_vit.PatchEmbed(SMALL, rngs=nnx.Rngs(0))
  x = jax.random.normal(jax.random.key(1), (2, 24, 24, 3))
  wanted = jax.lax.conv_general_dilated(
    x, embed.kernel[...], (6, 6), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  wanted = wanted.reshape(2, 16, 16) + embed.bias[...]
  np.testing.assert_allclose(embed(x), wanted, rtol=1e-4, atol=1e-5)


def test_images_of_a_batch_are_independent() -> None:
  model = eva_vit.EvaVit(SMALL, rngs=nnx.Rngs(0))
  x = jax.random.normal(jax.random.key(1), (3, 24, 24, 3))
  run = jax.jit(lambda model, x: model(x))
  out = run(model, x)
  assert out.shape == (3, 16, 16)
  np.testing.assert_allclose(out[1:2], run(model, x[1:2]), rtol=1e-4, atol=1e-5)


def test_pool_averages_neighbours_row_by_row() -> None:
  grid = np.arange(16.0).reshape(4, 4)
  x = jnp.asarray(grid.reshape(1, 16, 1))
  wanted = [[2.5, 4.5], [10.5, 12.5]]
  np.testing.assert_array_equal(eva_vit.pool(x, 2)[0, :, :, 0], wanted)
  np.testing.assert_array_equal(eva_vit.pool(x, 1)[0, :, :, 0], grid)


def test_bad_input() -> None:
  model = eva_vit.EvaVit(SMALL, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="expected \\(batch, 24, 24, 3\\)"):
    model(jnp.zeros((1, 3, 24, 24)))
  with pytest.raises(ValueError, match="15 patches do not pool"):
    eva_vit.pool(jnp.zeros((1, 15, 2)), 1)
  with pytest.raises(ValueError, match="squares of 3"):
    eva_vit.pool(jnp.zeros((1, 16, 2)), 3)
  with pytest.raises(ValueError, match="patches of 7"):
    eva_vit.Config(image_size=24, patch_size=7, dim=16, depth=1, heads=2, mlp_dim=8)
