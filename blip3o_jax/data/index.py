"""The index of a set: where each record lies, in columns on disk that are mapped into memory.

An index is made once, file by file (see `indexing`), and kept in `.blip3o` of the set's folder, or
in a cache folder where that cannot be written. Knows no file format and no model.
"""

import abc
import bisect
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import hashlib
import json
import os
from pathlib import Path
import shutil
from typing import Any
from typing import NamedTuple

from absl import logging
import numpy as np

from blip3o_jax.data import counting
from blip3o_jax.data import storage
from blip3o_jax.data.columns import Columns
from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.records import Part
from blip3o_jax.data.records import Record

MEMORY = "index.json"
VERSION = 1
Stat = Callable[[str], storage.Stat]


class Scanned(NamedTuple):
  """What one file of a set holds.

  Fields:
    columns: of fixed width, [records, ...] each; the same names and kinds for every file.
    keys: the id of each record inside its file.
    left: what is no record, in words -> how much of it. first: an example of each of the words.
    problem: what is wrong with the file (it is cut, damaged), or "".
    noted: what is to be said of the records themselves, as `left`.
    texts: byte strings, one a record each.
    fingerprint: of the records, for `Part`; by default of the keys and all columns.
  """

  columns: Mapping[str, np.ndarray]
  keys: Sequence[bytes]
  left: Mapping[str, int]
  first: Mapping[str, str]
  problem: str = ""
  noted: Mapping[str, int] = {}
  texts: Mapping[str, Sequence[bytes]] = {}
  fingerprint: str = ""


class Index:
  """The records of a set in the order of its files. Thread-safe; small to send to a process.

  Args:
    home: of the set, a folder or an address. folder: where the index lies. stat: of a file. keep:
      what a temporary folder lives as long as.

  Attributes:
    files: their names, relative to home. bounds: int64[m + 1], where the records of each begin.
    left, noted: see `Scanned`, of all files. first: an example of each, as it was found.
    problems: {file: what is wrong with it} of those that were indexed in part.
  """

  def __init__(self, home: str, folder: str, stat: Stat = storage.stat, keep: Any = None):
    self.home, self.folder = home, folder
    self._stat_of, self._keep = stat, keep
    memory = json.loads(Path(folder, MEMORY).read_text(encoding="utf-8"))
    for name, size in memory["sizes"].items():
      if (found := Path(folder, name).stat().st_size) != size:
        raise ValueError(f"{name} has {found} bytes, expected {size}")
    self._columns = Columns(folder, memory["columns"])
    self._about = memory["files"]
    self.files: list[str] = [about["name"] for about in self._about]
    self.bounds = np.cumsum([0, *(about["records"] for about in self._about)], dtype=np.int64)
    self._bounds: list[int] = self.bounds.tolist()
    self._stats = [storage.Stat(about["size"], about["stamp"]) for about in self._about]
    self.left, self.noted = (_sums(self._about, name) for name in ("left", "noted"))
    self.first = {
      word: of for about in reversed(self._about) for word, of in about["first"].items()
    }
    self.problems = {about["name"]: about["problem"] for about in self._about if about["problem"]}

  def __reduce__(self) -> tuple[Any, ...]:
    return Index, (self.home, self.folder, self._stat_of)

  def __len__(self) -> int:
    return self._bounds[-1]

  def column(self, name: str) -> np.ndarray:
    """[n, ...], mapped into memory; of what is the same for all records a view of one row."""
    return self._columns.column(name)

  def text(self, name: str, index: int) -> bytes:
    """The byte string of a record in one of `Scanned.texts`."""
    return self._columns.text(name, index)

  def key(self, index: int) -> bytes:
    """The id of a record inside its file."""
    return self._columns.text("key", index)

  def place(self, index: int) -> tuple[int, int]:
    """(number of the file, record in it).

    Raises:
      IndexError: no such record.
    """
    if not 0 <= index < len(self):
      raise IndexError(f"{self.home}: record {index} of {len(self)}")
    number = bisect.bisect_right(self._bounds, index) - 1
    return number, index - self._bounds[number]

  def hashes(self, first: int, end: int) -> np.ndarray:
    """uint32[end - first]: the CRC-32 of each record's key, which no other record changes."""
    return self._columns.read("hash", first, end) if end > first else np.zeros(0, np.uint32)

  def parts(self) -> list[Part]:
    """The files, by what their records are called and where they lie."""
    return [Part(about["name"], about["records"], about["fingerprint"]) for about in self._about]

  def path(self, number: int) -> str:
    """Of a file."""
    return storage.join(self.home, self.files[number])

  def changed(self, number: int) -> bool:
    """Whether a file is another one than was indexed; raises OSError where it is gone."""
    return self._stat_of(self.path(number)) != self._stats[number]

  def lengths(self, name: str, count: Callable[[int], int]) -> np.ndarray:
    """uint16[n], `count` of each record's number, at most 65535: stored beside the index.

    Args:
      name: of what is counted, with everything that decides it. What was counted under it is not
        counted again, also of an earlier index, where the records of a file are the same.
    """
    spare = spare_folder(self.home)
    return counting.lengths(Path(self.folder), self.parts(), self._stats, name, count, spare)

  def told(self) -> str:
    """What was left out and what is to be noted, in words; "" where there is nothing to say."""
    return told(self.left, self.noted, {})

  def whole(self) -> "Index":
    """Itself; raises ValueError where it was made of files that are cut short."""
    refuse_cut(self.home, self._about)
    return self

  def file(self, number: int) -> tuple[dict[str, Any], Any]:
    """What is known of a file, and its records as a piece; for `indexing`."""
    first, end = self._bounds[number : number + 2]
    return self._about[number], self._columns.piece(first, end)


