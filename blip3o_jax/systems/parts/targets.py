"""A record's picture, or its cached features, as the arrays that systems train on. Numpy alone."""

import numpy as np

from blip3o_jax.data import images
from blip3o_jax.data.pipeline import Arrays
from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.records import Record


def square(record: Record, data: Data) -> np.ndarray:
  """The record's picture as uint8[S, S, 3], S = data.image_size.

  Raises:
    BadRecord: no picture, or one that cannot be used.
  """
  if record.image is None:
    raise BadRecord(f"{record.name}: no image")
  image = images.decode(record.image, record.name, friendly=data.friendly)
  try:
    return images.square(image, data.image_size, squash=data.squash)
  except BadRecord as error:
    raise BadRecord(f"{record.name}: {error}") from None


def cached(record: Record) -> Arrays:
  """features: float32[h, w, C] that stand with the record.

  Raises:
    BadRecord: none do.
  """
  if record.features is None:
    raise BadRecord(f"{record.name}: no cached features (KEY.npy beside the caption)")
  return {"features": record.features.astype(np.float32)}


def target(record: Record, data: Data) -> Arrays:
  """The record's cached features, or images: its picture, float32[S, S, 3], for the encoder.

  Raises:
    BadRecord: see `cached` and `square`.
  """
  if data.features:
    return cached(record)
  made = images.normalise if data.values == "clip" else images.signed
  return {"images": made(square(record, data))}
