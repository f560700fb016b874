"""Which caption of a record is trained on: its own, the other that a source gave, or none."""

from absl import logging
import numpy as np

from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.records import Record


def possible(record: Record, data: Data) -> list[str]:
  """All that `chosen` may give, but for none."""
  other = record.extra.get("other") if data.swap_captions else None
  return [record.prompt] if other is None else [record.prompt, str(other)]


def chosen(record: Record, data: Data, rng: np.random.Generator) -> str:
  """One of them, "" for none, in the shares of `Data.drop_captions` and `Data.swap_captions`."""
  drop, swap = rng.random(2)
  if drop < data.drop_captions:
    return ""
  if data.swap_captions and "other" not in record.extra:
    text = "data.swap_captions: %s has no other caption; records without one keep theirs"
    logging.log_first_n(logging.WARNING, text, 1, record.name)
  elif swap < data.swap_captions:
    return str(record.extra["other"])
  return record.prompt
