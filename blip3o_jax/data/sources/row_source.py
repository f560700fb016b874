"""A base of sources whose records are rows: of JSON or of parquet, see `rows`."""

import abc
import array
from collections import Counter
from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
from typing import Any

from absl import logging
import numpy as np

from blip3o_jax.data import index as indices
from blip3o_jax.data import storage
from blip3o_jax.data.index import Index
from blip3o_jax.data.index import Scanned
from blip3o_jax.data.index import printable
from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.records import Record
from blip3o_jax.data.sources import rows
from blip3o_jax.data.sources.fields import UNREAD
from blip3o_jax.data.sources.fields import Row
from blip3o_jax.data.sources.pictures import Pictures
from blip3o_jax.data.sources.reading import Reading

UNREADABLE: Any = object()  # stands in `Found` for a row that is known to be damaged


class RowSource(indices.IndexedSource):
  """Records of rows.

  Args:
    path: of the set, for errors.
    index: columns row, the number of the row in its file as errors show it, and turn, the number of
      the record in its row. Records of one row have one key: they stay in one split.
    pictures: those of each file.

  Raises:
    ValueError: no record.
  """

  def __init__(self, path: str, index: Index, reading: Reading, pictures: Sequence[Pictures]):
    super().__init__(index)
    self._reading, self._pictures = reading, pictures
    for file, problem in index.problems.items():
      logging.warning(
        "%s: %s; what is whole of it is used", storage.join(index.home, file), problem
      )
    if not len(index):
      told = indices.told(index.left, {}, index.first) or "nothing in them"
      raise ValueError(f"{path}: no record in {len(index.files)} files; {told}. {self.hint()}")
    if told := index.told():
      logging.warning("%s: %s", path, told)
    # Arrays and no memmaps: those take microseconds to index.
    self._rows, self._turns = (np.asarray(index.column(name)) for name in ("row", "turn"))

  def hint(self) -> str:
    """What to do where there is no record."""
    return "Name the fields in reading.caption and reading.image"

  def name(self, index: int) -> str:
    """`FILE:ROW`, with `/N` for the N-th record of a row after its first."""
    number, _ = self.index.place(index)
    turn = int(self._turns[index])
    further = f"/{turn + 1}" if turn else ""
    return f"{printable(self.index.files[number])}:{int(self._rows[index])}{further}"

  def words(self, index: int, /) -> Record:
    """A record without its pictures; raises BadRecord for a row that is damaged.

    `extra` says how many there are: "pictures", and "inputs" of them.
    """
    made = self._made(index, whole=False)
    if made.record.kind in ("edit", "conversation") and UNREAD in (made.image, *made.inputs):
      made = self._made(index, whole=True)  # how many there are stands with their bytes
    count = len(made.inputs)
    pictures = count + (made.image is not None)
    extra = {**made.record.extra, "pictures": pictures, "inputs": count}
    return dataclasses.replace(made.record, extra=extra)

  def __getitem__(self, index: int, /) -> Record:
    """Reads one record.

    Raises:
      BadRecord: a damaged row, a picture that is not there, a file that was changed.
    """
    made, name = self._made(index, whole=True), self.name(index)
    pictures = self._pictures[self.index.place(index)[0]]
    extra = dict(made.record.extra)
    if made.rejected:
      extra["rejected"] = tuple(pictures.get(each, name) for each in made.rejected)
    return dataclasses.replace(
      made.record,
      image=None if made.image is None else pictures.get(made.image, name),
      inputs=tuple(pictures.get(each, name) for each in made.inputs),
      extra=extra,
    )

  def _made(self, index: int, *, whole: bool) -> rows.Made:
    name = self.name(index)
    number, _ = self.index.place(index)
    try:
      if self.index.changed(number):
        raise indices.stale(name)
      row = self._row(index, number, name, whole)
    except OSError as error:
      raise BadRecord(f"{name}: cannot be read: {error}", "read") from None
    return rows.made(row, int(self._turns[index]), self._reading, name)

  @abc.abstractmethod
  def _row(self, index: int, number: int, name: str, whole: bool) -> Row:
    """A row of a file; without `whole` pictures may be UNREAD. Raises BadRecord or OSError."""


class Found:
  """Gathers the records of a file for its index.

  Args:
    path: of the file. reading: of its rows.
  """

  def __init__(self, path: str, reading: Reading):
    self._file, self._reading = path.rpartition("/")[2], reading
    self._keys: list[bytes] = []
    self._places = array.array("q")  # four a record: tuples would take ten times the memory
    self._left: Counter[str] = Counter()
    self._noted: Counter[str] = Counter()
    self._first: dict[str, str] = {}

  def leave(self, what: str, number: int, count: int = 1) -> None:
    """Counts what is no record, in words, at the row of this number."""
    self._left[what] += count
    self._first.setdefault(what, str(number))

  def add(self, row: Any, number: int, offset: int = 0, size: int = 0) -> None:
    """Adds a row; UNREADABLE for one that is known to be damaged."""
    counted = rows.Counted(1) if row is UNREADABLE else rows.count(row, self._reading)
    if counted.why:
      self.leave(rows.LEFT[counted.why], number)
    self._noted.update(counted.guessed)
    key = rows.key(row, f"{self._file}:{number}")
    for turn in range(counted.records):
      self._keys.append(key)
      self._places.extend((number, turn, offset, size))

  def scanned(self, problem: str = "", names: Iterable[str] = ()) -> Scanned:
    """What `index.opened` asks for: columns row, turn, offset, size, those of them in `names`."""
    table = np.frombuffer(self._places, np.int64).reshape(-1, 4)
    columns = {}
    for name, column in zip(("row", "turn", "offset", "size"), table.T, strict=True):
      wide = column.max(initial=0) >= 2**32
      if name in ("row", "turn", *names):
        columns[name] = column.astype(np.uint64 if wide or name == "offset" else np.uint32)
    return Scanned(
      columns,
      self._keys,
      dict(self._left),
      self._first,
      problem,
      noted=dict(self._noted),
    )


def deciding(reading: Reading) -> list[str]:
  """What of a reading decides the records of rows, for the name of their index."""
  whole = ["whole"] if reading.whole else []
  return [reading.caption, reading.image, reading.inputs, *whole]
