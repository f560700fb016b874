"""Random pictures with captions of random length, for benchmarks; nothing is read from disk."""

from collections.abc import Callable
import zlib

import numpy as np

from blip3o_jax.data.records import Part
from blip3o_jax.data.records import Record
from blip3o_jax.data.records import counted

WORDS = ("red", "blue", "small", "large", "a", "the", "dog", "tree", "house", "near", "of", "and")
LONG, SHORT, LONG_SHARE = 100, 14, 0.9  # words of a caption; of the paper's mix, nearly
SHAPE = (512, 512, 3)


class SyntheticSource:
  """`count` records; image uint8[512, 512, 3], a number's always the same.

  Raises:
    ValueError: no records.
  """

  def __init__(self, count: int):
    if count < 1:
      raise ValueError(f"config.data.records: {count}; the synthetic set needs a number of records")
    self._count = count
    self._noise = np.random.default_rng(0).integers(0, 256, (2 * SHAPE[0], *SHAPE[1:]), np.uint8)

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, index: int, /) -> Record:
    words = self.words(index)
    shift = int(np.random.default_rng((1, index)).integers(SHAPE[0]))
    return Record(image=self._noise[shift : shift + SHAPE[0]], prompt=words.prompt, name=words.name)

  def words(self, index: int, /) -> Record:
    """The caption alone."""
    if not 0 <= index < self._count:
      raise IndexError(index)
    rng = np.random.default_rng((0, index))
    length = LONG if rng.random() < LONG_SHARE else SHORT
    chosen = rng.integers(len(WORDS), size=max(1, int(rng.normal(length, length / 6))))
    return Record(prompt=" ".join(WORDS[i] for i in chosen), name=f"synthetic {index}")

  def lengths(self, name: str, count: Callable[[Record], int], /) -> np.ndarray:
    """See `records.Source`; `name` is not used."""
    del name
    return counted(self, count)

  def hashes(self, first: int, end: int, /) -> np.ndarray:
    """uint32[end - first]."""
    return np.array([zlib.crc32(b"%d" % i) for i in range(first, end)], np.uint32)

  def parts(self) -> list[Part]:
    """One; a shorter set is the beginning of a longer."""
    return [Part("synthetic", self._count, "synthetic 1")]
