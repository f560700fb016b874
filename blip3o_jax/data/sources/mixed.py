"""Several sets as one source: their records one set after another, each with its weight."""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import itertools

import numpy as np

from blip3o_jax.data.records import Part
from blip3o_jax.data.records import Record
from blip3o_jax.data.records import Source


@dataclasses.dataclass(frozen=True)
class Piece:
  """One set of a mixture: its name in logs, its weight, and how many records to use (0: all)."""

  source: Source
  name: str = ""
  weight: float = 1.0
  records: int = 0


class Mixed:
  """The records of several sources.

  Attributes:
    pieces: what it consists of. starts: where the records of each begin, and the end of the last.
  """

  def __init__(self, pieces: Sequence[Piece]):
    self.pieces = tuple(pieces)
    self.starts = starts(self.pieces)

  def __len__(self) -> int:
    return self.starts[-1]

  def __getitem__(self, index: int, /) -> Record:
    source, inside = self._find(index)
    return source[inside]

  def words(self, index: int, /) -> Record:
    """The record without pictures and features."""
    source, inside = self._find(index)
    return source.words(inside)

  def lengths(self, name: str, count: Callable[[Record], int], /) -> np.ndarray:
    """See `records.Source`; each source's own are smaller."""
    return np.concatenate([piece.source.lengths(name, count) for piece in self.pieces])

  def hashes(self, first: int, end: int, /) -> np.ndarray:
    """uint32[end - first]."""
    found = [np.zeros(0, np.uint32)]
    for piece, start, stop in zip(self.pieces, self.starts[:-1], self.starts[1:], strict=True):
      a, z = max(first, start), min(end, stop)
      if a < z:
        found.append(piece.source.hashes(a - start, z - start))
    return np.concatenate(found)

  def parts(self) -> list[Part]:
    """Those of each source, after its name."""
    return [
      dataclasses.replace(part, name=f"{piece.name}/{part.name}")
      for piece in self.pieces
      for part in piece.source.parts()
    ]

  def _find(self, index: int) -> tuple[Source, int]:
    if not 0 <= index < len(self):
      raise IndexError(index)
    which = int(np.searchsorted(self.starts, index, side="right")) - 1
    return self.pieces[which].source, index - self.starts[which]


def pieces(source: Source) -> tuple[Piece, ...]:
  """What a source consists of; itself, if it is no mixture."""
  return source.pieces if isinstance(source, Mixed) else (Piece(source),)


def starts(pieces: Sequence[Piece]) -> list[int]:
  """Where the records of each begin, one set after another, and the end of the last."""
  return [0, *itertools.accumulate(len(piece.source) for piece in pieces)]
