"""Pictures that a prompt shows, as the vision tower takes them, in rows of one shape. Numpy."""

from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import NamedTuple

import numpy as np

from blip3o_jax.data import images
from blip3o_jax.data.pipeline import Arrays
from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.records import Record
from blip3o_jax.models import qwen_vision
from blip3o_jax.systems.parts import targets
from blip3o_jax.systems.parts.targets import Encoded


class Picture(NamedTuple):
  """patches uint8[h w, patch_dim] in the order of `qwen_vision.layout`, and its grid (h, w)."""

  patches: np.ndarray
  grid: tuple[int, int]


def pictures_of(record: Record) -> list[bytes | np.ndarray]:
  """Those of a conversation, in the order in which they are named."""
  return [*([] if record.image is None else [record.image]), *record.inputs]


class Room:
  """The room that each row has for pictures: `Data.pictures` of them.

  Args:
    max_pixels: of a picture at most; 0: image_size^2.

  Attributes:
    count: of pictures. patches: of a picture, at most. places: of a prompt that it takes at most.

  Raises:
    ValueError: an image_size, where it counts, that merged patches do not tile.
  """

  def __init__(self, vision: qwen_vision.Config, data: Data, max_pixels: int = 0):
    unit = vision.patch_size * vision.merge
    if not max_pixels and data.image_size % unit:
      raise ValueError(
        f"config.data.image_size: {data.image_size} is not a multiple of patch_size x merge = "
        f"{unit}"
      )
    self._vision, self._data = vision, data
    self._most = max_pixels or data.image_size**2
    self._limit = f"max_pixels {max_pixels}" if max_pixels else f"data.image_size {data.image_size}"
    self.count = data.pictures
    self.places = self._most // unit**2
    self.patches = self.places * vision.merge**2

  def picture(self, encoded: Encoded, name: str) -> Picture:
    """A record's picture, cut to a square or at its own ratio, as `Data.aspect` says.

    Raises:
      BadRecord: none, one that cannot be decoded, one that is too thin.
    """
    if self._data.aspect == "square":
      return self._cut(targets.square(Record(image=encoded, name=name), self._data))
    return self.native(encoded, name)

  def native(self, encoded: Encoded, name: str) -> Picture:
    """A record's picture at its own ratio, resized as the tower's processor does; see `picture`."""
    return self._cut(self._native(encoded, name))

  def squashed(self, encoded: Encoded, name: str, side: int) -> Picture:
    """A record's picture resized to `side` pixels a side, whatever its ratio.

    Raises:
      BadRecord: none, or one that cannot be decoded.
    """
    friendly = self._data.friendly
    return self._cut(targets.sized(encoded, name, side, friendly=friendly, squash=True))

  def _cut(self, pixels: np.ndarray) -> Picture:
    vision = self._vision
    patches = images.patchify(
      pixels,
      patch_size=vision.patch_size,
      merge=vision.merge,
      temporal_patch_size=vision.temporal_patch_size,
    )
    high, wide = (side // vision.patch_size for side in pixels.shape[:2])
    return Picture(patches, (high, wide))

  def _native(self, encoded: Encoded, name: str) -> np.ndarray:
    if encoded is None:
      raise BadRecord(f"{name}: no image", "missing")
    image, most = images.decode(encoded, name, friendly=self._data.friendly), self._most
    try:
      pixels = images.qwen_pixels(
        image,
        factor=self._vision.patch_size * self._vision.merge,
        min_pixels=min(images.MIN_PIXELS, most),
        max_pixels=most,
      )
    except ValueError as error:
      raise BadRecord(f"{name}: {error}", "size") from None
    if pixels.shape[0] * pixels.shape[1] > most:  # its short side would be less than a place
      raise BadRecord(
        f"{name}: an image of {image.width} x {image.height} is too thin for {self._limit}", "size"
      )
    return pixels

  def places_of(self, picture: Picture) -> int:
    """How many places of a prompt a picture takes."""
    return math.prod(picture.grid) // self._vision.merge**2

  def check(self, count: int, name: str) -> None:
    """Raises BadRecord for more pictures than a row has room for."""
    if count > self.count:
      raise BadRecord(
        f"{name}: shows {count} pictures, but a row has room for data.pictures {self.count}",
        "lists",
      )

  def fits(self, length: int, bucket: int, places: Sequence[int], name: str) -> None:
    """Raises BadRecord for a row of `length` tokens, those at `places` among them, that does not.

    Args:
      places: that each picture takes.
    """
    if length > bucket:
      raise BadRecord(
        f"{name}: {len(places)} pictures of {sum(places)} tokens do not fit a row of {bucket}",
        "size",
      )

  def arrays(self, pictures: Sequence[Picture]) -> Arrays:
    """Patches and the layout of a row's pictures, absent ones behind them.

    Args:
      pictures: at most `count`.

    Returns:
      patches uint8[count, patches, patch_dim], patch_positions int32[count, patches, 2],
      patch_windows and patch_segments int32[count, patches].
    """
    vision = self._vision
    out: Arrays = {
      "patches": np.zeros((self.count, self.patches, vision.patch_dim), np.uint8),
      "patch_positions": np.zeros((self.count, self.patches, 2), np.int32),
      "patch_windows": np.zeros((self.count, self.patches), np.int32),
      "patch_segments": np.zeros((self.count, self.patches), np.int32),
    }
    for i, picture in enumerate(pictures):
      layout = _layout(picture.grid, self.patches, vision)
      out["patches"][i, : len(picture.patches)] = picture.patches
      for field in dataclasses.fields(layout):
        out[f"patch_{field.name}"][i] = getattr(layout, field.name)[0]
    return out


@functools.lru_cache(maxsize=256)
def _layout(grid: tuple[int, int], n: int, vision: qwen_vision.Config) -> qwen_vision.Layout:
  return qwen_vision.layout([grid], n, vision)
