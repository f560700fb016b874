"""Pictures that travelled as uint8, as the networks take them: normalised on the device, float32.

What is not uint8 was normalised before, as the commands do on the host (`data.images`), and stays.
"""

import jax
import jax.numpy as jnp
import numpy as np

from blip3o_jax.data import images as pictures


def clip(images: jax.Array) -> jax.Array:
  """uint8[..., 3] to float32 with the mean and deviation of CLIP: `images.normalise`, to 1e-6."""
  return _normalised(images, pictures.MEAN, pictures.STD)


def clip_patches(patches: jax.Array) -> jax.Array:
  """The same of `images.patchify`'s rows: uint8[..., 3 n], each channel's values together."""
  n = patches.shape[-1] // 3
  return _normalised(patches, np.repeat(pictures.MEAN, n), np.repeat(pictures.STD, n))


def signed(images: jax.Array) -> jax.Array:
  """uint8 to float32 in [-1, 1]: `images.signed`, to 1e-6."""
  if images.dtype != jnp.uint8:
    return images
  return images.astype(jnp.float32) / 127.5 - 1


def _normalised(values: jax.Array, mean: np.ndarray, std: np.ndarray) -> jax.Array:
  if values.dtype != jnp.uint8:
    return values
  return (values.astype(jnp.float32) / 255 - mean) / std