def stale(name: str, what: str = "the file", where: str = "") -> BadRecord:
  """Of a record whose file is not the one that was indexed any more."""
  return BadRecord(f"{name}: {what} was changed while in use{where}; start the run again", "read")


class IndexedSource(abc.ABC):
  """A base of sources that have an index; what a record is stands in `words` and `__getitem__`."""

  def __init__(self, index: Index):
    self.index = index

  def __len__(self) -> int:
    return len(self.index)

  @abc.abstractmethod
  def __getitem__(self, index: int, /) -> Record: ...

  @abc.abstractmethod
  def words(self, index: int, /) -> Record:
    """A record without pictures and features."""

  def lengths(self, name: str, count: Callable[[Record], int], /) -> np.ndarray:
    """uint16[n], see `records.Source`."""

    def tokens(index: int) -> int:
      try:
        return count(self.words(index))
      except BadRecord:
        return 0

    return self.index.lengths(name, tokens)

  def hashes(self, first: int, end: int, /) -> np.ndarray:
    """uint32[end - first], see `Index.hashes`."""
    return self.index.hashes(first, end)

  def parts(self) -> list[Part]:
    """The files of the set."""
    return self.index.parts()

  def name(self, index: int) -> str:
    """`FILE:KEY`, what cannot be printed as escapes."""
    number, _ = self.index.place(index)
    key = self.index.key(index).decode("utf-8", "backslashreplace")
    return f"{printable(self.index.files[number])}:{printable(key)}"


@dataclasses.dataclass(frozen=True)
class Folder:
  """Where the indices of one layout of one set lie, a folder for each state of its files."""

  home: str
  path: Path

  def find(self, state: str, stat: Stat) -> Index | None:
    """The index of this state of the files, where it is there."""
    return self._read(self.path / state, stat)

  def others(self, stat: Stat) -> Iterator[Index]:
    """Indices of other states, the latest first."""
    for folder in generations(self.path):
      if index := self._read(folder, stat):
        yield index

  def _read(self, folder: Path, stat: Stat) -> Index | None:
    """An index, or None where it is absent or damaged: it is made again."""
    try:
      return Index(self.home, str(folder), stat)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
      return None
    except (ValueError, KeyError, TypeError) as error:  # other errors are the disk's, and raised
      logging.warning("%s: not readable (%s), it is made again", folder, error)
      shutil.rmtree(folder, ignore_errors=True)
      return None


