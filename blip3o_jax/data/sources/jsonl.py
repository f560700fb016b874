"""Lists of rows in JSON, whose pictures lie in a folder or in tars: JSONL, JSON lists, data.txt.

The index holds where each row lies in its file; a row is read, and parsed, when it is asked for.
"""

from collections.abc import Iterator
import functools
import json
import os
from typing import Any
from typing import BinaryIO

from absl import logging
import numpy as np

from blip3o_jax.data import index as indices
from blip3o_jax.data import storage
from blip3o_jax.data.index import Scanned
from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.sources import row_source
from blip3o_jax.data.sources.fields import Row
from blip3o_jax.data.sources.pictures import Pictures
from blip3o_jax.data.sources.pictures import folder_of
from blip3o_jax.data.sources.reading import Reading
from blip3o_jax.data.sources.row_source import UNREADABLE
from blip3o_jax.files import stranger

LINES, LIST, LISTS = (".jsonl", ".ndjson"), ".json", ".txt"
NO_JSON = "lines that are no JSON"
_BOM, _CHUNK = b"\xef\xbb\xbf", 2**20
_FOREIGN = {
  b"\x1f\x8b": "gzip: undo it with `gunzip`",
  b"\x28\xb5\x2f\xfd": "zstd: undo it with `zstd -d`",
  b"\xff\xfe": "UTF-16: save it as UTF-8",
  b"\xfe\xff": "UTF-16: save it as UTF-8",
  b"PAR1": "parquet: give it the ending .parquet",
}


class JsonlSource(row_source.RowSource):
  """The rows of a list, or of all lists of a folder, in the order of file names and of rows.

  Args:
    path: a folder, local or an address; a file `.jsonl`, `.ndjson` or `.json`, told apart by what
      is in it: a JSON list, or an object a line; or `data.txt`, whose lines are
      `FOLDER OF PICTURES,LIST,FLAG`, as GPT-Image-Edit has it.
    reading: caption, image, inputs, images and partial are read.
    write, workers: see `index.opened`.

  Raises:
    FileNotFoundError: no such file or folder, no list in it, no folder of pictures.
    ValueError: a file of another kind, a JSON list that is cut (unless `reading.partial`), no
      record.
  """

  def __init__(self, path: str, reading: Reading, *, write: bool = True, workers: int = 0):
    home, files, folders = _files(path, reading)
    alone = [] if storage.isdir(path) else files
    index = indices.opened(
      home,
      files,
      functools.partial(scan, reading=reading),
      layout=f"jsonl 1 {json.dumps([*row_source.deciding(reading), *alone])}",
      partial=reading.partial,
      write=write,
      workers=workers,
    )
    made = {
      folder: Pictures(folder, partial=reading.partial, write=write) for folder in set(folders)
    }
    super().__init__(path, index, reading, [made[folder] for folder in folders])
    self._offsets, self._sizes = (np.asarray(index.column(name)) for name in ("offset", "size"))

  def hint(self) -> str:
    """The fields that there are."""
    head = storage.read(self.index.path(0), 0, 1 << 16).decode("utf-8", "replace")
    try:
      row, _ = json.JSONDecoder().raw_decode(head.lstrip("\ufeff[ \r\n\t"))
    except ValueError:
      return super().hint()
    fields = ", ".join(row) if isinstance(row, dict) else "none"
    return f"The fields of the first row are {fields}; name them in reading.caption, reading.image"

  def _row(self, index: int, number: int, name: str, whole: bool) -> Row:
    offset, size = int(self._offsets[index]), int(self._sizes[index])
    data = storage.read(self.index.path(number), offset, size)
    try:
      return json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
      raise BadRecord(f"{name}: the row is not UTF-8: {error}", "text") from None
    except ValueError as error:
      raise BadRecord(f"{name}: the row is no JSON: {error}", "read") from None


def lists(names: list[str]) -> list[str]:
  """Those of the files of a folder that are lists: JSONL, or else JSON."""
  found = [name for name in names if name.lower().endswith(LINES)]
  return found or [name for name in names if name.lower().endswith(LIST)]


def _files(path: str, reading: Reading) -> tuple[str, list[str], list[str]]:
  """(folder of the set, its lists, the folder of each one's pictures)."""
  if storage.isfile(path):
    folder, slash, name = path.rpartition("/")
    home = folder or slash or "."
    if name.lower().endswith(LISTS):
      return home, *_list_of_lists(path, home)
    return home, [name], [folder_of(reading.images, home)]
  names = storage.listed(path)
  found = lists(names)
  if not found and "data.txt" in names:
    return path, *_list_of_lists(storage.join(path, "data.txt"), path)
  if not found:
    below = lists(storage.listed(path, recursive=True))
    hint = f"; name the folder that holds them, such as that of {below[0]}" if below else ""
    raise FileNotFoundError(f"{path}: no *.jsonl, *.ndjson or *.json in it{hint}")
  folder = folder_of(reading.images, path)
  return path, found, [folder] * len(found)


