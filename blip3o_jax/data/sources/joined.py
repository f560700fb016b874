"""Pictures in tars whose captions stand in a list: joined by the pictures' names.

A row's name is compared with the names in the tars, the first of these that fits: the whole path;
without the ending; without the folders; without both. A name of several pictures is nobody's.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
import functools
import hashlib
import itertools
import json
from typing import Any

from absl import logging
import numpy as np

from blip3o_jax.data import index as indices
from blip3o_jax.data import storage
from blip3o_jax.data.index import Index
from blip3o_jax.data.index import Scanned
from blip3o_jax.data.sources import archives
from blip3o_jax.data.sources import lists
from blip3o_jax.data.sources import members
from blip3o_jax.data.sources import split
from blip3o_jax.data.sources.archives import BLOCK
from blip3o_jax.data.sources.reading import Reading

NONE, SEVERAL = -1, -2
ALONE = "pictures without a row in the list"


class List:
  """The list of a set: rows that name a picture, and their captions.

  Args:
    path: of the set. reading: caption, joined, join and inputs are read; `joined` is a file of the
      set's folder, or a path or address. write: see `index.opened`.

  Attributes:
    path: of the list. index: its rows, see `lists.scan`. inputs: whether rows name input pictures.

  Raises:
    FileNotFoundError: no such list. ValueError: see `lists.scan`, or no row.
  """

  def __init__(self, path: str, reading: Reading, *, write: bool = True):
    inside = storage.join(path, reading.joined)
    self.path = inside if storage.isfile(inside) else reading.joined
    (caption,) = reading.captions()
    named = lists.Fields(caption, reading.join, reading.inputs)
    folder, slash, name = self.path.rpartition("/")
    self.index = indices.opened(
      folder or slash or ".",
      [name],
      functools.partial(lists.scan, named=named),
      layout=f"list {json.dumps([name, *named])}",
      partial=reading.partial,
      write=write,
    )
    if not len(self.index):
      raise ValueError(
        f"{self.path}: no row that can be used; {self.index.told() or 'it is empty'}"
      )
    self.inputs = bool(self.index.column("inputs")[0])
    self._lines = bool(self.index.column("line")[0] >= 0)
    self._caption = lists.caption_reader(self.path, caption)

  def caption(self, row: int, name: str) -> bytes:
    """The caption of a row, in UTF-8; raises BadRecord naming the record for a changed list."""
    if not self._lines:
      return self.index.text("caption", row)
    offset, size, field = (
      int(self.index.column(column)[row]) for column in ("line", "line_bytes", "caption")
    )
    try:
      if not self.index.changed(0):
        return self._caption(offset, size, field).encode("utf-8", "surrogatepass")
    except (ValueError, KeyError, TypeError, IndexError):
      pass
    raise indices.stale(name, self.path)

  def say(self, records: int) -> None:
    """Says what of the list is not used, and what was chosen."""
    if told := self.index.told():
      logging.warning("%s: %s", self.path, told)
    if records < len(self.index):
      logging.warning("%s: %d rows without a picture", self.path, len(self.index) - records)


def index(
  path: str,
  names: Sequence[str],
  reading: Reading,
  rows: List,
  *,
  write: bool = True,
  workers: int = 0,
) -> Index:
  """The index of tars that are joined to a list.

  Returns:
    Columns as `members.scan` gives them, without texts; row int64[n] of the list; texts inputs, a
    JSON list of [tar, offset, bytes, whether it has holes]. Several rows of a picture are several
    records of one key.
  """
  join = _Join(path, names, reading, rows, write, workers)
  # A place in another tar is as good as that tar: with inputs all are joined anew.
  whole = indices.digest([split.stat(storage.join(path, n)) for n in names]) if rows.inputs else ""
  return indices.opened(
    path,
    names,
    join,
    layout=f"joined {json.dumps([rows.path, *reading.captions(), reading.join, reading.inputs])}",
    partial=True,  # the index of the pictures refuses what is cut
    write=write,
    workers=1,
    stat=functools.partial(_stat, rows.path, whole),
  )


def _stat(path: str, whole: str, tar: str) -> storage.Stat:
  size, stamp = split.stat(tar)
  return storage.Stat(size, f"{stamp} {'-'.join(map(str, storage.stat(path)))} {whole}")


def pictures(path: str) -> Scanned:
  """All pictures of a tar: block, bytes, sparse as `members.scan`; best bool[n], see PICTURES."""
  left: dict[str, int] = {}
  first: dict[str, str] = {}

  def leave(kind: str, name: str) -> None:
    word = members.LEFT[kind]
    left[word] = left.get(word, 0) + 1
    first.setdefault(word, name)

  found = []
  best: dict[str, int] = {}
  walk = archives.Walk(path, leave)
  for name, place, _ in walk:
    key, ending = members.split_name(name, "last")
    if name.rpartition("/")[2].startswith("._"):
      leave("twins", name)
    elif ending in members.PICTURES and key and not place.size:
      leave("empty", name)
    elif ending in members.PICTURES and key:
      rank = members.PICTURES.index(ending)
      best[key] = min(rank, best.get(key, rank))
      found.append((name, key, rank, place))
  columns = {
    "block": np.array([place.offset // BLOCK for *_, place in found], np.int32),
    "bytes": archives.sizes([place.size for *_, place in found]),
    "sparse": np.array([place.sparse for *_, place in found], bool),
    "best": np.array([rank == best[key] for _, key, rank, _ in found], bool),
  }
  keys = [name.encode("utf-8", "surrogateescape") for name, *_ in found]
  return Scanned(columns, keys, left, first, walk.problem)


class _Join:
  """Scans a tar for `index`: all names are compared once, when the first tar is asked for."""

  def __init__(
    self,
    path: str,
    names: Sequence[str],
    reading: Reading,
    rows: List,
    write: bool,
    workers: int,
  ):
    self._rows = rows
    self._open = functools.partial(
      indices.opened,
      path,
      names,
      pictures,
      layout="pictures",
      partial=reading.partial,
      write=write,
      workers=workers,
      stat=split.stat,
    )

  @functools.cached_property
  def _pictures(self) -> Index:
    return self._open()

  @functools.cached_property
  def _numbers(self) -> dict[str, int]:
    return {self._pictures.path(i): i for i in range(len(self._pictures.files))}

  @functools.cached_property
  def _inputs(self) -> dict[int, list[int]]:
    """{row: its input pictures, or what `match` says of them}, of rows that have some."""
    rows = self._rows.index
    if not self._rows.inputs:
      return {}
    names = {i: json.loads(rows.text("inputs", i)) for i in range(len(rows))}
    names = {i: each for i, each in names.items() if each}
    flat = [name.encode("utf-8", "surrogateescape") for each in names.values() for name in each]
    found = iter(match(flat.__getitem__, len(flat), self._pictures).tolist())
    return {i: list(itertools.islice(found, len(each))) for i, each in names.items()}

  @functools.cached_property
  def _matched(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows that have a picture; their pictures, ascending; which pictures are in use, bool."""
    rows, pics = self._rows.index, self._pictures
    of = match(rows.key, len(rows), pics)
    for i, inputs in self._inputs.items():
      of[i] = min(of[i], *inputs) if min(inputs) < 0 else of[i]
    for kind, what in ((NONE, "whose picture is not there"), (SEVERAL, "whose name several have")):
      if count := int(np.count_nonzero(of == kind)):
        example = rows.key(int(np.argmax(of == kind))).decode("utf-8", "backslashreplace")
        text = "%s: %d rows %s, the first %s"
        logging.warning(text, self._rows.path, count, what, indices.printable(example))
    used = np.zeros(len(pics), bool)
    there = np.flatnonzero(of >= 0)
    used[of[there]] = True
    for i, inputs in self._inputs.items():
      if of[i] >= 0:
        used[inputs] = True
    there = there[np.argsort(of[there], kind="stable")]
    return there, of[there], used

  def __call__(self, path: str) -> Scanned:
    pics = self._pictures
    number = self._numbers[path]
    about, _ = pics.file(number)
    begin, end = pics.bounds[number : number + 2].tolist()
    there, of, used = self._matched
    first, last = np.searchsorted(of, [begin, end])
    there, of = there[first:last], of[first:last]
    none = np.full(len(of), -1, np.int32)
    columns = {
      "image_block": pics.column("block")[of],
      "image_bytes": pics.column("bytes")[of],
      "text_block": none,
      "text_bytes": np.zeros(len(of), np.uint32),
      "features_block": none,
      "features_bytes": np.zeros(len(of), np.uint32),
      "sparse": pics.column("sparse")[of].astype(np.uint8),
      "field": np.zeros(len(of), np.uint8),
      "row": there,
    }
    texts = {}
    if self._rows.inputs:
      of_rows = (self._inputs.get(row, []) for row in there.tolist())
      texts["inputs"] = [json.dumps([_place(pics, i) for i in each]).encode() for each in of_rows]
    keys = [_without_ending(pics.key(i)) for i in of.tolist()]
    alone = end - begin - int(np.count_nonzero(used[begin:end]))
    left, example = dict(about["left"]), dict(about["first"])
    if alone:
      left[ALONE] = alone
      index = begin + int(np.argmin(used[begin:end]))
      example[ALONE] = pics.key(index).decode("utf-8", "backslashreplace")
    return Scanned(columns, keys, left, example, about["problem"], texts=texts)


