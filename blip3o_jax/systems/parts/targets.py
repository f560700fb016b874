"""A record's picture, or its cached features, as the arrays that systems train on. Numpy alone."""

import numpy as np

from blip3o_jax.data import images
from blip3o_jax.data.pipeline import Arrays
from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.records import Record

Encoded = bytes | np.ndarray | None


def sized(
  encoded: Encoded,
  name: str,
  size: int,
  *,
  friendly: bool,
  squash: bool = False,
  resample: images.Filter = "bicubic",
  nearest: bool = False,
) -> np.ndarray:
  """An encoded picture as uint8[size, size, 3].

  Args:
    name: how errors call it. friendly: see `images.rgb`; the others are those of `images.square`.

  Raises:
    BadRecord: no picture, or one that cannot be used.
  """
  if encoded is None:
    raise BadRecord(f"{name}: no image", "missing")
  image = images.decode(encoded, name, friendly=friendly)
  try:
    return images.square(image, size, squash=squash, resample=resample, nearest=nearest)
  except BadRecord as error:
    raise BadRecord(f"{name}: {error}", error.kind) from None


def square(record: Record, data: Data) -> np.ndarray:
  """The record's picture as uint8[S, S, 3], S = data.image_size; raises as `sized` does."""
  size, name = data.image_size, record.name
  return sized(record.image, name, size, friendly=data.friendly, squash=data.squash)


def cached(record: Record) -> Arrays:
  """features: [h, w, C] that stand with the record, of 16 bits as they are, else float32.

  Raises:
    BadRecord: none do.
  """
  if record.features is None:
    raise BadRecord(f"{record.name}: no cached features (KEY.npy beside the caption)", "missing")
  features = record.features
  return {"features": features if features.dtype.itemsize == 2 else features.astype(np.float32)}


def target(record: Record, data: Data) -> Arrays:
  """The record's cached features, or images: its picture, uint8[S, S, 3], for the encoder.

  Raises:
    BadRecord: see `cached` and `square`.
  """
  return cached(record) if data.features else {"images": square(record, data)}
