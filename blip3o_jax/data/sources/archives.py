"""The members of a tar and where their bytes lie, without unpacking it. Knows no records."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import tarfile
from typing import Any
from typing import BinaryIO
from typing import NamedTuple

import numpy as np

from blip3o_jax.data.sources import split
from blip3o_jax.files import stranger

FOREIGN = {
  b"\x1f\x8b": "gzip: undo it with `gunzip` (of a name that ends in .tar.gz)",
  b"\x28\xb5\x2f\xfd": "zstd: undo it with `zstd -d`",
  b"BZh": "bzip2: undo it with `bunzip2`",
  b"\xfd7zXZ\x00": "xz: undo it with `unxz`",
  b"\x04\x22\x4d\x18": "lz4: undo it with `lz4 -d`",
  b"PK\x03\x04": "zip: unpack it, and pack it with `tar`",
  b"7z\xbc\xaf\x27\x1c": "7z: unpack it, and pack it with `tar`",
  b"PAR1": "parquet: call it NAME.parquet, and it is read as it is",
}
BLOCK = 512
LARGEST = 2**31 * BLOCK  # bytes: places are counted in blocks, of 32 bits
Leave = Callable[[str, str], None]


class Place(NamedTuple):
  """Bytes of a member: from `offset`, or of one with holes the offset of its header.

  The offset is a multiple of 512.
  """

  offset: int
  size: int
  sparse: bool = False


ABSENT = Place(-1, 0)


def sizes(values: Sequence[int] | np.ndarray) -> np.ndarray:
  """Bytes of members as a column: uint32[n], or uint64 where one has 4 GiB or more."""
  column = np.array(values, np.uint64)
  return column if column.max(initial=0) >= 2**32 else column.astype(np.uint32)


class Walk:
  """Goes through the files in a tar, or in several that were joined into one file.

  Args:
    path: of the tar, see `split`. leave: takes what is passed over, "links" or "rest" and a name.

  Attributes:
    problem: afterwards what is wrong with the tar, or "".
  """

  def __init__(self, path: str, leave: Leave):
    self._path, self._leave, self.problem = path, leave, ""

  def __iter__(self) -> Iterator[tuple[str, Place, BinaryIO]]:
    """(name, place, stream) of each; the stream may be moved.

    Raises:
      ValueError: no tar; what it is, where that can be told, and what to do.
    """
    end, found = split.stat(self._path).size, False
    with split.opened(self._path) as stream:
      check_kind(self._path, stream.read(BLOCK), end)

      def leave(kind: str, name: str) -> None:
        nonlocal found
        found = True
        self._leave(kind, name)

      places = _places(stream, end, leave)
      while True:
        try:
          name, place = next(places)
        except StopIteration:
          break
        except (tarfile.TarError, OSError) as error:
          self.problem = f"truncated or damaged ({error})"
          break
        found = True
        yield name, place, stream
    if not found and not self.problem and end > 20 * BLOCK:
      self.problem = "truncated or damaged (it holds nothing but zeros)"


def read(path: str, place: Place) -> bytes:
  """The bytes at a place; fewer where the file ends before, tarfile.TarError for a bad header."""
  if not place.sparse:
    return split.read(path, place.offset, place.size)
  with split.opened(path) as stream:
    return _unfolded(stream, place)


def read_stream(stream: BinaryIO, place: Place) -> bytes:
  """As `read`, of an open file."""
  if place.sparse:
    return _unfolded(stream, place)
  stream.seek(place.offset)
  return stream.read(place.size)


def _unfolded(stream: BinaryIO, place: Place) -> bytes:
  stream.seek(place.offset)
  with tarfile.open(fileobj=stream, mode="r:") as tar:
    member = tar.next()
    inside = None if member is None else tar.extractfile(member)
    return b"" if inside is None else inside.read()


def _places(stream: BinaryIO, end: int, leave: Leave) -> Iterator[tuple[str, Place]]:
  """Raises tarfile.ReadError: it is cut."""
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
  block = stream.read(BLOCK)
  if block != bytes(BLOCK):
    raise tarfile.ReadError(f"no end mark at byte {position} of {end}")
  while block == bytes(BLOCK):
    position += BLOCK
    block = stream.read(BLOCK)
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


def check_kind(path: str, head: bytes, size: int) -> None:
  """Raises ValueError for what is known not to be a tar, by its first block; or is too large."""
  if not head:
    raise ValueError(f"{path}: it is empty. Fetch it again")
  if size > LARGEST:
    raise ValueError(f"{path}: {size} bytes, expected at most {LARGEST}. Pack it as several tars")
  if _is_header(head):
    return
  if what := stranger(head):
    raise ValueError(f"{path}: {what}")
  for magic, what in FOREIGN.items():
    if head.startswith(magic):
      raise ValueError(f"{path}: not a plain tar but {what}")
  text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
  if text[:1] in (b"<", b"{"):  # such as an answer in XML or JSON
    shown = text[:60].decode("utf-8", "replace").replace("\n", " ")
    raise ValueError(
      f"{path}: not a tar but a page of text, which a server sends in place of a file ({shown!r}). "
      "Fetch it again, with the right address and access"
    )
