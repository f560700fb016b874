"""What makes features of records, as a cache of them must know it."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
from typing import Any

from blip3o_jax.data.pipeline import Arrays
from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.records import Record

Rows = Callable[[Record], Arrays]


@dataclasses.dataclass(frozen=True)
class Encoder:
  """Frozen networks of a system; its model's `prepare(batch)` gives `features` of a batch.

  Attributes:
    cfg: of the model, with these networks built. modules: their names in it.
    rows: given data and a tokenizer of the system's SPECIAL or None, what its own transforms make
      of a record for `prepare`: {name: array}, of the same shapes for every record, which raises
      BadRecord; ValueError for data that does not fit.
    shape: of the features of a record.
    design: JSON, what decides the features beside parameters and data.
    read: of data, JSON, what decides a row; None: the fields that decide how a picture is read.
    texts: whether the tokenizer decides it too.
  """

  cfg: Any
  modules: tuple[str, ...]
  rows: Callable[[Data, Any], Rows]
  shape: tuple[int, int, int]
  design: Mapping[str, Any]
  read: Callable[[Data], Mapping[str, Any]] | None = None
  texts: bool = False
