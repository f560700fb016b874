"""Parquet tables as a source: pictures in columns of bytes, or named by columns of text.

A picture is Hugging Face's struct {bytes, path}, plain bytes, or a name; or a list of them. The
index is made of the texts alone; row groups are read when a record of them is, see `groups`.
"""

from collections.abc import Sequence
import functools
import json
import re
from typing import Any

from absl import logging
import numpy as np

from blip3o_jax.data import index as indices
from blip3o_jax.data import storage
from blip3o_jax.data.index import Scanned
from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.sources import groups
from blip3o_jax.data.sources import row_source
from blip3o_jax.data.sources import rows
from blip3o_jax.data.sources.fields import Row
from blip3o_jax.data.sources.groups import Table
from blip3o_jax.data.sources.pictures import Pictures
from blip3o_jax.data.sources.pictures import folder_of
from blip3o_jax.data.sources.reading import Reading
from blip3o_jax.files import stranger

ENDING = ".parquet"
SPLITS = ("train", "validation", "valid", "val", "test", "dev", "eval")
CUT = "truncated or damaged; nothing of it can be read, as parquet keeps its table at the end"
GROUP = "rows of damaged row groups"
_SPLIT = re.compile(r"(?P<split>.+?)-\d+-of-\d+(?:-[0-9a-f]+)?")
_ROWS = 1024  # that are made Python's at a time


class ParquetSource(row_source.RowSource):
  """The rows of the parquet files of a folder, in the order of file names and of rows.

  Args:
    path: a file, or a folder; where it holds no `*.parquet`, those in the folders in it (`data/`).
    reading: caption, image, inputs, images, split and partial are read. images is the folder of
      pictures that columns name. With `partial`, files that are cut are left out.
    write, workers: see `index.opened`.

  Raises:
    FileNotFoundError: no such file or folder, no parquet in it.
    ValueError: several splits and none named, a file that is cut, no record, no pyarrow.
  """

  def __init__(self, path: str, reading: Reading, *, write: bool = True, workers: int = 0):
    groups.pyarrow_parquet()
    home, files = _files(path, reading.split)
    one = files if storage.isfile(path) else [reading.split]
    index = indices.opened(
      home,
      files,
      functools.partial(scan, reading=reading),
      layout=f"parquet 1 {json.dumps([*row_source.deciding(reading), *one])}",
      partial=reading.partial,
      write=write,
      workers=workers,
    )
    if index.problems:
      logging.warning("%s: %d of %d files left out", path, len(index.problems), len(files))
    pictures = Pictures(folder_of(reading.images, home), partial=reading.partial, write=write)
    self._wanted = wanted(reading)
    self._tables = groups.Kept(groups.FILES, lambda table: 1)
    self._groups = groups.Kept(groups.BYTES, lambda part: part.nbytes)
    # Rows of texts as Python has them: making one of a table takes long, a thousand hardly longer.
    self._texts = groups.Kept(groups.ROWS, len)
    super().__init__(path, index, reading, [pictures] * len(files))

  def hint(self) -> str:
    """The columns that there are."""
    number = next((i for i, f in enumerate(self.index.files) if f not in self.index.problems), None)
    if number is None:
      return "Fetch them again"
    with groups.opened(self.index.path(number)) as source:
      names = groups.pyarrow_parquet().ParquetFile(source).schema_arrow.names
    return f"The columns are {', '.join(names)}; name them in reading.caption and reading.image"

  def _row(self, index: int, number: int, name: str, whole: bool) -> Row:
    path, row = self.index.path(number), int(self._rows[index])
    try:
      table: Table = self._tables.get(number, lambda: groups.table_of(path, *self._wanted))
      group = int(np.searchsorted(table.starts, row, side="right")) - 1
      inside = row - int(table.starts[group])
      if whole:
        part = self._groups.get(
          (number, group), lambda: groups.read_group(path, table, group, table.all)
        )
        (found,) = _python(part.slice(inside, 1), table)
      else:
        found = self._texts.get((number, group), lambda: _texts(path, table, group))[inside]
    except groups.Damaged as error:
      raise BadRecord(f"{name}: cannot be read: {error}", "read") from None
    if found is row_source.UNREADABLE:
      raise BadRecord(f"{name}: a text is not UTF-8", "text")
    return found


