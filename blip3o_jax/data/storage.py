"""Files of a data set, on local disks and behind addresses such as gs://, s3://, hf:// or http://.

All take and give paths as text. Local files are read by position through a bounded set of open
descriptors; see `remote` for the rest.
"""

from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Sequence
import io
import os
import re
from stat import S_ISDIR
import threading
import time
from typing import BinaryIO
from typing import NamedTuple

from blip3o_jax.data import remote
from blip3o_jax.data.remote import Limits
from blip3o_jax.data.remote import Stat

__all__ = ["Limits", "Stat", "is_remote", "isdir", "isfile", "join", "limit", "listed", "opened"]
__all__ += ["read", "read_into", "stat", "streamed"]

DESCRIPTORS = 128  # kept open; a process may have 1,024
_BUFFER = 2**16
_TRUST = 1.0  # seconds in which a path is taken to be the file that is open
_VECTOR = 1024  # buffers that one call of the system fills
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
Writable = memoryview | bytearray  # of bytes


def is_remote(path: str) -> bool:
  """Whether a path is an address, `scheme://...`."""
  return "://" in path and _SCHEME.match(path) is not None


def join(folder: str, name: str) -> str:
  """A name in a folder; a name that is a whole path or address is that."""
  if is_remote(name) or name.startswith("/") or not folder:
    return name
  return f"{folder}{name}" if folder.endswith("/") else f"{folder}/{name}"


def limit(limits: Limits) -> None:
  """Sets how this process reads addresses from now on; what was cached is dropped."""
  global _objects
  _objects = remote.Objects(limits)


def listed(folder: str, *endings: str, recursive: bool = False) -> list[str]:
  """The names of files, sorted and relative to the folder; hidden ones (".NAME") are passed over.

  Args:
    endings: that a name must have one of, in upper or lower case; without any, all files.
    recursive: look into folders in it as well, links to folders followed.

  Raises:
    FileNotFoundError: no such folder.
    files.Unreachable: an address that cannot be read, after all attempts.
  """
  names = _objects.listed(folder, recursive) if is_remote(folder) else _local(folder, recursive)
  wanted = tuple(ending.lower() for ending in endings) or ("",)
  return sorted(
    name
    for name in names
    if name.lower().endswith(wanted) and not any(p.startswith(".") for p in name.split("/"))
  )


def isfile(path: str) -> bool:
  """Whether there is such a file; raises files.Unreachable for an address."""
  return _objects.kind(path) == "file" if is_remote(path) else os.path.isfile(path)


def isdir(path: str) -> bool:
  """Whether there is such a folder; raises files.Unreachable for an address."""
  return _objects.kind(path) == "directory" if is_remote(path) else os.path.isdir(path)


def stat(path: str) -> Stat:
  """Size and stamp of a file; the stamp is another one after the file was changed.

  Raises:
    FileNotFoundError: no such file, or a folder.
  """
  if is_remote(path):
    return _objects.stat(path)
  found = os.stat(path)
  if S_ISDIR(found.st_mode):
    raise FileNotFoundError(f"{path}: a folder; expected a file")
  return Stat(found.st_size, str(found.st_mtime_ns))


def read(path: str, offset: int, size: int) -> bytes:
  """The bytes [offset, offset + size) of a file, fewer where it ends before. Thread-safe.

  Raises:
    FileNotFoundError: no such file.
    OSError: it cannot be read. files.Unreachable: of an address, with the range and the last error.
  """
  if is_remote(path):
    return _objects.read(path, offset, size)
  return _descriptors.read(path, offset, size)


def read_into(path: str, offset: int, buffers: Sequence[Writable]) -> int:
  """Fills buffers with the bytes of a file from `offset` on, one after another, without a copy.

  Returns:
    The bytes that were there, less than the buffers take where the file ends before. Errors: as
    `read`.
  """
  if not is_remote(path):
    return _descriptors.read_into(path, offset, buffers)
  data = memoryview(read(path, offset, sum(map(len, buffers))))
  at = 0
  for buffer in buffers:
    part = data[at : at + len(buffer)]
    buffer[: len(part)] = part
    at += len(part)
  return at


def opened(path: str) -> BinaryIO:
  """A file as a stream that can be read and sought.

  Raises:
    FileNotFoundError: no such file.
  """
  if not is_remote(path):
    return open(path, "rb")
  return streamed(path, _objects.stat(path).size, read)


def streamed(path: str, size: int, ranges: Callable[[str, int, int], bytes]) -> BinaryIO:
  """A stream over what gives ranges of bytes.

  Args:
    size: bytes in all. ranges: as `read`, given path, offset and size.
  """
  # What BinaryIO asks for beyond this are the methods of writing.
  return io.BufferedReader(_Stream(path, size, ranges), _BUFFER)  # type: ignore[return-value]


