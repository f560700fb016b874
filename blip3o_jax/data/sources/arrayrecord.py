"""A folder that `blip3o pack` wrote, as a source: ArrayRecord files and what its manifest says.

Records are read without the array_record package, see `chunks`.
"""

from collections import Counter
from collections.abc import Mapping
import functools
import json
from typing import Any

from absl import logging
import numpy as np

from blip3o_jax.data import index
from blip3o_jax.data import packed
from blip3o_jax.data import storage
from blip3o_jax.data.index import printable
from blip3o_jax.data.index import stale
from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.records import Record
from blip3o_jax.data.sources import chunks
from blip3o_jax.data.sources.reading import Reading

MANIFEST, ENDING = "manifest.json", ".arrayrecord"
CAPTION = "prompt"
DAMAGED = "records whose header is damaged"


class ArrayRecordSource(index.IndexedSource):
  """The records of a packed set, in the order in which they were packed.

  Its held-out records are those of the set that was packed. `manifest` is what `read_manifest`
  gives: its source, licence, and the encoder of cached features.

  Args:
    path: of the folder, local or an address.

  Raises:
    FileNotFoundError: no such folder, or no manifest in it.
    ValueError: a file that is cut, damaged, not there, or of another kind; with `reading.partial`
      what is whole of it is used.
  """

  def __init__(self, path: str, reading: Reading):
    if reading.caption not in ("", CAPTION):
      raise ValueError(f"{path}: caption {reading.caption!r}: a packed record has {CAPTION!r} only")
    self.manifest = read_manifest(path)
    counts = {shard["file"]: shard["records"] for shard in self.manifest["shards"]}
    files = _there(path, counts, reading.partial)
    scanner = functools.partial(scan, counts=counts)
    layout = f"arrayrecord {packed.VERSION} {index.digest(counts)}"
    super().__init__(index.opened(path, files, scanner, layout=layout, partial=reading.partial))
    # Arrays and no memmaps: those take microseconds to index.
    self._place = np.asarray(self.index.column("place"))
    self._split = np.asarray(self.index.column("split"))
    self._files = [(self.index.path(i), printable(name)) for i, name in enumerate(self.index.files)]

  def hashes(self, first: int, end: int, /) -> np.ndarray:
    """Those of the set that was packed."""
    return np.array(self._split[first:end])

  def __getitem__(self, index: int, /) -> Record:
    """Reads one record; raises BadRecord for a file that was changed, or is damaged."""
    position, size, _ = self._place[index].tolist()
    data, head, end, name = self._read(index, position, size)
    return packed.read(data.data, head, end, name)

  def words(self, index: int, /) -> Record:
    """The record without pictures and features; raises BadRecord as reading it does."""
    position, _, size = self._place[index].tolist()
    _, head, _, name = self._read(index, position, size)
    return packed.texts(head, name)

  def _read(self, index: int, position: int, size: int) -> tuple[np.ndarray, Any, int, str]:
    """The first bytes of a record, its header and where that ends, and its name."""
    number, _ = self.index.place(index)
    path, file = self._files[number]
    try:
      changed = self.index.changed(number)
      data = chunks.read(path, position, size)
    except OSError as error:
      raise BadRecord(f"{self.name(index)}: cannot be read: {error}", "read") from None
    if changed or len(data) < size:
      raise stale(self.name(index))
    try:
      head, end = packed.header(data.data, file)
    except BadRecord as error:
      raise BadRecord(f"{self.name(index)}: {error}", error.kind) from None
    return data, head, end, f"{file}:{printable(head['id'])}"


def read_manifest(path: str) -> dict[str, Any]:
  """The manifest of a packed set, see `packing`.

  Raises:
    FileNotFoundError: no such folder or manifest. ValueError: not one of ours.
  """
  file = storage.join(path, MANIFEST)
  if not storage.isfile(file):
    if not storage.isdir(path):
      raise FileNotFoundError(f"{path}: no such folder")
    raise FileNotFoundError(
      f"{file}: not there. A set that blip3o pack has not finished: run the same command again. "
      "ArrayRecord files of TFDS: name the folder with dataset_info.json, layout tfds"
    )
  try:
    found = json.loads(storage.read(file, 0, storage.stat(file).size))
    layout = (found["layout"], found["version"])
    shards = [(str(shard["file"]), int(shard["records"])) for shard in found["shards"]]
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f"{file}: not the manifest of a packed set: {error!r}") from None
  if layout != (packed.LAYOUT, packed.VERSION) or not shards:
    raise ValueError(
      f"{file}: layout {layout[0]!r}, version {layout[1]!r}, {len(shards)} files; expected "
      f"{packed.LAYOUT!r}, version {packed.VERSION}, 1 or more"
    )
  return found


def _there(path: str, counts: Mapping[str, int], partial: bool) -> list[str]:
  """The files of a set that are there.

  Raises:
    ValueError: not all of them, or with `partial` none.
  """
  there = set(storage.listed(path, ENDING))
  lost = [name for name in counts if name not in there]
  if lost:
    lack = sum(counts[name] for name in lost)
    what = f"{len(lost)} files with {lack} records are not there, such as {lost[0]}"
    if not partial or len(lost) == len(counts):
      raise ValueError(f"{path}: {what}; fetch them")
    logging.warning("%s: %s", path, what)
  if more := sorted(there - set(counts)):
    what = f"{len(more)} files are not in its {MANIFEST}, so not read, such as {more[0]}"
    logging.warning("%s: %s", path, what)
  return [name for name in counts if name in there]


def scan(file: str, counts: Mapping[str, int]) -> index.Scanned:
  """The records of one file, as `index.opened` asks for them.

  Args:
    counts: {file name: records that the manifest says}.

  Returns:
    Columns place int64[n, 3] (of its first byte in the stream of `chunks`, its bytes, bytes of its
    header), split uint32[n] (what the held-out records are chosen by); keys are ids.

  Raises:
    ValueError: a file of another kind.
  """
  places, digests, keys = [], [], []
  left: Counter[str] = Counter()
  first: dict[str, str] = {}
  problem, seen = "", 0
  try:
    for chunk in chunks.walk(file, packed.MAGIC):
      seen += 1
      size = packed.length(chunk.head)
      data = chunk.head
      if size > len(data):
        data = chunks.read(file, chunk.position, min(size, chunk.size)).tobytes()
      try:
        head, end = packed.header(data, "")
      except BadRecord:
        left[DAMAGED] += 1
        first.setdefault(DAMAGED, f"record {seen - 1}")
        continue
      places.append((chunk.position, chunk.size, end))
      digests.append(head["hash"])
      keys.append(head["id"].encode("utf-8", "surrogatepass"))
  except chunks.Cut as error:
    problem = str(error)
  except chunks.Foreign as error:
    raise ValueError(
      f"{file}: {error}; expected records that blip3o pack wrote. Sets that TFDS prepared are read "
      "with layout tfds"
    ) from None
  wanted = counts[file.rpartition("/")[2]]
  if not problem and seen != wanted:
    problem = f"{seen} records, but its {MANIFEST} says {wanted}"
  columns: dict[str, np.ndarray] = {
    "place": np.array(places, np.int64).reshape(-1, 3),
    "split": np.array(digests, np.uint32),
  }
  return index.Scanned(columns, keys, dict(left), first, problem)