def generations(path: Path) -> list[Path]:
  """The folders of whole indices in a folder, the latest first."""
  found = []
  for memory in path.glob(f"[!.]*/{MEMORY}"):
    try:
      found.append((memory.stat().st_mtime_ns, memory.parent))
    except FileNotFoundError:  # removed meanwhile
      continue
  return [folder for _, folder in sorted(found, reverse=True)]


def opened(
  home: str,
  files: Sequence[str],
  scan: Callable[[str], Scanned],
  *,
  layout: str,
  partial: bool = False,
  write: bool = True,
  workers: int = 0,
  stat: Stat = storage.stat,
) -> Index:
  """The index of a set; only files that are new or changed are scanned.

  Args:
    home: folder of the set, local or an address. files: names relative to it, in order.
    scan: what a file holds, given its path; can be sent to another process.
    layout: names the layout and every option that decides the records, and the file where the set
      is one of several in its folder: what differs in it has an index of its own. Its first word
      names the folder.
    partial: accept files that are cut short, with their whole records.
    write: off keeps the index in a temporary folder that goes with it.
    workers: processes, or threads for addresses; 0 chooses, 1 scans here.
    stat: size and stamp of a file, given its path.

  Raises:
    FileNotFoundError: a file that is not there.
    ValueError: a file that is cut or damaged; what `scan` raises.
  """
  from blip3o_jax.data import indexing

  stats = indexing.stats_of(home, files, stat)
  state = digest(stats)
  places = [Folder(home, path) for path in folders(home, layout)]
  for place in places:
    if index := place.find(state, stat):
      return index if partial else index.whole()
  old = next((index for place in places for index in place.others(stat)), None)
  work = indexing.Work(home, scan, stats, partial, workers)
  folder, keep = indexing.home_for(places, write)
  indexing.make(work, folder, state, old)
  made = Index(home, str(folder / state), stat, keep)
  return made if partial else made.whole()


def refuse_cut(home: str, files: Sequence[Mapping[str, Any]]) -> None:
  """Raises ValueError for files of which not all is whole, by the first of them."""
  cut = [about for about in files if about["problem"]]
  if cut:
    others = f" So are {len(cut) - 1} more, the next {cut[1]['name']}." if len(cut) > 1 else ""
    raise ValueError(
      f"{storage.join(home, cut[0]['name'])}: {cut[0]['problem']}; {cut[0]['records']} records are "
      f"whole.{others} Fetch it again, or accept them with reading.partial (--partial)"
    )


def folders(home: str, layout: str) -> list[Path]:
  """Where the index of a set may lie, the best first."""
  words = layout.split() or ["set"]
  name = f"{''.join(c if c.isalnum() else '-' for c in words[0])[:24]}-{digest(VERSION, layout)}"
  beside = [] if storage.is_remote(home) else [Path(home, ".blip3o")]
  return [folder / name for folder in (*beside, spare_folder(home))]


def spare_folder(home: str) -> Path:
  """Of the user's cache, for what belongs beside a set that cannot be written."""
  cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
  address = home if storage.is_remote(home) else os.path.abspath(home)
  return cache / "blip3o" / "indices" / digest(address.rstrip("/"))


def digest(*values: Any) -> str:
  """Sixteen letters that stand for values which JSON can hold."""
  text = json.dumps(values, ensure_ascii=True)
  return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def told(left: Mapping[str, int], noted: Mapping[str, int], first: Mapping[str, str]) -> str:
  """What was counted, in words; "" for nothing. first: an example of each."""

  def words(counts: Mapping[str, int]) -> list[str]:
    return [
      f"{count} {what}" + (f", the first {printable(first[what])}" if what in first else "")
      for what, count in counts.items()
      if count
    ]

  out = [f"left out: {'; '.join(words(left))}"] if any(left.values()) else []
  return ". ".join(out + words(noted))


def printable(name: str) -> str:
  """A name with what cannot be printed as escapes."""
  if name.isprintable():
    return name
  return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def _sums(files: Sequence[Mapping[str, Any]], name: str) -> dict[str, int]:
  out: dict[str, int] = {}
  for about in files:
    for word, count in about[name].items():
      out[word] = out.get(word, 0) + count
  return out
