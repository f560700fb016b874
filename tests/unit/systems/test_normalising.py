"""Pictures that travel as uint8 are normalised on the device as the host would have done it."""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip3o_jax.data import images
from blip3o_jax.miniature import sizes
from blip3o_jax.models import autoencoder
from blip3o_jax.models import qwen_vision
from blip3o_jax.systems import blip3o
from blip3o_jax.systems import contrast
from blip3o_jax.systems import pixels
from blip3o_jax.systems.parts import normalising

EVERY = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, -1)  # each value of each channel
LATENTS = autoencoder.Config(channels=(8, 8), depth=1, groups=4)


def picture(side: int, rows: int = 2) -> np.ndarray:
  return np.random.default_rng(0).integers(0, 256, (rows, side, side, 3), np.uint8)


@pytest.mark.parametrize(
  ("device", "host"),
  [(normalising.clip, images.normalise), (normalising.signed, images.signed)],
  ids=["clip", "signed"],
)
def test_every_value_is_that_of_the_host(device, host):
  found = jax.jit(device)(EVERY)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, host(EVERY), rtol=0, atol=1e-6)
  x = jnp.asarray([0.5, 300.0], jnp.bfloat16)  # normalised before: it stays
  assert device(x) is x


def test_patches_of_a_picture_are_those_of_the_normalised_one():
  x = picture(56, 1)[0]
  found = jax.jit(normalising.clip_patches)(images.patchify(x))
  wanted = images.patchify(images.normalise(x))
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)


def shapes_config(**changes: Any) -> Any:
  return dataclasses.replace(sizes.blip3o_shapes(), **changes)


def test_targets_of_either_space_take_uint8_and_what_is_normalised():
  """Each with the values of its own encoder, which here gives back what it takes."""

  class Features:
    cfg = shapes_config()

    @staticmethod
    def encoder(x: jax.Array) -> jax.Array:
      return x

  x = picture(8)
  found = blip3o.Blip3o.targets(Features, jnp.asarray(x))  # type: ignore[arg-type]
  np.testing.assert_allclose(found, images.normalise(x), rtol=0, atol=1e-6)

  class Latents:
    cfg = shapes_config(latents=dataclasses.replace(LATENTS, scaling_factor=1.0))
    encoder = object.__new__(autoencoder.Autoencoder)

  vars(Latents.encoder)["cfg"] = Latents.cfg.latents

  seen: list[jax.Array] = []
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(autoencoder.Autoencoder, "encode", lambda _, x: (seen.append(x) or x, None))
    for given in (jnp.asarray(x), jnp.asarray(images.signed(x))):
      blip3o.Blip3o.targets(Latents, given)  # type: ignore[arg-type]
  for value in seen:
    np.testing.assert_allclose(value, images.signed(x), rtol=0, atol=1e-6)


def test_the_vision_tower_is_given_normalised_patches():
  cfg = sizes.blip3o_shapes()
  side = 2 * cfg.visual.merge
  x = picture(side * cfg.visual.patch_size, 1)[0]
  how = dict(patch_size=cfg.visual.patch_size, merge=cfg.visual.merge)
  seen: list[jax.Array] = []

  class Reader:
    class backbone:
      @staticmethod
      def embed(tokens: jax.Array) -> jax.Array:
        return jnp.zeros((*tokens.shape, 4))

    @staticmethod
    def visual(patches: jax.Array, layout: Any) -> jax.Array:
      seen.append(patches)
      return jnp.ones((1, 4, 4))

  Reader.cfg = cfg  # type: ignore[attr-defined]
  vars(Reader.visual)["cfg"] = cfg.visual
  layout: Any = qwen_vision.layout([(side, side)], side * side, cfg.visual)
  tokens = jnp.full((1, 4), cfg.image_token)
  embed: Callable[..., Any] = blip3o.Blip3o.embed
  for patches in (images.patchify(x, **how), images.patchify(images.normalise(x), **how)):
    assert embed(Reader, tokens, jnp.asarray(patches)[None], layout).min() == 1
  np.testing.assert_allclose(seen[0], seen[1], rtol=0, atol=1e-6)


def test_other_systems_normalise_while_they_prepare():
  x = picture(64)
  module: Any = nnx.eval_shape(lambda: contrast.build(sizes.contrast_shapes(), nnx.Rngs(0)))
  for given in (jnp.asarray(x), jnp.asarray(images.normalise(x))):
    ready = module.prepare({"images": given, "tokens": 0})
    np.testing.assert_allclose(ready["images"], images.normalise(x), rtol=0, atol=1e-6)
  cfg = dataclasses.replace(sizes.pixels_shapes(), train="autoencoder")
  module = nnx.eval_shape(lambda: pixels.build(cfg, nnx.Rngs(0)))
  for given in (jnp.asarray(x), jnp.asarray(images.signed(x))):
    ready = module.prepare({"images": given})
    np.testing.assert_allclose(ready["images"], images.signed(x), rtol=0, atol=1e-6)


def test_pictures_of_a_batch_are_uint8():
  for system, cfg in (
    (blip3o, shapes_config(parts=("denoiser", "encoder"))),
    (contrast, sizes.contrast_shapes()),
    (pixels, sizes.pixels_shapes()),
  ):
    assert system.batch_spec(cfg, 2, 48)["images"].dtype == jnp.uint8, system.__name__
