"""Weights as a stream of pieces: one layer of one parameter, copied block by block.

A block is read in PyTorch's layout (mapped, so only when touched) some rows at a time. While a
processor's cache holds these they are cast, hashed, looked through for values that are no numbers,
and transposed to their place in the block that is then written. A thread holds one such block.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
import dataclasses
import math
import os
from typing import Any
from typing import Protocol
from typing import TypeVar

from ml_dtypes import bfloat16
import numpy as np

from blip3o_jax import trees
from blip3o_jax.weights import hashes
from blip3o_jax.weights import safetensors
from blip3o_jax.weights import store
from blip3o_jax.weights import table
from blip3o_jax.weights.table import Shape

T = TypeVar("T")
R = TypeVar("R")
# What a processor's cache holds: columns that are transposed together, and rows (or bytes, where
# these are more) that are visited together. Fewer rows would be written in pieces too short.
TILE = 64
ROWS, BYTES = 256, 2**20
# Bits of the exponents of 2-byte numbers; all are ones in what is no number.
EXPONENTS = {np.dtype(bfloat16): 0x7F80, np.dtype(np.float16): 0x7C00}


class Part(Protocol):
  """One set of files. Attributes: tensors: that they hold. params: {path: shape} that they fill."""

  @property
  def tensors(self) -> table.Reader:
    """What the files hold."""

  @property
  def params(self) -> Mapping[str, Shape]:
    """What they fill."""


@dataclasses.dataclass(frozen=True)
class Piece:
  """One layer of one parameter.

  Attributes:
    part, source: where it comes from. path: of the parameter. layer: None for all of it.
    dtype: in which it is stored.
  """

  part: Part
  source: table.Source
  path: str
  layer: int | None
  dtype: np.dtype

  @property
  def shape(self) -> Shape:
    """Of the whole parameter."""
    return self.part.params[self.path]

  @property
  def module(self) -> str:
    """The top-level module of the parameter."""
    return trees.top(self.path)

  @property
  def tensor(self) -> str:
    """The tensor that it is read from; "" for zeros."""
    return self.source.names[self.layer or 0] if self.source.names else ""

  @property
  def torch_shape(self) -> Shape:
    """Its shape in PyTorch's layout."""
    return (self.source.rows, *self.source.shape[1:])

  @property
  def count(self) -> int:
    """How many numbers."""
    return math.prod(self.torch_shape)

  @property
  def block(self) -> Shape:
    """How the parameter is cut: along PyTorch's axis 0, which is read in order."""
    stacked = self.layer is not None
    split = self.source.perm.index(0) + stacked
    return store.block_shape(self.shape, self.dtype.itemsize, stacked=stacked, split=split)


@dataclasses.dataclass(frozen=True)
class Result:
  """Attributes: digest: of the bytes, in PyTorch's layout. odd: values that are no numbers."""

  digest: str
  odd: int


def cut(part: Part, plan: Mapping[str, table.Source], cast: np.dtype | None) -> list[Piece]:
  """The pieces of a part, in the order of their bytes in the files.

  Args:
    cast: the dtype of floating parameters; None keeps the stored one.

  Raises:
    ValueError: one parameter of layers whose dtypes have no common one.
  """
  out: list[tuple[tuple[Any, ...], Piece]] = []
  for path, source in plan.items():
    kinds = {part.tensors.dtype(n) for n in source.names or _siblings(path, plan)}
    stored = widest(kinds, path)
    dtype = cast if cast is not None and is_float(stored) else stored
    for i in range(part.params[path][0] if source.stacked else 1):
      piece = Piece(part, source, path, i if source.stacked else None, dtype)
      file, begin = part.tensors.where(piece.tensor) if piece.tensor else ("", 0)
      out.append(((str(file), begin, source.start), piece))
  return [piece for _, piece in sorted(out, key=lambda item: item[0])]


def _siblings(path: str, plan: Mapping[str, table.Source]) -> tuple[str, ...]:
  """Whose dtype zeros take that no file holds: the kernel's."""
  return plan[f"{path.rpartition('/')[0]}/kernel"].names


def widest(kinds: Iterable[np.dtype], path: str) -> np.dtype:
  """The dtype that holds the values of all of them exactly."""
  found = set(kinds)
  if len(found) == 1:
    return next(iter(found))
  if not all(is_float(kind) for kind in found):
    raise ValueError(f"{path}: layers of dtypes {', '.join(sorted(map(str, found)))}")
  return np.dtype(np.float64 if np.dtype(np.float64) in found else np.float32)


def is_float(dtype: np.dtype) -> bool:
  """Whether a dtype is of floating numbers, bfloat16 among them."""
  return dtype == bfloat16 or np.issubdtype(dtype, np.floating)