class _Stream(io.RawIOBase):
  """See `streamed`."""

  def __init__(self, path: str, size: int, ranges: Callable[[str, int, int], bytes]):
    self.name, self._ranges = path, ranges
    self._size, self._position = size, 0

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def tell(self) -> int:
    return self._position

  def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
    start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
    if start + offset < 0:
      raise ValueError(f"{self.name}: seek to byte {start + offset}")
    self._position = start + offset
    return self._position

  def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
    data = self._ranges(self.name, self._position, len(buffer))
    buffer[: len(data)] = data
    self._position += len(data)
    return len(data)


class _Opened(NamedTuple):
  descriptor: "_Descriptor"
  file: tuple[int, int, int, int]  # device, inode, size, time of change
  checked: float


class _Descriptor:
  """Closed with the last reference, so a thread that still reads keeps it."""

  def __init__(self, path: str):
    self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

  def __del__(self) -> None:
    if hasattr(self, "number"):
      os.close(self.number)


def _named(error: OSError, path: str) -> OSError:
  """An error of the system with the name of the file, which reading by descriptor does not know."""
  return OSError(error.errno, error.strerror, path)


class _Descriptors:
  """The most recently read files, open.

  One in whose place another came is opened again, after _TRUST seconds at the latest: asking each
  time would cost as much as opening. Whether a set was changed its index says.
  """

  def __init__(self, most: int):
    self._most = most
    self._open: OrderedDict[str, _Opened] = OrderedDict()
    self._lock = threading.Lock()
    # A child that is forked while another thread reads would find the lock taken for ever.
    os.register_at_fork(after_in_child=self._renew)

  def _renew(self) -> None:
    self._lock = threading.Lock()

  def read(self, path: str, offset: int, size: int) -> bytes:
    descriptor = self._get(path)
    parts: list[bytes] = []
    left = size  # one call gives at most 2 GiB, and less after a signal
    try:
      while left and (data := os.pread(descriptor.number, left, offset + size - left)):
        parts.append(data)
        left -= len(data)
    except OSError as error:
      raise _named(error, path) from None
    return parts[0] if len(parts) == 1 else b"".join(parts)

  def read_into(self, path: str, offset: int, buffers: Sequence[Writable]) -> int:
    descriptor = self._get(path)
    wanted = sum(map(len, buffers))
    try:
      done = os.preadv(descriptor.number, buffers[:_VECTOR], offset)
      while 0 < done < wanted:
        left = _after(buffers, done)[:_VECTOR]
        count = os.preadv(descriptor.number, left, offset + done)
        if not count:
          break
        done += count
    except OSError as error:
      raise _named(error, path) from None
    return done

  def _get(self, path: str) -> _Descriptor:
    now = time.monotonic()
    with self._lock:
      known = self._open.get(path)
      if known is not None and now - known.checked < _TRUST:
        self._open.move_to_end(path)
        return known.descriptor
    found = os.stat(path)
    file = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    same = known is not None and known.file == file
    if S_ISDIR(found.st_mode):
      raise IsADirectoryError(f"{path}: a folder; expected a file")
    descriptor = known.descriptor if known is not None and same else _Descriptor(path)
    with self._lock:
      self._open[path] = _Opened(descriptor, file, now)
      self._open.move_to_end(path)
      while len(self._open) > self._most:
        self._open.popitem(last=False)
    return descriptor


def _after(buffers: Sequence[Writable], done: int) -> list[Writable]:
  """What of buffers is left to fill when so many bytes are."""
  left: list[Writable] = []
  for buffer in buffers:
    if done < len(buffer):
      left.append(memoryview(buffer)[done:])
    done = max(0, done - len(buffer))
  return left


def _local(folder: str, recursive: bool) -> list[str]:
  """Names of the files of a local folder, hidden ones as well."""
  if not os.path.isdir(folder):
    what = "a file; expected the folder that holds it" if os.path.isfile(folder) else ""
    raise FileNotFoundError(f"{folder}: {what or 'no such folder'}")
  if not recursive:
    with os.scandir(folder) as entries:
      return [entry.name for entry in entries if entry.is_file()]
  names, seen = [], set()
  for home, below, here in os.walk(folder, followlinks=True):
    real = os.path.realpath(home)
    if real in seen:  # a link to a folder that holds it
      below.clear()
      continue
    seen.add(real)
    inside = os.path.relpath(home, folder)
    for name in here:
      if os.path.isfile(os.path.join(home, name)):
        names.append(os.path.normpath(os.path.join(inside, name)).replace(os.sep, "/"))
  return names


_descriptors = _Descriptors(DESCRIPTORS)
_objects = remote.Objects(Limits())
