"""Objects behind addresses, through fsspec: range reads, a cache of blocks, bounded attempts."""

from collections.abc import Callable
import dataclasses
import random
import threading
import time
from typing import Any
from typing import NamedTuple
from typing import TypeVar

from absl import logging

from blip3o_jax import files
from blip3o_jax.data.blocks import Blocks

# What fsspec needs besides itself, of the schemes that this package is read from.
NEEDS = {
  "gs": "gcsfs",
  "gcs": "gcsfs",
  "s3": "s3fs",
  "hf": "huggingface_hub",
  "http": "aiohttp",
  "https": "aiohttp",
  "az": "adlfs",
  "abfs": "adlfs",
}
# What tells the contents of an object, then what tells its time.
_CONTENTS = ("ETag", "etag", "blob_id", "md5Hash", "generation", "Content-MD5", "Digest")
_TIMES = ("LastModified", "Last-Modified", "last_modified", "mtime", "updated", "created")
_NO = (PermissionError, IsADirectoryError, NotADirectoryError, NotImplementedError)
_PROGRAM = (ImportError, TypeError, AttributeError, KeyError)
_REFUSED, _ABSENT = (401, 403), (404, 410)
_LONGEST_WAIT = 30.0
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Limits:
  """What reading addresses may take.

  Attributes:
    block_bytes: an object is fetched, and kept, in blocks of so many bytes.
    cache_bytes: blocks kept in memory, a process; the longest unused go first.
    retries: further attempts after an error that may pass.
    first_wait: seconds before the first of them; each further wait is twice as long, and all vary
      by a quarter, so that many readers do not come back at once.
    trust: seconds in which the size and stamp of an object are not asked for again.
  """

  block_bytes: int = 4 * 2**20
  cache_bytes: int = 256 * 2**20
  retries: int = 5
  first_wait: float = 0.5
  trust: float = 60.0

  def __post_init__(self) -> None:
    for name in ("block_bytes", "cache_bytes", "retries", "first_wait", "trust"):
      least = 1 if name == "block_bytes" else 0
      if getattr(self, name) < least:
        raise ValueError(f"limits.{name}: {getattr(self, name)}; expected {least} or more")


class Stat(NamedTuple):
  """Bytes of a file, and what is another text after it was changed."""

  size: int
  stamp: str


class _Final(OSError):
  """What an object, or its server, is unfit for: no attempt changes it. Says the whole of it."""