def blocks(piece: Piece) -> Iterator[tuple[int, np.ndarray]]:
  """(first row, block) of a piece in PyTorch's layout, as stored; mapped where the file is."""
  step = piece.block[piece.source.perm.index(0) + (piece.layer is not None)]
  rows, *rest = piece.torch_shape
  view = piece.part.tensors.view(piece.tensor) if piece.tensor else None
  skip = piece.source.start
  for start in range(0, rows, step):
    stop = min(start + step, rows)
    if view is None:
      yield start, np.zeros((stop - start, *rest), piece.dtype)
    else:
      block = view[(slice(skip + start, skip + stop), *(slice(0, n) for n in rest))]
      yield start, block.reshape(block.shape[: len(piece.source.perm)])


def tiles(rows: int, row_bytes: int, block: int) -> Iterator[slice]:
  """Rows that are visited together: of one block, some hundreds or some that make a megabyte."""
  step = max(ROWS, BYTES // max(row_bytes, 1))
  for first in range(0, rows, block):
    last = min(first + block, rows)
    for start in range(first, last, step):
      yield slice(start, min(start + step, last))


def copy(piece: Piece, writer: store.Writer, algorithm: str) -> Result:
  """Writes a piece, hashing it and counting what is no number on the way.

  Args:
    algorithm: of `hashes`.
  """
  digest, odd = hashes.new(algorithm), 0
  perm, axis = piece.source.perm, piece.source.perm.index(0)
  for start, block in blocks(piece):
    stays = block.dtype == piece.dtype and perm == tuple(range(len(perm)))
    values = block if stays else np.empty([block.shape[p] for p in perm], piece.dtype)
    for rows in tiles(len(block), block[:1].nbytes, len(block)):
      tile = np.ascontiguousarray(block[rows])
      if tile.dtype != piece.dtype:
        tile = table.cast(piece.tensor, tile, piece.dtype)
      digest.update(tile.reshape(-1).view(np.uint8).data)
      odd += count_odd(tile)
      if not stays:
        values[(*[slice(None)] * axis, rows)] = transpose(tile, perm)
    begin = [0] * values.ndim
    begin[axis] = start
    if piece.layer is not None:
      values, begin = values[None], [piece.layer, *begin]
    writer.write(piece.path, tuple(begin), values)
  return Result(digest.hexdigest(), odd)


def transpose(values: np.ndarray, perm: Sequence[int]) -> np.ndarray:
  """A contiguous transpose; tiled, because numpy's own is slow where no dim stays last."""
  view = np.transpose(values, perm)
  if view.flags.c_contiguous:
    return view
  last = values.ndim - 1
  if perm[0] == last and last > 1:  # whole rows first, so that no short dim comes to be the last
    rows = np.ascontiguousarray(np.transpose(values, (*perm[1:], last)))
    return transpose(rows.reshape(-1, rows.shape[-1]), (1, 0)).reshape(view.shape)
  if last == 1 and values.strides[0] % 512 == 0:
    # Rows so far apart compete for the same few lines of a cache; some space between them helps.
    apart = np.empty((len(values), values.shape[1] + TILE), values.dtype)[:, : values.shape[1]]
    apart[...] = values
    view = np.transpose(apart, perm)
  out = np.empty(view.shape, view.dtype)
  for i in range(0, view.shape[-1], TILE):
    out[..., i : i + TILE] = view[..., i : i + TILE]
  return out


def count_odd(values: np.ndarray) -> int:
  """How many values are NaN or infinite."""
  if not is_float(values.dtype) or not values.size:
    return 0
  if values.dtype in EXPONENTS:  # by their bits: the largest of either sign, seldom more
    ones = EXPONENTS[values.dtype]
    if values.view(np.int16).max() < ones and values.view(np.uint16).max() < 0x8000 | ones:
      return 0
    return int(np.count_nonzero((values.view(np.uint16) & np.uint16(ones)) == ones))
  return values.size - int(np.count_nonzero(np.isfinite(values)))


def fingerprint(
  pieces: Sequence[tuple[str, int | None, np.dtype, Shape, str]], algorithm: str
) -> str:
  """A component's hash, from (path, layer, dtype, PyTorch's shape, digest) of all its pieces.

  It depends on names and bytes alone, not on how files or blocks were cut.
  """
  lines = sorted(
    f"{path}[{'' if i is None else i}] {safetensors.NAMES[dtype]} {list(shape)} {digest}"
    for path, i, dtype, shape, digest in pieces
  )
  return hashes.named(algorithm, "\n".join(lines).encode())


def in_parallel(copy: Callable[[T], R], work: Iterable[T], *, alone: bool = False) -> list[R]:
  """What `copy` returns for each piece of work, in order; the first error ends what has not begun.

  Args:
    alone: one at a time, else as many as keep a disk busy and bound the memory.
  """
  threads = 1 if alone else max(1, min(4, len(os.sched_getaffinity(0))))
  with ThreadPoolExecutor(threads) as pool:
    jobs = [pool.submit(copy, piece) for piece in work]
    try:
      return [job.result() for job in jobs]
    except BaseException:
      pool.shutdown(cancel_futures=True)
      raise