def wanted(reading: Reading) -> tuple[list[str], list[str]]:
  """Columns that records are made of; and those that are texts though they may be bytes."""
  named = [*reading.captions(), reading.image, reading.inputs]
  tops = {part for name in named for part in (name, name.partition(".")[0]) if part}
  texts = [part for name in reading.captions() for part in (name, name.partition(".")[0]) if part]
  return sorted(rows.FIELDS | tops), texts


def scan(path: str, *, reading: Reading) -> Scanned:
  """The rows of a file, as `index.opened` asks for them; pictures are not read.

  Returns:
    Columns row uint32[n], from 0, and turn uint32[n].

  Raises:
    ValueError: a file of another kind.
  """
  found = row_source.Found(path, reading)
  _check_kind(path)
  try:
    table = groups.table_of(path, *wanted(reading))
  except groups.Damaged as error:
    return found.scanned(f"{CUT} ({error})")
  for group in range(len(table.starts) - 1):
    number, end = table.starts[group : group + 2].tolist()
    try:
      part = groups.read_group(path, table, group, table.words)
    except groups.Damaged:
      found.leave(GROUP, number, end - number)
      continue
    while number < end:
      few = part.slice(number - int(table.starts[group]), _ROWS)
      for row in _python(few, table):
        found.add(row, number)
        number += 1
  return found.scanned()


def _texts(path: str, table: Table, group: int) -> list[Any]:
  """The rows of a row group without its pictures."""
  return _python(groups.read_group(path, table, group, table.words), table)


def _python(part: Any, table: Table) -> list[Any]:
  """Rows; UNREADABLE for one with a text that is not UTF-8."""
  try:
    return list(groups.rows_of(part, table))
  except UnicodeDecodeError:
    out: list[Any] = []
    for i in range(len(part)):
      try:
        out += groups.rows_of(part.slice(i, 1), table)
      except UnicodeDecodeError:
        out.append(row_source.UNREADABLE)
    return out


def _check_kind(path: str) -> None:
  head = storage.read(path, 0, 400)
  if not head:
    raise ValueError(f"{path}: it is empty. Fetch it again")
  if what := stranger(head):
    raise ValueError(f"{path}: {what}")
  if not head.startswith(groups.MAGIC):
    raise ValueError(f"{path}: no parquet file: it begins with {head[:8]!r}. Fetch it again")


def split_of(name: str) -> str:
  """The split that a file's name is of, or "": train-00000-of-00010.parquet, train/0000.parquet."""
  *folders, base = name.split("/")
  stem = base[: -len(ENDING)]
  if match := _SPLIT.fullmatch(stem):
    return match["split"]
  if stem in SPLITS:
    return stem
  return next((folder for folder in reversed(folders) if folder in SPLITS), "")


def _files(path: str, split: str) -> tuple[str, list[str]]:
  """(folder of the set, its files).

  Raises:
    FileNotFoundError: none. ValueError: several splits, none or another one named.
  """
  if storage.isfile(path):
    folder, slash, name = path.rpartition("/")
    return folder or slash or ".", [name]
  names = storage.listed(path, ENDING) or storage.listed(path, ENDING, recursive=True)
  if not names:
    raise FileNotFoundError(f"{path}: no *{ENDING} in it, nor in the folders in it")
  splits: Sequence[str] = sorted({split_of(name) for name in names} - {""})
  if split:
    found = [name for name in names if split_of(name) == split]
    if not found:
      there = ", ".join(splits) or "none"
      raise ValueError(f"{path}: no file of the split {split!r}; splits are {there}")
    return path, found
  if len(splits) > 1 and set(splits) & set(SPLITS):
    raise ValueError(
      f"{path}: its files are of the splits {', '.join(splits)}; name one in reading.split"
    )
  return path, names
