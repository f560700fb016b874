"""A batch that is put together row by row. Knows no record and no task."""

import itertools
import math
import mmap
import threading
import weakref

import numpy as np

Arrays = dict[str, np.ndarray]

_LARGE = 1 << 20  # bytes; smaller ones the allocator keeps itself


class Memory:
  """Arrays for batches, in memory that nobody uses any more where there is some.

  To fill new pages takes longer than to read cached features. An array's memory comes back when
  the array, its views and what was made of it without a copy are gone, and not before.
  """

  def __init__(self) -> None:
    self._free: dict[int, list[mmap.mmap]] = {}

  def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """As np.empty."""
    size = math.prod(shape) * dtype.itemsize
    if size < _LARGE:
      return np.empty(shape, dtype)
    free = self._free.setdefault(size, [])
    try:
      pages = free.pop()
    except IndexError:
      pages = mmap.mmap(-1, size)
    # No array may own the pages: views of `out` would keep that one alive, and not `out`.
    out = np.ndarray(shape, dtype, pages)
    weakref.finalize(out, free.append, pages).atexit = False
    return out


class Batch:
  """Rows as they come, in any order and from any thread; of one shape and type each.

  Attributes:
    is_done: whether each row was put, or failed.
  """

  def __init__(self, rows: int, memory: Memory | None = None):
    self._rows, self._memory = rows, memory or Memory()
    self._lock = threading.Lock()
    self._ended = itertools.count(1)  # counts without a lock
    self._arrays: Arrays = {}
    self._errors: dict[int, BaseException] = {}
    self.is_done = False

  def put(self, row: int, arrays: Arrays) -> None:
    """Writes one row.

    Raises:
      ValueError: arrays of other names, shapes or types than an earlier row has, by name.
    """
    if not self._arrays:
      with self._lock:
        self._arrays = self._arrays or {
          name: self._memory.empty((self._rows, *value.shape), value.dtype)
          for name, value in arrays.items()
        }
    if arrays.keys() != self._arrays.keys():
      names = sorted(arrays.keys() ^ self._arrays.keys())
      raise ValueError(f"{', '.join(names)}: in some records of a batch, and not in others")
    for name, whole in self._arrays.items():
      value = arrays[name]
      if value.shape != whole.shape[1:]:
        shapes = sorted({value.shape, whole.shape[1:]})
        raise ValueError(f"{name}: records of one batch have different shapes, {shapes}")
      if value.dtype != whole.dtype:
        types = " and ".join(sorted({str(value.dtype), str(whole.dtype)}))
        raise ValueError(f"{name}: records of one batch have different types, {types}; use one")
      whole[row] = value
    self._end()

  def fail(self, row: int, error: BaseException) -> None:
    """Keeps what a row raised."""
    self._errors[row] = error
    self._end()

  def taken(self) -> Arrays:
    """{name: array[rows, ...]}; raises what the first of the rows that failed raised."""
    if self._errors:
      raise self._errors[min(self._errors)]
    return self._arrays

  def _end(self) -> None:
    if next(self._ended) == self._rows:
      self.is_done = True