def _place(pics: Index, index: int) -> list[Any]:
  number, _ = pics.place(index)
  block, size, sparse = (pics.column(name)[index] for name in ("block", "bytes", "sparse"))
  return [pics.files[number], int(block) * BLOCK, int(size), bool(sparse)]


def match(name: Callable[[int], bytes], count: int, pics: Index) -> np.ndarray:
  """int64[count]: the picture of each name, NONE, or SEVERAL for a name that more than one has."""
  out = np.full(count, NONE, np.int64)
  left = np.arange(count)
  forms: tuple[tuple[Callable[[bytes], bytes], bool], ...] = (
    (_path, False),
    (lambda name: _without_ending(_path(name)), True),
    (_base, False),
    (lambda name: _without_ending(_base(name)), True),
  )
  best = np.flatnonzero(pics.column("best")) if len(pics) else np.zeros(0, np.int64)
  for form, only in forms:
    if not len(left) or not len(pics):
      break
    numbers = best if only else np.arange(len(pics))
    hashes = _hashes(form(pics.key(i)) for i in numbers.tolist())
    order = np.argsort(hashes, kind="stable")
    hashes, numbers = hashes[order], numbers[order]
    asked = _hashes(form(name(i)) for i in left.tolist())
    first = np.searchsorted(hashes, asked)
    many = np.searchsorted(hashes, asked, side="right") - first
    out[left[many > 1]] = SEVERAL
    out[left[many == 1]] = numbers[first[many == 1]]
    left = left[many == 0]
  return out


def _hashes(names: Iterable[bytes]) -> np.ndarray:
  """uint64[k]; of 50 million names two are equal by chance once in ten thousand sets."""
  return np.frombuffer(
    b"".join(hashlib.blake2b(name, digest_size=8).digest() for name in names), "<u8"
  )


def _path(name: bytes) -> bytes:
  return name.removeprefix(b"./").lstrip(b"/")


def _base(name: bytes) -> bytes:
  return name.rpartition(b"/")[2]


def _without_ending(name: bytes) -> bytes:
  """A name without the ending of a picture, where it has one."""
  stem, _, ending = name.rpartition(b".")
  return stem if stem and ending.lower().decode("latin-1") in members.PICTURES else name
