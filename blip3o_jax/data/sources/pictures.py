"""Pictures that rows name: files of one folder, or members of the tars in it.

A name is only ever looked up inside the folder. A file is taken before a member of a tar; the tars
are indexed when the first name is no file. A name that several members have is nobody's.
"""

from collections.abc import Mapping
import os
from pathlib import Path
import posixpath
import tarfile
import threading
from typing import Any
import zlib

from absl import logging
import numpy as np

from blip3o_jax.data import columns
from blip3o_jax.data import index as indices
from blip3o_jax.data import storage
from blip3o_jax.data.index import Index
from blip3o_jax.data.index import printable
from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.sources import archives
from blip3o_jax.data.sources import joined
from blip3o_jax.data.sources import split
from blip3o_jax.data.sources.archives import BLOCK
from blip3o_jax.data.sources.archives import Place

_SHOWN = 200  # letters of a name in an error


class Pictures:
  """The pictures of a folder, by their names. Thread-safe.

  Args:
    folder: local or an address. partial: use what is whole of tars that are cut. write: see
      `index.opened`.
  """

  def __init__(self, folder: str, *, partial: bool = False, write: bool = True):
    self.folder = folder
    self._partial, self._write = partial, write
    self._lock = threading.Lock()
    self._tars: Members | None = None
    self._looked = False

  def get(self, value: Any, name: str) -> bytes:
    """The bytes of a picture.

    Args:
      value: bytes, {bytes, path} as Hugging Face keeps a picture, or a name. name: of the record,
        for errors.

    Raises:
      BadRecord: of kind "missing": no picture, no such one, or a name that leads out of the folder;
        "read": it cannot be read; "lists": a list.
      ValueError: a tar is cut, and `partial` is off.
    """
    if isinstance(value, list | tuple):
      raise BadRecord(f"{name}: {len(value)} pictures where one is expected", "lists")
    if isinstance(value, Mapping):
      value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes) and value:
      return value
    if not isinstance(value, str) or not value:
      what = "nothing" if not value else type(value).__name__
      raise BadRecord(f"{name}: a picture of it is {what}, expected a name or bytes", "missing")
    return self._named(value, name)

  def _named(self, value: str, name: str) -> bytes:
    inside, shown = self._inside(value, name), printable(value[:_SHOWN])
    path = storage.join(self.folder, inside)
    try:
      return storage.read(path, 0, storage.stat(path).size)
    except (FileNotFoundError, NotADirectoryError):
      pass
    except OSError as error:
      raise BadRecord(f"{name}: its picture {shown} cannot be read: {error}", "read") from None
    tars = self._members()
    if tars is not None:
      return tars.get(inside, name)
    what = "name the folder that holds it in reading.images (--images)"
    raise BadRecord(f"{name}: its picture {shown} is not in {self.folder}; {what}", "missing")

  def _inside(self, value: str, name: str) -> str:
    """A name relative to the folder; raises BadRecord for one that is not in it."""
    folder, shown = self.folder.rstrip("/"), printable(value[:_SHOWN])
    if not storage.is_remote(folder):
      folder = os.path.abspath(folder)
    out = value.removeprefix(f"{folder}/")
    if storage.is_remote(out) or out.startswith("data:"):
      raise BadRecord(
        f"{name}: its picture is an address, {shown}; fetch it, and name the file", "missing"
      )
    if out.startswith("/") or ".." in out.split("/") or "\0" in out:
      raise BadRecord(
        f"{name}: its picture {shown} would lie outside of {self.folder}, so it is not opened; "
        "name the folder that holds the pictures in reading.images",
        "missing",
      )
    return posixpath.normpath(out)

  def _members(self) -> "Members | None":
    if not self._looked:
      with self._lock:
        if not self._looked:
          self._tars = self._opened()
          self._looked = True
    return self._tars

  def _opened(self) -> "Members | None":
    try:
      files, _ = split.files(storage.listed(self.folder), self.folder)
      if not files:
        names = storage.listed(self.folder, recursive=True)
        files, _ = split.files([n for n in names if n.count("/") == 1], self.folder)
    except FileNotFoundError:
      return None
    if not files:
      return None
    index = indices.opened(
      self.folder,
      files,
      joined.pictures,
      layout="pictures",
      partial=self._partial,
      write=self._write,
      stat=split.stat,
    )
    for tar, problem in index.problems.items():
      logging.warning("%s: %s; what is whole of it is used", tar, problem)
    logging.info("%s: %d pictures in %d tars", self.folder, len(index), len(files))
    return Members(index)


class Members:
  """The pictures in tars by their names, found through a sorted column of hashes."""

  def __init__(self, index: Index):
    self._index = index
    self._hashes, self._numbers = _sorted(index)

  def get(self, inside: str, name: str) -> bytes:
    """The bytes of a member; errors: see `Pictures.get`."""
    wanted = inside.encode("utf-8", "surrogateescape")
    value = np.uint32(zlib.crc32(wanted))  # another type would copy the column
    first, last = (int(np.searchsorted(self._hashes, value, side)) for side in ("left", "right"))
    numbers = [int(number) for number in self._numbers[first:last]]
    found = [number for number in numbers if self._index.key(number) == wanted]
    shown = printable(inside[:_SHOWN])
    if len(found) != 1:
      files, home = self._index.files, self._index.home
      what = f"is in {len(found)} places of its" if found else "is neither there nor in its"
      example = printable(self._index.key(0).decode("utf-8", "replace")) if len(self._index) else ""
      raise BadRecord(
        f"{name}: {home}: its picture {shown} {what} {len(files)} tars"
        + (f", which hold {example}" if example and not found else ""),
        "missing",
      )
    number, _ = self._index.place(found[0])
    column = self._index.column
    block, size, sparse = (column(c)[found[0]] for c in ("block", "bytes", "sparse"))
    try:
      changed = self._index.changed(number)
      data = archives.read(
        self._index.path(number), Place(int(block) * BLOCK, int(size), bool(sparse))
      )
    except (OSError, tarfile.TarError) as error:
      raise BadRecord(f"{name}: its picture {shown} cannot be read: {error}", "read") from None
    if changed or len(data) != size:
      raise indices.stale(name, self._index.files[number])
    return data


def _sorted(index: Index) -> tuple[np.ndarray, np.ndarray]:
  """(hashes uint32[n] in ascending order, record of each), mapped from beside the index."""
  paths = [Path(index.folder, f"names-{what}.npy") for what in ("hash", "record")]
  if len(index) and not all(path.is_file() for path in paths):
    hashes = index.hashes(0, len(index))
    numbers = np.argsort(hashes, kind="stable").astype(
      np.uint32 if len(index) < 2**32 else np.uint64
    )
    made = (hashes[numbers], numbers)
    try:
      for path, array in zip(paths, made, strict=True):
        columns.whole_npy(path, array.dtype, array.shape, iter([array]))
    except OSError as error:
      logging.warning("%s: kept in memory, as it cannot be written: %s", paths[0], error)
      return made
  if not len(index):
    return np.zeros(0, np.uint32), np.zeros(0, np.uint32)
  hashes, numbers = (np.load(path, mmap_mode="r") for path in paths)
  return hashes, numbers


def folder_of(images: str, home: str) -> str:
  """The folder of pictures that a config names, itself or in the folder of the list.

  Args:
    images: see `Reading`; "" is `home`, the folder of the list.

  Raises:
    FileNotFoundError: neither is there.
  """
  inside = storage.join(home, images)
  if not images:
    return home
  for folder in (images, inside):
    if storage.isdir(folder):
      return folder
  raise FileNotFoundError(f"reading.images: no folder {images}, and none {inside}")
