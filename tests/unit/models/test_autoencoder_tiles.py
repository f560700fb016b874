"""Decoding in tiles: exact where a function looks no further than the overlap, near elsewhere."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip3o_jax import layers
from blip3o_jax.models import autoencoder

CFG = autoencoder.Config(channels=(16, 16), depth=1, groups=4, latent_channels=4)


def blurred(x):
  """Twice the side, then a 5 x 5 convolution: it looks 2 pixels, so 1 cell, beyond a tile."""
  x = layers.upsample(x)
  kernel = jnp.full((5, 5, x.shape[-1], 3), 0.1).at[0, 1].set(0.7)
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


@pytest.mark.parametrize(("high", "wide"), [(16, 16), (17, 40), (8, 33), (50, 9)])
def test_a_function_that_looks_no_further_than_a_quarter_of_the_overlap_is_exact(high, wide):
  x = jax.random.normal(jax.random.key(0), (2, high, wide, 4))
  found = autoencoder.tiled(blurred, x, 16, 4)
  np.testing.assert_allclose(found, blurred(x), rtol=1e-5, atol=1e-5)


def test_too_small_an_overlap_shows():
  x = jax.random.normal(jax.random.key(0), (1, 40, 40, 4))
  assert np.abs(autoencoder.tiled(blurred, x, 16, 1) - blurred(x)).max() > 0.05


def test_shares_of_a_pixel_are_a_whole():
  for n, side, overlap in ((40, 16, 4), (17, 16, 4), (16, 16, 4), (65, 8, 2)):
    starts, shares = autoencoder._shares(n, side, overlap, 2)
    total = np.zeros(2 * n)
    for start, share in zip(starts, shares, strict=True):
      total[2 * start : 2 * (start + side)] += share
    np.testing.assert_allclose(total, 1, rtol=1e-6)
    assert starts[-1] + side == n


@pytest.fixture(scope="module")
def module():
  return nnx.jit(lambda: autoencoder.Autoencoder(CFG, rngs=nnx.Rngs(0)))()


def run(fn, module, *args):
  """`fn(module, *args)`, compiled as one."""
  graphdef, state = nnx.split(module)
  return np.asarray(
    jax.jit(lambda state, *args: fn(nnx.merge(graphdef, state), *args))(state, *args)
  )


def decoded(module, latents, tile):
  module.tile = tile
  return run(autoencoder.Autoencoder.decode, module, latents)


def test_a_picture_in_tiles_is_near_the_whole(module):
  latents = jax.random.normal(jax.random.key(1), (2, 24, 40, 4))
  whole, cut = decoded(module, latents, 0), decoded(module, latents, 16)
  assert cut.shape == whole.shape
  error = np.sqrt(np.mean((cut - whole) ** 2)) / whole.std()
  # The group norms of a tile are its own.
  assert 1e-4 < error < 0.2
  np.testing.assert_array_equal(decoded(module, latents, 40), whole)


def test_with_the_statistics_of_the_whole_tiles_are_exact(monkeypatch, module):
  """So the group norms are all that differs: without them, a tile that is wide enough is exact."""
  monkeypatch.setattr(layers.GroupNorm, "__call__", lambda self, x: x * 0.5)
  x = jax.random.normal(jax.random.key(1), (1, 72, 72, 16))
  # 2 resnets at each of two sides look 4 + 1 + 5 / 2 cells far: a quarter of an overlap of 32.
  found = run(lambda m, x: autoencoder.tiled(m.decoder.rise, x, 40, 32), module, x)
  wanted = run(lambda m, x: m.decoder.rise(x), module, x)
  np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("block", [7, 72])
def test_cells_that_look_in_blocks_see_the_same(block, module):
  (attend,) = module.decoder.mid_block.attentions
  x = jax.random.normal(jax.random.key(2), (2, 8, 9, 16))
  np.testing.assert_allclose(attend(x, block), attend(x), rtol=1e-5, atol=1e-5)
