"""Weights as a stream of pieces: one layer of one parameter, copied block by block.

A block is read in PyTorch's layout (mapped, so only when touched), cast, hashed, looked through for
values that are no numbers, transposed and written. A thread holds three blocks at the most.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
import dataclasses
import hashlib
import math
import os
from typing import Any
from typing import Protocol
from typing import TypeVar

from ml_dtypes import bfloat16
import numpy as np

from blip3o_jax import trees
from blip3o_jax.weights import safetensors
from blip3o_jax.weights import store
from blip3o_jax.weights import table
from blip3o_jax.weights.table import Shape

T = TypeVar("T")
R = TypeVar("R")
TILE = 64  # columns that are transposed together: what a processor's cache holds


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
    return (self.source.shape[0] // self.source.parts, *self.source.shape[1:])

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
      out.append(((str(file), begin, source.part), piece))
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
  """(first row, block) of a piece in PyTorch's layout, contiguous, in the piece's dtype."""
  step = piece.block[piece.source.perm.index(0) + (piece.layer is not None)]
  rows, *rest = piece.torch_shape
  view = piece.part.tensors.view(piece.tensor) if piece.tensor else None
  skip = piece.source.part * rows
  for start in range(0, rows, step):
    stop = min(start + step, rows)
    if view is None:
      yield start, np.zeros((stop - start, *rest), piece.dtype)
    else:
      index = (slice(skip + start, skip + stop), *(slice(0, n) for n in rest))
      block = np.ascontiguousarray(view[index])
      if block.dtype != piece.dtype:
        block = table.cast(piece.tensor, block, piece.dtype)
      yield start, block


def copy(piece: Piece, writer: store.Writer) -> Result:
  """Writes a piece, hashing it and counting what is no number on the way."""
  digest, odd = hashlib.sha256(), 0
  for start, block in blocks(piece):
    digest.update(block.reshape(-1).view(np.uint8).data)
    odd += count_odd(block)
    values = transpose(block, piece.source.perm)
    begin = [0] * values.ndim
    begin[piece.source.perm.index(0)] = start
    if piece.layer is not None:
      values, begin = values[None], [piece.layer, *begin]
    writer.write(piece.path, tuple(begin), values)
  return Result(digest.hexdigest(), odd)


def transpose(values: np.ndarray, perm: Sequence[int]) -> np.ndarray:
  """A contiguous transpose; tiled, because numpy's own is slow where no dim stays last."""
  view = np.transpose(values, perm)
  if view.flags.c_contiguous:
    return view
  out = np.empty(view.shape, view.dtype)
  for i in range(0, view.shape[-1], TILE):
    out[..., i : i + TILE] = view[..., i : i + TILE]
  return out


def count_odd(values: np.ndarray) -> int:
  """How many values are NaN or infinite."""
  if values.dtype == bfloat16:  # by its bits: an exponent of ones
    bits = values.view(np.uint16)
    return int(np.count_nonzero((bits & np.uint16(0x7FFF)) >= np.uint16(0x7F80)))
  if not is_float(values.dtype):
    return 0
  return values.size - int(np.count_nonzero(np.isfinite(values)))


def fingerprint(pieces: Sequence[tuple[str, int | None, np.dtype, Shape, str]]) -> str:
  """A component's hash, from (path, layer, dtype, PyTorch's shape, digest) of all its pieces.

  It depends on names and bytes alone, not on how files or blocks were cut.
  """
  lines = sorted(
    f"{path}[{'' if i is None else i}] {safetensors.NAMES[dtype]} {list(shape)} {digest}"
    for path, i, dtype, shape, digest in pieces
  )
  return hashlib.sha256("\n".join(lines).encode()).hexdigest()


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
