"""The members of one tar: which of them make a record, and where their bytes lie.

Tars that people have hold more than records: a second picture of a key, a key that begins anew, the
twins that a Mac adds, links, files with holes. What is no record is counted, by `LEFT`.
"""

from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
import os
from pathlib import Path
import tarfile
from typing import Any
from typing import BinaryIO
from typing import NamedTuple

import numpy as np

from blip3o_jax.files import stranger

# Of several pictures of a key the first of these is the picture: masks and depths are PNGs.
PICTURES = ("jpg", "jpeg", "webp", "png")
IMAGE, TEXT, FEATURES = 0, 1, 2
PARTS = dict.fromkeys(PICTURES, IMAGE) | {"txt": TEXT, "npy": FEATURES}
# What a tar may hold beside records, in the order of the index.
LEFT = {
  "others": "members of other kinds",
  "bare": "keys without caption or picture",
  "blank": "captions that are empty or white space",
  "empty": "pictures or features of no bytes",
  "twins": "twins from a Mac (._NAME)",
  "further": f"further pictures, captions or features of a key (of {', '.join(PICTURES)} the first "
  "is taken)",
  "copies": "copies of a key that stands in the tar again, not whole or not to be told apart",
  "links": "symbolic links, or links to what the tar does not hold (tar --dereference packs files)",
  "rest": "bytes behind the end that are no archive",
}
FOREIGN = {
  b"\x1f\x8b": "gzip: undo it with `gunzip` (of a name that ends in .tar.gz)",
  b"\x28\xb5\x2f\xfd": "zstd: undo it with `zstd -d`",
  b"BZh": "bzip2: undo it with `bunzip2`",
  b"\xfd7zXZ\x00": "xz: undo it with `unxz`",
  b"\x04\x22\x4d\x18": "lz4: undo it with `lz4 -d`",
  b"PK\x03\x04": "zip: unpack it, and pack it with `tar`",
  b"7z\xbc\xaf\x27\x1c": "7z: unpack it, and pack it with `tar`",
  b"PAR1": "parquet: write its rows as KEY.jpg and KEY.txt with `tar`",
}
_BLOCK = 512
Columns = dict[str, np.ndarray]
Leave = Callable[[str, str], None]


class Place(NamedTuple):
  """Bytes of a member: from `offset`, or of one with holes the offset of its header."""

  offset: int
  size: int
  sparse: bool = False


class _Found(NamedTuple):
  run: int  # members of one key with no other key between them have one number
  name: str
  part: int
  rank: int
  place: Place


ABSENT = Place(-1, 0)


def scan(file: Path) -> tuple[Columns, Counter[str], dict[str, str], str]:
  """The records of one tar.

  Returns:
    key bytes[n], offset int64[n, 3], size int64[n, 3], sparse bool[n, 3], as in `index_folder`; how
    much was left out, by `LEFT`, and "again": records whose key stands in the tar before; the first
    name of each; what is wrong with the tar, or "". A record that the end of the file cuts is left
    out.

  Raises:
    ValueError: not a tar; what it is, where that can be told, and what to do.
  """
  found: dict[str, list[_Found]] = {}
  counts: Counter[str] = Counter()
  first: dict[str, str] = {}
  end, problem = file.stat().st_size, ""

  def leave(kind: str, name: str) -> None:
    counts[kind] += 1
    first.setdefault(kind, name)

  with open(file, "rb") as stream:
    _check_kind(file, stream.read(_BLOCK))
    run, last = 0, ""
    try:
      for name, place in _places(stream, end, leave):
        key, _, extension = name.rpartition(".")
        part = PARTS.get(extension.lower())
        if name.rpartition("/")[2].startswith("._"):
          leave("twins", name)
        elif part is None or not key or key.endswith("/"):
          leave("others", name)
        else:
          run, last = run + (key != last), key
          rank = PICTURES.index(extension.lower()) if part == IMAGE else 0
          found.setdefault(key, []).append(_Found(run, name, part, rank, place))
    except (tarfile.TarError, OSError) as error:
      problem = f"truncated or damaged ({error})"
    if not found and not counts and not problem and end > 20 * _BLOCK:
      problem = "truncated or damaged (it holds nothing but zeros)"
    rows = []
    for key, members in found.items():
      copies = _copies(members)
      for copy in copies:
        made = _record(stream, copy, leave, "bare" if len(copies) == 1 else "copies")
        if made is not None:
          rows.append((copy[0].run, key, made))
          if len(copies) > 1:
            leave("again", key)
  rows.sort(key=lambda row: row[0])
  table = np.array([row[2] for row in rows], np.int64).reshape(-1, 3, 3)
  keys = [key.encode("utf-8", "surrogateescape") for _, key, _ in rows]
  columns = {
    "key": np.array(keys, np.bytes_),
    "offset": table[..., 0],
    "size": table[..., 1],
    "sparse": table[..., 2].astype(bool),
  }
  return columns, counts, first, problem


