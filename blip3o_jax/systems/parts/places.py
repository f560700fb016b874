"""Pictures in prompts: their arrays in a batch, and what stands in their places.

A picture has as many places in a prompt as it has merged tokens of the vision tower.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from blip3o_jax.data import images as pictures
from blip3o_jax.models import qwen_vision
from blip3o_jax.systems.parts import normalising

Batch = Mapping[str, jax.Array]


def shown(batch: Batch) -> tuple[jax.Array | None, qwen_vision.Layout | None]:
  """The pictures that a batch's prompts show: patches [B, I, N, p] and their layout, or nothing."""
  if "patches" not in batch:
    return None, None
  layout = qwen_vision.Layout(
    positions=batch["patch_positions"],
    windows=batch["patch_windows"],
    segments=batch["patch_segments"],
  )
  return batch["patches"], layout


def vectors(
  visual: qwen_vision.QwenVision,
  patches: jax.Array,
  layout: qwen_vision.Layout,
  places: jax.Array,
) -> jax.Array:
  """What the tower sees, at the places of the pictures.

  Args:
    visual: the tower. patches: uint8 or float[I, N, patch_dim], images in the order of their
      places, row by row; or [B, I, N, patch_dim], those of each row, which then stay on the device
      that holds it. layout: of the patches, with the same axes before N; an image of segment 0
      throughout is absent.
    places: bool[B, T], where a merged token stands.

  Returns:
    float[B, T, D]; elsewhere than at the places it means nothing.
  """
  groups, merged = 1, visual.cfg.merge**2
  if patches.ndim == 4:
    groups = len(patches)
    patches, layout = jax.tree.map(lambda v: v.reshape(-1, *v.shape[2:]), (patches, layout))
  images = visual(normalising.clip_patches(patches), layout)
  valid = (layout.segments[:, ::merged] > 0).reshape(groups, -1)
  images = images.reshape(groups, -1, images.shape[-1])
  order = jnp.argsort(~valid, axis=1, stable=True)
  index = jnp.clip(jnp.cumsum(places.reshape(groups, -1), 1) - 1, 0, order.shape[1] - 1)
  which = jnp.take_along_axis(order, index, 1)[..., None]
  return jnp.take_along_axis(images, which, 1).reshape(*places.shape, images.shape[-1])


def seen(visual: qwen_vision.QwenVision, images: jax.Array) -> jax.Array:
  """Merged tokens float[B, n, D] of pictures uint8[B, H, W, 3] of one size, row by row.

  Raises:
    ValueError: sides that merged tokens do not tile.
  """
  cfg, (height, width) = visual.cfg, images.shape[1:3]
  grid = (height // cfg.patch_size, width // cfg.patch_size)
  layout = qwen_vision.layout([grid] * len(images), grid[0] * grid[1], cfg)
  if (height, width) != (grid[0] * cfg.patch_size, grid[1] * cfg.patch_size):
    raise ValueError(f"pictures of {height} x {width} are not tiled by {cfg.patch_size} pixels")

  def patches(image: jax.Array) -> jax.Array:
    cut: Any = pictures.patchify  # typed for numpy, of which it asks what jax has too
    return cut(
      image,
      patch_size=cfg.patch_size,
      merge=cfg.merge,
      temporal_patch_size=cfg.temporal_patch_size,
    )

  return visual(normalising.clip_patches(jax.vmap(patches)(images)), layout)
