"""A language model's tensors with another vocabulary; and what any reader of tensors is."""

from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from blip3o_jax.weights.pickles import Pickles
from blip3o_jax.weights.safetensors import Tensors
from blip3o_jax.weights.table import Shape

HEAD, EMBEDDING = "lm_head.weight", "embed_tokens.weight"
ROWS = 8192  # of a table, summed at a time


class Resized(Mapping[str, Shape]):
  """The tensors of a reader, with another number of rows in the embedding and the head.

  Args:
    after: rows. known: those from this one on are the mean of those before it; the head's are so
      only where it has none.
  """

  def __init__(self, tensors: Tensors | Pickles, after: int, known: int):
    self.files, self.index = tensors.files, tensors.index
    self._tensors, self._after, self._known = tensors, after, known

  def __getitem__(self, name: str) -> Shape:
    shape = self._tensors[name]
    return (self._after, *shape[1:]) if _changes(name) else shape

  def __iter__(self) -> Iterator[str]:
    return iter(self._tensors)

  def __len__(self) -> int:
    return len(self._tensors)

  def dtype(self, name: str) -> np.dtype:
    """The stored dtype of a tensor."""
    return self._tensors.dtype(name)

  def where(self, name: str) -> tuple[Path, int]:
    """The file of a tensor, and its place among those of the file."""
    return self._tensors.where(name)

  def view(self, name: str) -> Any:
    """A tensor, or what gives blocks of it when indexed with slices that have bounds."""
    whole = self._tensors.view(name)
    if not _changes(name):
      return whole
    # The head's padding rows are kept; the input table's are overwritten.
    kept = min(len(whole), self._after) if name == HEAD else self._known
    return _Table(whole, kept, self._known)


class _Table:
  """A table of rows of which those from `kept` on are the mean of the first `known`."""

  def __init__(self, whole: np.ndarray, kept: int, known: int):
    self._whole, self._kept = whole, kept
    total = np.zeros(whole.shape[1], np.float64)
    for start in range(0, known, ROWS):
      total += whole[start : min(start + ROWS, known)].astype(np.float32).sum(0, dtype=np.float64)
    self._mean = (total / known).astype(whole.dtype)

  def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
    first, *rest = index
    stop = min(first.stop, self._kept)
    old = self._whole[(slice(min(first.start, stop), stop), *rest)]
    new = np.broadcast_to(self._mean, (first.stop - max(first.start, stop), len(self._mean)))
    return np.concatenate([old, new[(slice(None), *rest)]])


def _changes(name: str) -> bool:
  return name == HEAD or name.endswith(EMBEDDING)


Reader = Tensors | Pickles | Resized
