"""Some of the numbers 0 to n - 1, a bit each: the k-th of them is found without a list of them."""

from collections.abc import Callable
import functools

import numpy as np

_BLOCK = 512  # bits that are counted together
CHUNK = 1 << 20  # numbers that are looked at together; a multiple of the block


class Chosen:
  """Numbers below `count`, in ascending order.

  Args:
    bits: uint8[ceil(count / 8)], as `np.packbits` makes them. count: how many numbers there are to
      choose from.
  """

  def __init__(self, bits: np.ndarray, count: int):
    self.count = count
    blocks = -(-count // _BLOCK)
    self._bits = np.zeros((blocks, _BLOCK // 8), np.uint8)
    self._bits.reshape(-1)[: len(bits)] = bits
    ones = np.bitwise_count(self._bits).sum(1, dtype=np.int64)
    self._before = np.concatenate([[0], np.cumsum(ones)])

  @classmethod
  def where(cls, count: int, test: Callable[[int, int], np.ndarray]) -> "Chosen":
    """Those that `test(first, end)` gives as bool[end - first], asked piece by piece."""
    bits = [np.packbits(test(first, min(first + CHUNK, count))) for first in range(0, count, CHUNK)]
    return cls(np.concatenate(bits) if bits else np.zeros(0, np.uint8), count)

  @classmethod
  def all(cls, count: int) -> "Chosen":
    """Every number."""
    return cls.where(count, lambda first, end: np.ones(end - first, bool))

  @classmethod
  def of(cls, numbers: np.ndarray, count: int) -> "Chosen":
    """These numbers."""
    mask = np.zeros(count, bool)
    mask[numbers] = True
    return cls(np.packbits(mask), count)

  def __len__(self) -> int:
    return int(self._before[-1])

  def __getitem__(self, places: np.ndarray) -> np.ndarray:
    """The numbers at some places in their order: int64[k] of int64[k]."""
    places = np.asarray(places, np.int64)
    if len(self) == self.count:
      return places
    block = np.searchsorted(self._before, places, side="right") - 1
    ones = np.unpackbits(self._bits[block], axis=-1)
    rank = np.cumsum(ones, axis=-1, dtype=np.int16)
    inside = (rank <= (places - self._before[block])[..., None]).sum(-1)
    return block * _BLOCK + inside

  def below(self, number: int) -> int:
    """How many of them are smaller than `number`, of 0 to `count`."""
    block, bit = divmod(number, _BLOCK)
    if not bit:
      return int(self._before[block])
    return int(self._before[block]) + int(np.unpackbits(self._bits[block])[:bit].sum())

  def mask(self, first: int = 0, end: int | None = None) -> np.ndarray:
    """bool[end - first]: which of the numbers from `first` on are there; `first` divisible by 8."""
    end = self.count if end is None else end
    bits = self.bits[first // 8 : -(-end // 8)]
    return np.unpackbits(bits, count=end - first).astype(bool)

  @functools.cached_property
  def bits(self) -> np.ndarray:
    """uint8[ceil(count / 8)], as given."""
    return self._bits.reshape(-1)[: -(-self.count // 8)]

  def first(self, wanted: int) -> "Chosen":
    """The first so many of them."""
    if wanted >= len(self):
      return self
    end = int(self[np.array([wanted])][0]) if wanted else 0
    return Chosen.where(self.count, lambda a, b: self.mask(a, b) & (np.arange(a, b) < end))

  def within(self, first: int, end: int) -> "Chosen":
    """Those from `first` to below `end`."""

    def test(a: int, z: int) -> np.ndarray:
      numbers = np.arange(a, z)
      return self.mask(a, z) & (numbers >= first) & (numbers < end)

    return self if (first, end) == (0, self.count) else Chosen.where(self.count, test)

  def __and__(self, other: "Chosen") -> "Chosen":
    return Chosen(self.bits & other.bits, self.count)

  def __or__(self, other: "Chosen") -> "Chosen":
    return Chosen(self.bits | other.bits, self.count)

  def without(self, other: "Chosen") -> "Chosen":
    """Those that `other` has not."""
    return Chosen(self.bits & ~other.bits, self.count)