def read(stream: BinaryIO, place: Place) -> bytes:
  """The bytes at a place; fewer where the file ends before, tarfile.TarError for a bad header."""
  if not place.sparse:
    return os.pread(stream.fileno(), place.size, place.offset)
  stream.seek(place.offset)
  with tarfile.open(fileobj=stream, mode="r:") as tar:
    member = tar.next()
    inside = None if member is None else tar.extractfile(member)
    return b"" if inside is None else inside.read()


def _copies(members: list[_Found]) -> list[list[_Found]]:
  """The members of one key, apart where the key begins anew: no copy takes from another.

  A name that stands twice says so; a copy is then what stands together. Members of a key that does
  not begin anew may stand anywhere.
  """
  if len({member.name for member in members}) == len(members):
    return [members]
  copies: list[list[_Found]] = []
  for member in members:
    if copies and member.run == copies[-1][0].run and member.name != copies[-1][0].name:
      copies[-1].append(member)
    else:
      copies.append([member])
  return copies


def _record(
  stream: BinaryIO, copy: list[_Found], leave: Leave, incomplete: str
) -> list[Place] | None:
  """The places of picture, text and features, or None where it is no record."""
  if len({member.name for member in copy}) < len(copy):
    leave(incomplete, copy[0].name)
    return None
  made = [ABSENT] * 3
  for part in (IMAGE, TEXT, FEATURES):
    there = sorted((m for m in copy if m.part == part), key=lambda m: m.rank)
    filled = [m for m in there if m.place.size or part == TEXT]
    for member in there:
      if member not in filled:
        leave("empty", member.name)
    for member in filled[1:]:
      leave("further", member.name)
    if filled:
      made[part] = filled[0].place
  text = made[TEXT]
  if text.offset >= 0 and is_blank(read(stream, text)):
    leave("blank", next(m.name for m in copy if m.place == text))
    return None
  if text.offset < 0 or max(made[IMAGE].offset, made[FEATURES].offset) < 0:
    leave(incomplete, copy[0].name)
    return None
  return made


def caption(text: bytes) -> str:
  """A caption without the byte order mark that some editors begin it with.

  Raises:
    UnicodeDecodeError: not UTF-8.
  """
  return text.decode("utf-8").lstrip("\ufeff")


def is_blank(text: bytes) -> bool:
  """Whether a caption has nothing in it; one that is not UTF-8 has."""
  try:
    return not caption(text).strip()
  except UnicodeDecodeError:
    return False


def _places(stream: BinaryIO, end: int, leave: Leave) -> Iterator[tuple[str, Place]]:
  """(name, place) of the files in a tar, or in several that were joined into one file.

  Raises:
    tarfile.ReadError: it is cut.
  """
  start: int | None = 0
  while start is not None:
    stream.seek(start)
    places: dict[str, Place] = {}
    position = start
    with tarfile.open(fileobj=stream, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
      while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # or it would keep every header
        name = member.name.removeprefix("./")
        holes: Any = member.sparse  # (offset, size) of what lies between them
        stored = member.size if holes is None else sum(size for _, size in holes)
        if member.isreg() and member.offset_data + stored > end:
          raise tarfile.ReadError(f"{name} needs byte {member.offset_data + stored}")
        position = tar.offset  # type: ignore[attr-defined]
        place: Place | None = None
        if member.isreg():
          begin = member.offset_data if holes is None else member.offset
          place = Place(begin, member.size, holes is not None)
        elif member.islnk():  # how GNU tar writes the second name of a file
          place = places.get(member.linkname.removeprefix("./"))
        if place is not None:
          places[name] = place
          yield name, place
        elif member.islnk() or member.issym():
          leave("links", name)
    start = _next_archive(stream, position, end, leave)


def _next_archive(stream: BinaryIO, position: int, end: int, leave: Leave) -> int | None:
  """Where another archive begins behind the one that ends at `position`, if one does.

  Raises:
    tarfile.ReadError: no end mark at `position`.
  """
  stream.seek(position)
  block = stream.read(_BLOCK)
  if block != bytes(_BLOCK):
    raise tarfile.ReadError(f"no end mark at byte {position} of {end}")
  while block == bytes(_BLOCK):
    position += _BLOCK
    block = stream.read(_BLOCK)
  if not block.strip(b"\0"):
    return None
  if _is_header(block):
    return position
  leave("rest", f"byte {position}")
  return None


def _is_header(block: bytes) -> bool:
  try:
    tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
  except tarfile.HeaderError:
    return False
  return True


def _check_kind(file: Path, head: bytes) -> None:
  """Raises ValueError for what is known not to be a tar."""
  if not head:
    raise ValueError(f"{file}: it is empty. Fetch it again")
  if _is_header(head):
    return
  if what := stranger(head):
    raise ValueError(f"{file}: {what}")
  for magic, what in FOREIGN.items():
    if head.startswith(magic):
      raise ValueError(f"{file}: not a plain tar but {what}")
  text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
  if text[:1] in (b"<", b"{"):  # such as an answer in XML or JSON
    shown = text[:60].decode("utf-8", "replace").replace("\n", " ")
    raise ValueError(
      f"{file}: not a tar but a page of text, which a server sends in place of a file ({shown!r}). "
      "Fetch it again, with the right address and access"
    )
