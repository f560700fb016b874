"""Columns of a set's records in a folder: plain .npy files that are mapped into memory.

A column of numbers that is the same for all records takes one row. Byte strings of one length lie
side by side; others as one blob and where each ends. Knows nothing of what the columns mean.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import os
from pathlib import Path
from typing import Any
from typing import BinaryIO
from typing import NamedTuple

import numpy as np

from blip3o_jax import files

Arrays = Mapping[str, np.ndarray]
Meta = dict[str, Any]


class Piece(NamedTuple):
  """Columns of some records that follow each other: what they are, and how each array is got."""

  meta: Meta
  load: Callable[[str], np.ndarray]


def packed(
  columns: Arrays, texts: Mapping[str, Sequence[bytes]], records: int
) -> tuple[Meta, dict[str, np.ndarray]]:
  """What columns are, ready for JSON, and the arrays that stand for them.

  Args:
    columns: fixed-width arrays [records, ...]. texts: byte strings, one a record.
  """
  about: dict[str, Any] = {}
  arrays: dict[str, np.ndarray] = {}
  for name, column in columns.items():
    assert len(column) == records, (name, len(column), records)
    same = records > 0 and bool((column == column[:1]).all())
    arrays[name] = column[:1] if same else column
    about[name] = {"dtype": column.dtype.str, "shape": list(column.shape[1:]), "same": same}
  words: dict[str, Any] = {}
  for name, strings in texts.items():
    assert len(strings) == records, (name, len(strings), records)
    sizes = np.fromiter(map(len, strings), np.int64, records)
    width = int(sizes[0]) if records and (sizes == sizes[0]).all() else -1
    arrays[f"{name}.bytes"] = np.frombuffer(b"".join(strings), np.uint8)
    if width < 0:
      arrays[f"{name}.ends"] = np.cumsum(sizes)
    words[name] = {"bytes": int(sizes.sum()), "width": width}
  return {"records": records, "columns": about, "texts": words}, arrays


def merge(folder: Path, pieces: Sequence[Piece]) -> Meta:
  """Writes pieces one after another as the columns of a folder; returns what they are.

  Raises:
    ValueError: pieces with different columns.
  """
  pieces = [piece for piece in pieces if piece.meta["records"]]
  records = sum(piece.meta["records"] for piece in pieces)
  out: Meta = {"records": records, "columns": {}, "texts": {}}
  if not pieces:
    return out
  for kind in ("columns", "texts"):
    names = {tuple(sorted(piece.meta[kind])) for piece in pieces}
    if len(names) > 1:
      raise ValueError(f"{folder}: files of one set gave different {kind}: {sorted(names)}")
  with contextlib.ExitStack() as stack:
    writers = []
    for name in pieces[0].meta["columns"]:
      out["columns"][name], writer = _column(stack, folder, name, pieces, records)
      writers.append(writer)
    for name in pieces[0].meta["texts"]:
      out["texts"][name], writer = _text(stack, folder, name, pieces, records)
      writers.append(writer)
    for piece in pieces:
      for writer in writers:
        writer(piece)
  return out


def _column(
  stack: contextlib.ExitStack, folder: Path, name: str, pieces: Sequence[Piece], records: int
) -> tuple[Meta, Callable[[Piece], None]]:
  """What a merged column is, and what writes a piece of it."""
  abouts = [piece.meta["columns"][name] for piece in pieces]
  shapes = {tuple(about["shape"]) for about in abouts}
  if len(shapes) > 1:
    raise ValueError(f"{folder}: column {name} has the shapes {sorted(shapes)} in files of one set")
  dtype, shape = np.result_type(*{about["dtype"] for about in abouts}), shapes.pop()
  about = {"dtype": dtype.str, "shape": list(shape), "same": False}
  if all(about["same"] for about in abouts):
    values = np.concatenate([piece.load(name).astype(dtype) for piece in pieces])
    if (values == values[:1]).all():
      np.save(folder / f"{name}.npy", values[:1])
      return about | {"same": True}, lambda piece: None
  stream = stack.enter_context(_npy(folder / f"{name}.npy", dtype, (records, *shape)))

  def write(piece: Piece) -> None:
    wanted = (piece.meta["records"], *shape)
    stream.write(np.broadcast_to(piece.load(name).astype(dtype), wanted).tobytes())

  return about, write


def _text(
  stack: contextlib.ExitStack, folder: Path, name: str, pieces: Sequence[Piece], records: int
) -> tuple[Meta, Callable[[Piece], None]]:
  """What a merged column of byte strings is, and what writes a piece of it."""
  widths = {piece.meta["texts"][name]["width"] for piece in pieces}
  total = sum(piece.meta["texts"][name]["bytes"] for piece in pieces)
  width = widths.pop() if len(widths) == 1 else -1
  stream = stack.enter_context(_npy(folder / f"{name}.bytes.npy", np.dtype(np.uint8), (total,)))
  about = {"bytes": total, "width": width}
  if width >= 0:
    return about, lambda piece: _put(stream, piece.load(f"{name}.bytes"))
  dtype = np.dtype(np.uint32 if total < 2**32 else np.uint64)
  ends = stack.enter_context(_npy(folder / f"{name}.ends.npy", dtype, (records,)))
  before = [0]

  def write(piece: Piece) -> None:
    _put(stream, piece.load(f"{name}.bytes"))
    _put(ends, (before[0] + ends_of(piece, name)).astype(dtype))
    before[0] += piece.meta["texts"][name]["bytes"]

  return about, write


def ends_of(piece: Piece, name: str) -> np.ndarray:
  """int64[records]: where each byte string of a piece ends in its blob."""
  width = piece.meta["texts"][name]["width"]
  if width < 0:
    return piece.load(f"{name}.ends").astype(np.int64)
  return width * np.arange(1, piece.meta["records"] + 1)


def _put(stream: BinaryIO, array: np.ndarray) -> None:
  stream.write(np.ascontiguousarray(array).data)


@contextlib.contextmanager
def _npy(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> Iterator[BinaryIO]:
  """A .npy file whose array is written piece by piece."""
  with open(path, "wb") as stream:
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(stream, header)
    yield stream


def whole_npy(
  path: Path, dtype: np.dtype, shape: tuple[int, ...], parts: Iterator[np.ndarray]
) -> None:
  """Writes a .npy file from parts that follow each other; it is whole or not there."""
  with files.replacing(path, shared=True) as partial, _npy(partial, dtype, shape) as stream:
    for part in parts:
      _put(stream, part.astype(dtype, copy=False))


class Columns:
  """The columns of a folder that `merge` wrote.

  Args:
    folder: of the columns. meta: what `merge` returned.
  """

  def __init__(self, folder: str, meta: Meta):
    self.folder, self.meta = folder, meta
    self._arrays: dict[str, np.ndarray] = {}
    self._views: dict[str, np.ndarray] = {}
    self._offsets: dict[str, int] = {}  # bytes before the array, of a file that is mapped

  def __len__(self) -> int:
    return self.meta["records"]

  def column(self, name: str) -> np.ndarray:
    """[records, ...], not writable, mapped into memory."""
    view = self._views.get(name)
    if view is None:
      if name not in self.meta["columns"]:
        raise KeyError(f"{self.folder}: no column {name}; there are {sorted(self.meta['columns'])}")
      about, view = self.meta["columns"][name], self._array(name)
      if about["same"]:
        view = np.broadcast_to(view, (len(self), *about["shape"]))
      self._views[name] = view
    return view

  def text(self, name: str, record: int) -> bytes:
    """One byte string."""
    width = self.meta["texts"][name]["width"]
    if width >= 0:
      return self._array(f"{name}.bytes")[width * record : width * (record + 1)].tobytes()
    ends = self._array(f"{name}.ends")
    first = int(ends[record - 1]) if record else 0
    return self._array(f"{name}.bytes")[first : int(ends[record])].tobytes()

  def read(self, name: str, first: int, end: int) -> np.ndarray:
    """[end - first, ...] of a column, read into memory of its own: a map would stay resident."""
    column = self.column(name)
    if name not in self._offsets:
      return column[first:end].copy()
    count = (end - first) * (column.size // len(column))
    start = self._offsets[name] + first * column.strides[0]
    path = os.path.join(self.folder, f"{name}.npy")
    return np.fromfile(path, column.dtype, count, offset=start).reshape(-1, *column.shape[1:])

  def piece(self, first: int, end: int) -> Piece:
    """Some records that follow each other, to merge with others."""
    meta: Meta = {"records": end - first, "columns": self.meta["columns"], "texts": {}}
    for name, about in self.meta["texts"].items():
      start, stop = self._span(name, first, end)
      meta["texts"][name] = {"bytes": stop - start, "width": about["width"]}

    def load(name: str) -> np.ndarray:
      if name in self.meta["columns"]:
        return (
          self._array(name) if self.meta["columns"][name]["same"] else self.column(name)[first:end]
        )
      text, _, what = name.rpartition(".")
      start, stop = self._span(text, first, end)
      if what == "bytes":
        return self._array(name)[start:stop]
      return self._array(name)[first:end].astype(np.int64) - start

    return Piece(meta, load)

  def _span(self, name: str, first: int, end: int) -> tuple[int, int]:
    """Where the byte strings of some records begin and end in the blob."""
    width = self.meta["texts"][name]["width"]
    if width >= 0:
      return first * width, end * width
    ends = self._array(f"{name}.ends")
    return tuple(int(ends[i - 1]) if i else 0 for i in (first, end))  # type: ignore[return-value]

  def _array(self, name: str) -> np.ndarray:
    if name not in self._arrays:
      path = os.path.join(self.folder, f"{name}.npy")
      about = self.meta["columns"].get(name)
      blank = name.endswith(".bytes") and not self.meta["texts"][name[:-6]]["bytes"]
      mapped = None if blank or (about and about["same"]) else "r"
      array = np.load(path, mmap_mode=mapped)  # type: ignore[arg-type]
      array.flags.writeable = False
      if isinstance(array, np.memmap):
        self._offsets[name] = array.offset
      # A view of its own kind, as a memmap takes microseconds to look up a row.
      self._arrays[name] = np.asarray(array)
    return self._arrays[name]