class Objects:
  """Reads objects by address. Thread-safe; see `storage` for what each method gives."""

  def __init__(self, limits: Limits):
    self._limits = limits
    self._blocks = Blocks(limits.block_bytes, limits.cache_bytes)
    self._stats: dict[str, tuple[float, Stat]] = {}
    self._lock = threading.Lock()

  def listed(self, folder: str, recursive: bool) -> list[str]:
    """Names of the files below a folder, hidden ones as well."""
    files, inside = _system(folder)

    def ask() -> list[dict[str, Any]]:
      files.invalidate_cache(inside)
      if recursive:
        return list(files.find(inside, detail=True).values())
      return files.ls(inside, detail=True)

    entries = self._tried(folder, "its listing", ask)
    if [e["name"] for e in entries] == [inside] and entries[0]["type"] == "file":
      raise FileNotFoundError(f"{folder}: a file; expected the folder that holds it")
    if not entries and self.kind(folder) != "directory":
      raise FileNotFoundError(f"{folder}: no such folder")
    names = []
    for entry in entries:
      if entry["type"] == "file":
        name = entry["name"][len(inside.rstrip("/")) + 1 :]
        names.append(name)
        # Thousands of objects are asked about at once, where the listing tells their contents.
        if entry.get("size") is not None and any(entry.get(key) for key in _CONTENTS):
          self._remember(f"{folder.rstrip('/')}/{name}", Stat(entry["size"], _stamp(entry)))
    return names

  def kind(self, path: str) -> str:
    """ "file", "directory" or "" where there is nothing."""
    try:
      info = self._info(path)
    except FileNotFoundError:
      return ""
    # A web server has only pages; that of a folder is HTML.
    web = path.startswith(("http://", "https://"))
    if web and (path.endswith("/") or info.get("mimetype") == "text/html"):
      return "directory"
    return "file" if info["type"] == "file" else "directory"

  def stat(self, path: str) -> Stat:
    with self._lock:
      when, known = self._stats.get(path, (0.0, None))
    if known is not None and time.monotonic() - when < self._limits.trust:
      return known
    info = self._info(path)
    if info["type"] != "file":
      raise FileNotFoundError(f"{path}: a folder; expected a file")
    if info.get("size") is None:
      raise OSError(f"{path}: the server does not say its size, so it cannot be read in ranges")
    return self._remember(path, Stat(int(info["size"]), _stamp(info)))

  def read(self, path: str, offset: int, size: int) -> bytes:
    stat = self.stat(path)
    end = min(offset + size, stat.size)
    if end <= offset:
      return b""
    files, inside = _system(path)

    def fetch(first: int, last: int) -> bytes:
      def ask() -> bytes:
        data = files.cat_file(inside, start=first, end=last)
        if len(data) > last - first:
          raise _Final(
            f"{path}: {len(data)} bytes came for {last - first}: the server does not serve ranges; "
            "copy the files to a disk, or to a server that does"
          )
        if len(data) < last - first:
          raise OSError(f"{len(data)} bytes came, {last - first} were asked for")
        return data

      return self._tried(path, f"bytes {first} to {last} of {stat.size}", ask)

    return self._blocks.read((path, *stat), stat.size, offset, end, fetch)

  def _remember(self, path: str, stat: Stat) -> Stat:
    with self._lock:
      self._stats[path] = time.monotonic(), stat
    return stat

  def _info(self, path: str) -> dict[str, Any]:
    files, inside = _system(path)

    def ask() -> dict[str, Any]:
      files.invalidate_cache(inside)
      return files.info(inside)

    return self._tried(path, "its size", ask)

  def _tried(self, path: str, what: str, ask: Callable[[], T]) -> T:
    """What `ask` gives, after as many attempts as there may be.

    Raises:
      FileNotFoundError, PermissionError: at once. files.Unreachable: after the last attempt.
    """
    attempts, wait = self._limits.retries + 1, self._limits.first_wait
    for attempt in range(attempts):
      try:
        return ask()
      except Exception as error:
        _raise_final(path, error)
        said = f"{type(error).__name__}: {error}"
        if attempt + 1 == attempts:
          raise files.Unreachable(
            f"{path}: {what} could not be read in {attempts} attempts; the last error was {said}. "
            "Start again when the server answers: what was done is kept"
          ) from error
        logging.warning("%s: %s: %s; trying again in %.1f s", path, what, said, wait)
        time.sleep(wait * random.uniform(0.75, 1.25))
        wait = min(2 * wait, _LONGEST_WAIT)
    raise AssertionError("not reached")


def _raise_final(path: str, error: Exception) -> None:
  """Raises, naming the object, if the error is one that does not pass."""
  # fsspec says FileNotFoundError for whatever an HTTP server refuses; the status tells them apart.
  status = _status(error)
  if status in _REFUSED:
    raise PermissionError(f"{path}: refused (status {status}); log in to where it lies") from error
  if status in _ABSENT or (isinstance(error, FileNotFoundError) and status is None):
    if isinstance(error, FileNotFoundError) and error.__cause__ and status is None:
      return  # such as no connection
    raise FileNotFoundError(f"{path}: no such file or folder") from error
  if isinstance(error, _Final):
    raise error
  if isinstance(error, _NO):
    raise type(error)(f"{path}: {error}") from error
  if isinstance(error, _PROGRAM):
    raise error


def _status(error: BaseException | None) -> int | None:
  """The status of HTTP that an error, or one that it came from, carries."""
  while error is not None:
    for holder in (error, getattr(error, "response", None)):
      for name in ("status", "status_code", "code"):
        value = getattr(holder, name, None)
        if isinstance(value, int) and 400 <= value < 600:
          return value
    error = error.__cause__
  return None


def _stamp(info: dict[str, Any]) -> str:
  for key in (*_CONTENTS, *_TIMES):
    if value := info.get(key):
      text = value.isoformat() if hasattr(value, "isoformat") else str(value)
      return f"{key}={text}".replace('"', "")
  return ""


def _system(path: str) -> tuple[Any, str]:
  """fsspec's file system of an address, and the address as that calls it.

  Raises:
    ValueError: a package that is not installed, or an unknown scheme.
  """
  try:
    import fsspec
  except ImportError:
    raise ValueError(f"{path}: reading it needs fsspec: {_install(path)}") from None
  try:
    return fsspec.core.url_to_fs(path)
  except ImportError as error:
    raise ValueError(f"{path}: {error}: {_install(path)}") from None
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None


def _install(path: str) -> str:
  needs = NEEDS.get(path.partition("://")[0].lower(), "")
  return " ".join(filter(None, ("pip install blip3o-jax[remote]", needs)))
