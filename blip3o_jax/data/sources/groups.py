"""Parquet files as rows: which columns are read, and row groups that are kept for a while.

A row group is read whole, so reading rows at random over a set whose groups are large reads each
group again and again: shuffle in windows (`Data.window`) there. What was read last is kept.
"""

from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Sequence
from concurrent.futures import Future
import threading
from typing import Any
from typing import NamedTuple

import numpy as np

from blip3o_jax.data import storage
from blip3o_jax.data.sources.fields import UNREAD

BYTES = 2**28  # of row groups that are kept
ROWS = 2**16  # whose texts are kept
LOADS = 2  # row groups that are read at a time: a group may take a gigabyte
FILES = 64  # tables of contents that are kept
MAGIC = b"PAR1"
_LIGHT = ("STRING", "JSON", "ENUM", "UUID")


class Damaged(Exception):
  """A file, or a row group, that cannot be read; the message says why."""


class Table(NamedTuple):
  """What a file says of itself.

  Fields:
    meta: pyarrow's. types: {top-level column: its type}. words, all: leaves to read for the texts
      of rows, and for all that rows are made of. starts: int64[groups + 1], their first rows.
  """

  meta: Any
  types: dict[str, Any]
  words: list[str]
  all: list[str]
  starts: np.ndarray


def pyarrow_parquet() -> Any:
  """The module pyarrow.parquet; raises ValueError where it is not installed."""
  try:
    from pyarrow import parquet
  except ImportError:
    raise ValueError("reading parquet needs pyarrow: pip install blip3o-jax[parquet]") from None
  return parquet


def table_of(path: str, wanted: Sequence[str], texts: Sequence[str] = ()) -> Table:
  """What a file holds of the top-level columns `wanted`.

  Args:
    texts: columns of bytes that are texts, and are read with them.

  Raises:
    Damaged: a file that is cut. ValueError: pyarrow is not installed.
  """
  parquet = pyarrow_parquet()
  with opened(path) as source:
    try:
      file = parquet.ParquetFile(source)
    except (OSError, ValueError) as error:  # pyarrow's errors are of these
      if isinstance(error, FileNotFoundError):
        raise
      raise Damaged(str(error)) from None
    meta, schema = file.metadata, file.schema_arrow
    leaves = [file.schema.column(i) for i in range(len(file.schema))]
  types = {field.name: field.type for field in schema}
  words, every = [], []
  for leaf in leaves:
    top = next((n for n in types if leaf.path == n or leaf.path.startswith(f"{n}.")), None)
    if top not in wanted:
      continue
    every.append(leaf.path)
    light = leaf.physical_type not in ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")
    if light or leaf.logical_type.type in _LIGHT or top in texts:
      words.append(leaf.path)
  counts = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
  used = {name: kind for name, kind in types.items() if name in wanted}
  return Table(meta, used, words, every, np.cumsum([0, *counts], dtype=np.int64))


def read_group(path: str, table: Table, group: int, leaves: Sequence[str]) -> Any:
  """Some leaves of a row group, as pyarrow's table; raises Damaged."""
  with opened(path) as source:
    try:
      remote = storage.is_remote(path)
      file = pyarrow_parquet().ParquetFile(source, metadata=table.meta, pre_buffer=remote)
      return file.read_row_group(group, columns=list(leaves), use_threads=False)
    except (OSError, ValueError) as error:
      if isinstance(error, FileNotFoundError):
        raise
      raise Damaged(str(error)) from None


def rows_of(part: Any, table: Table) -> list[dict[str, Any]]:
  """Rows of pyarrow's table as dicts; columns of bytes that were not read are UNREAD."""
  # Without columns pyarrow gives no rows at all.
  found = part.to_pylist() if part.num_columns else [{} for _ in range(part.num_rows)]
  return [{name: _filled(row, name, kind) for name, kind in table.types.items()} for row in found]


def _filled(row: dict[str, Any], name: str, kind: Any) -> Any:
  return _with_unread(row[name], kind) if name in row else UNREAD


def _with_unread(value: Any, kind: Any) -> Any:
  """A value with UNREAD for each field of a struct that was not read."""
  if value is None:
    return None
  # pyarrow's types: a struct has fields, a list one type of values.
  if isinstance(value, dict):
    fields = [kind.field(i) for i in range(kind.num_fields)]
    return {f.name: _filled(value, f.name, f.type) for f in fields}
  if isinstance(value, list) and kind.value_type.num_fields:
    return [_with_unread(each, kind.value_type) for each in value]
  return value


def opened(path: str) -> Any:
  """Local files through pyarrow, which reads without Python's lock; addresses as streams."""
  if storage.is_remote(path):
    return storage.opened(path)
  import pyarrow

  return pyarrow.OSFile(path)


class Kept:
  """What was made of keys, the last used of it, up to a number of bytes; each is made once.

  Args:
    most: of the sum of sizes; the last one is kept whatever its size. size: of a value.
    together: how many are made at a time.
  """

  def __init__(self, most: int, size: Callable[[Any], int], together: int = LOADS):
    self._most, self._size = most, size
    self._values: OrderedDict[Any, Future[Any]] = OrderedDict()
    self._bytes: dict[Any, int] = {}
    self._lock = threading.Lock()
    self._gate = threading.Semaphore(together)

  def get(self, key: Any, make: Callable[[], Any]) -> Any:
    """The value of a key, which `make` gives; what it raises goes to everybody who waits."""
    with self._lock:
      future = self._values.get(key)
      mine = future is None
      if future is None:
        future = self._values[key] = Future()
      self._values.move_to_end(key)
    if not mine:
      return future.result()
    try:
      with self._gate:
        value = make()
    except BaseException as error:
      with self._lock:
        self._values.pop(key, None)
      future.set_exception(error)
      raise
    with self._lock:
      self._bytes[key] = self._size(value)
      for old in [k for k in self._values if k in self._bytes and k != key]:
        if sum(self._bytes.values()) <= self._most:
          break
        del self._values[old], self._bytes[old]
    future.set_result(value)
    return value