def _list_of_lists(path: str, home: str) -> tuple[list[str], list[str]]:
  """The lists that `data.txt` names, and the folders of their pictures."""
  files: list[str] = []
  folders = []
  text = storage.read(path, 0, storage.stat(path).size).decode("utf-8-sig", "surrogateescape")
  weighted = False
  for number, line in enumerate(text.splitlines(), 1):
    if not line.strip():
      continue
    parts = [part.strip() for part in line.split(",")]
    if len(parts) not in (2, 3) or not all(parts[:2]):
      raise ValueError(f"{path}:{number}: expected FOLDER OF PICTURES,LIST,FLAG, found {line!r}")
    inside = storage.join(home, parts[1])
    found = next((f for f in (inside, parts[1]) if storage.isfile(f)), None)
    if found is None:
      raise FileNotFoundError(f"{path}:{number}: no list {inside}, and none {parts[1]}")
    # Names are relative to home, or whole paths.
    files.append(parts[1] if found == inside else os.path.abspath(found))
    folders.append(folder_of(parts[0], home))
    weighted |= parts[2:] not in ([], ["false"], ["False"])
  if len(set(files)) < len(files):
    raise ValueError(f"{path}: {max(files, key=files.count)} is named twice")
  if weighted:
    logging.warning("%s: its third column, weights of regions, is not read", path)
  return files, folders


def scan(path: str, *, reading: Reading) -> Scanned:
  """The rows of a list, as `index.opened` asks for them.

  Returns:
    Columns row uint32[n], the number of the line or of the list's element, from 1; turn uint32[n];
    offset uint64[n] and size uint32[n] of the row in the file. A row that is not UTF-8 is a damaged
    record, a line that is no JSON none.

  Raises:
    ValueError: a file of another kind.
  """
  found, problem = row_source.Found(path, reading), ""
  with storage.opened(path) as stream:
    head = stream.read(4096)
    _check_kind(path, head)
    start = len(_BOM) if head.startswith(_BOM) else 0
    stream.seek(start)
    if head[start:].lstrip()[:1] != b"[":
      places = _lines(stream, start)
      for number, offset, line in places:
        row = _parsed(line)
        if row is None:
          found.leave(NO_JSON, number)
        else:
          found.add(row, number, offset, len(line))
    else:
      try:
        for number, offset, element in _elements(stream, start):
          found.add(_parsed(element), number, offset, len(element))
      except _Cut as error:
        problem = str(error)
  return found.scanned(problem, ("offset", "size"))


def _check_kind(path: str, head: bytes) -> None:
  if not head:
    raise ValueError(f"{path}: it is empty. Fetch it again")
  what = stranger(head) or next((t for m, t in _FOREIGN.items() if head.startswith(m)), "")
  if what:
    raise ValueError(f"{path}: no list but {what}")


def _parsed(data: bytes) -> Any:
  """A row, UNREADABLE where it is not UTF-8, None where it is no JSON (a null is no row either)."""
  try:
    return json.loads(data.decode("utf-8"))
  except UnicodeDecodeError:
    return UNREADABLE
  except (ValueError, RecursionError):
    return None


class _Cut(Exception):
  """A JSON list that ends before its end; the message says where."""


def _lines(stream: BinaryIO, offset: int) -> Iterator[tuple[int, int, bytes]]:
  """(number from 1, offset, bytes) of the lines that are not empty."""
  for number, line in enumerate(stream, 1):
    if (bare := line.rstrip(b"\r\n")).strip():
      yield number, offset, bare
    offset += len(line)


def _elements(stream: BinaryIO, offset: int) -> Iterator[tuple[int, int, bytes]]:
  """(number from 1, offset, bytes) of the elements of a JSON list, read piece by piece.

  Raises:
    _Cut: after the last whole element.
  """
  decoder, number, last = json.JSONDecoder(), 0, False
  # A byte is a letter, so that places in the text are places in the file: all that JSON means is
  # ASCII, and what stands inside strings does not matter here.
  text, at = "", 0

  def more(size: int) -> bool:
    nonlocal text, at, offset, last
    data = stream.read(size)
    last = len(data) < size
    text, offset, at = text[at:] + data.decode("latin-1"), offset + at, 0
    return bool(data)

  more(_CHUNK)
  at = text.index("[") + 1
  while True:
    while at < len(text) and text[at] in " \t\r\n,":
      at += 1
    if at == len(text):
      if last or not more(_CHUNK):
        raise _Cut(f"cut at byte {offset + at}: its list has no end")
      continue
    if text[at] == "]":
      if (text[at + 1 :].encode("latin-1") + stream.read(_CHUNK)).strip(b" \t\r\n"):
        raise _Cut(f"damaged: something follows its list, at byte {offset + at + 1}")
      return
    try:
      _, end = decoder.raw_decode(text, at)
    except (json.JSONDecodeError, RecursionError) as error:
      if last or not more(max(_CHUNK, len(text) - at)):
        raise _Cut(f"cut or damaged in row {number + 1}, at byte {offset + at}: {error}") from None
      continue
    number += 1
    yield number, offset + at, text[at:end].encode("latin-1")
    at = end
