"""The prefill table of V1, whose files have none: a row of the word table, repeated (spec 2.6)."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from blip3o_jax.systems.nexus_gen import rows
from blip3o_jax.weights import table
from blip3o_jax.weights.rows import decoder_lm

NAME = "image_prefill_embeds.weight"


class Repeated(table.Reader):
  """The tensors of a language model, and with them the prefill table that is not in the files.

  Args:
    tensors: with a word table. row: of it. count: slots of a picture.

  Raises:
    ValueError: no word table, or one without the row.
  """

  def __init__(self, tensors: table.Reader, row: int, count: int):
    words = f"{decoder_lm.prefix(tensors)}embed_tokens.weight"
    if row >= tensors[words][0]:
      raise ValueError(
        f"config.json image_token_id is {row}, but {words} is {tuple(tensors[words])}; the slots "
        "of V1 are that row"
      )
    self.files, self.index, self.absent = tensors.files, tensors.index, tensors.absent
    self.hidden = tensors.hidden + 1  # the index's sum of sizes is without it
    self.chosen = tensors.chosen
    note = f"{NAME}: {count} times row {row} of {words}, which is what the slots of V1 hold"
    self.notes = (*tensors.notes, note)
    self._tensors, self._words, self._row, self._count = tensors, words, row, count

  def __getitem__(self, name: str) -> table.Shape:
    return (self._count, self._tensors[self._words][1]) if name == NAME else self._tensors[name]

  def __iter__(self) -> Iterator[str]:
    yield from self._tensors
    yield NAME

  def __len__(self) -> int:
    return len(self._tensors) + 1

  def dtype(self, name: str) -> np.dtype:
    """The stored dtype of a tensor; the table's is the word table's."""
    return self._tensors.dtype(self._words if name == NAME else name)

  def where(self, name: str) -> tuple[Path, int]:
    """The file of a tensor, and where in it the bytes begin; the table is where its row is."""
    return self._tensors.where(self._words if name == NAME else name)

  def view(self, name: str) -> np.ndarray:
    """A whole tensor."""
    if name != NAME:
      found: np.ndarray = self._tensors.view(name)
      return found
    return np.asarray(rows.repeated(self._tensors.view(self._words), self._row, self._count))
