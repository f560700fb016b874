"""A folder of WebDataset tars as a source with random access: an index of byte offsets beside them.

Members `KEY.jpg|jpeg|png|webp`, `KEY.txt` (UTF-8 caption) and `KEY.npy` (cached features); a record
is a KEY with a caption and a picture or features (spec 8). Nothing is unpacked.
"""

from collections.abc import Iterator
import contextlib
import io
import os
from pathlib import Path
import tarfile
from typing import BinaryIO
import zlib

from absl import logging
from ml_dtypes import bfloat16
import numpy as np

from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.records import Record
from blip3o_jax.files import refuse_stranger

INDEX = "index.npz"
VERSION = 1
PARTS = {"jpg": 0, "jpeg": 0, "png": 0, "webp": 0, "txt": 1, "npy": 2}
IMAGE, TEXT, FEATURES = 0, 1, 2
_BLOCK = 512
Columns = dict[str, np.ndarray]


class TarSource:
  """The records of the tars of a folder, in the order of file names and then of the tar.

  Args:
    folder: holds `*.tar`; an index that is absent or stale (by size and time) is made first.
    partial: index tars that are cut short too, with their whole records, instead of raising. An
      index that was made so is read with a warning.

  Raises:
    FileNotFoundError: no such folder, or no tar in it.
    ValueError: a tar that is truncated or damaged.
  """

  def __init__(self, folder: str | Path, *, partial: bool = False):
    self.folder = Path(folder)
    self._index = index_folder(self.folder, partial=partial)
    self._tars = self._index["tars"].tolist()
    for tar, whole in zip(self._tars, self._index["whole"], strict=True):
      if not whole:
        logging.warning("%s: truncated; only its whole records are used", self.folder / tar)

  def __len__(self) -> int:
    return len(self._index["tar"])

  def lengths(self) -> np.ndarray:
    """Bytes of each caption, int64[n]."""
    return self._index["size"][:, TEXT].astype(np.int64)

  def hashes(self) -> np.ndarray:
    """uint32[n]: a hash of each record's key that does not change when tars are added."""
    return np.array([zlib.crc32(key) for key in self._index["key"]], np.uint32)

  def __getitem__(self, index: int, /) -> Record:
    """Reads one record; raises BadRecord for bytes that are gone, text that is not UTF-8, or
    features of an unknown form."""
    tar = self._tars[self._index["tar"][index]]
    name = f"{tar}:{self._index['key'][index].decode()}"
    parts: list[bytes | None] = [None, None, None]
    try:
      with open(self.folder / tar, "rb", buffering=0) as file:
        for part in range(3):
          offset, size = self._index["offset"][index, part], self._index["size"][index, part]
          if offset >= 0:
            parts[part] = os.pread(file.fileno(), int(size), int(offset))
            if len(parts[part]) != size:  # type: ignore[arg-type]
              raise BadRecord(f"{name}: the tar ends inside it; was it changed while in use?")
    except OSError as error:
      raise BadRecord(f"{name}: cannot be read: {error}") from None
    image, text, features = parts
    try:
      prompt = (text or b"").decode("utf-8")
    except UnicodeDecodeError as error:
      raise BadRecord(f"{name}: the caption is not UTF-8: {error}") from None
    grid = None if features is None else read_features(features, name)
    return Record(image=image, features=grid, prompt=prompt, kind="caption", name=name)


def read_features(data: bytes, name: str) -> np.ndarray:
  """The bytes of a .npy file as float[h, w, C]; [n, C] must be a square grid in row-major order.

  bfloat16, which numpy stores as two untyped bytes, is recognised.

  Raises:
    BadRecord: not an .npy file, or another type or shape.
  """
  try:
    array = np.load(io.BytesIO(data), allow_pickle=False)
  except (ValueError, OSError, EOFError) as error:
    raise BadRecord(f"{name}: cached features are damaged: {error}") from None
  if array.dtype.kind == "V" and array.dtype.itemsize == 2:
    array = array.view(bfloat16)
  if array.dtype not in (np.float16, np.float32, bfloat16):
    raise BadRecord(f"{name}: cached features are {array.dtype}, not float16, bfloat16 or float32")
  if array.ndim == 2:
    side = round(len(array) ** 0.5)
    if side * side == len(array):
      array = array.reshape(side, side, -1)
  if array.ndim != 3:
    raise BadRecord(f"{name}: cached features have shape {array.shape}, not [h, w, C] or [h*w, C]")
  return array


def index_folder(folder: str | Path, *, partial: bool = False, write: bool = True) -> Columns:
  """The index of a folder; scans only the tars that are new or changed, then writes it.

  Args:
    folder: holds `*.tar`.
    partial: accept truncated tars, and index their whole records.
    write: put the index beside the tars (a temporary name, then a rename).

  Returns:
    tars str[m], stat int64[m, 2] (bytes, modification time in ns), whole bool[m], and per record
    tar int32[n], key bytes[n], offset int64[n, 3], size int64[n, 3] (image, text, features; offset
    -1 where absent).

  Raises:
    FileNotFoundError: no such folder, or no tar in it.
    ValueError: a truncated or damaged tar, or no record at all.
  """
  folder = Path(folder)
  files = sorted(folder.glob("*.tar"))
  if not files:
    raise FileNotFoundError(
      f"{folder}: {'no *.tar in it' if folder.is_dir() else 'no such folder'}"
    )
  stats = {file.name: _stat(file) for file in files}
  old, fresh = _read(folder / INDEX), {}
  if old is not None:
    old_stats = zip(old["tars"].tolist(), old["stat"].tolist(), strict=True)
    fresh = {name: j for j, (name, stat) in enumerate(old_stats) if stats.get(name) == tuple(stat)}
    if list(fresh) == list(stats) and len(old["tars"]) == len(stats):
      return old
  pieces, whole = [], []
  for i, file in enumerate(files):
    if old is not None and file.name in fresh:
      chosen = old["tar"] == fresh[file.name]
      piece = {k: old[k][chosen] for k in ("key", "offset", "size")}
      whole.append(bool(old["whole"][fresh[file.name]]))
    else:
      piece, problem = scan(file)
      whole.append(not problem)
      if problem and not partial:
        raise ValueError(
          f"{file}: {problem}; {len(piece['key'])} records are whole. Fetch it again, or accept "
          f"them with tools/index_tars.py --partial"
        )
    pieces.append(piece | {"tar": np.full(len(piece["key"]), i, np.int32)})
  out = {k: np.concatenate([p[k] for p in pieces]) for k in ("tar", "key", "offset", "size")}
  if not len(out["tar"]):
    raise ValueError(f"{folder}: no record in {len(files)} tars (KEY.txt with KEY.jpg or KEY.npy)")
  tars = {"tars": np.array(list(stats)), "stat": np.array(list(stats.values()), np.int64)}
  out |= tars | {"whole": np.array(whole)}
  if write:
    _write(folder / INDEX, out)
  return out


def scan(file: Path) -> tuple[Columns, str]:
  """The records of one tar (key, offset, size, as in `index_folder`), and what is wrong with it.

  The second value is empty for a good tar. A record that the end of the file cuts is left out.
  """
  found: dict[str, list[tuple[int, int]]] = {}
  end, problem = file.stat().st_size, ""
  skipped = 0
  with open(file, "rb") as stream:
    try:
      for name, offset, size in _members(stream, end):
        key, _, extension = name.rpartition(".")
        part = PARTS.get(extension.lower())
        if part is None or not key:
          skipped += 1
        else:
          found.setdefault(key, [(-1, 0)] * 3)[part] = (offset, size)
    except (tarfile.TarError, OSError) as error:
      refuse_stranger(file)
      problem = f"truncated or damaged ({error})"
  usable = {k: v for k, v in found.items() if v[TEXT][0] >= 0 and max(v[0][0], v[2][0]) >= 0}
  if skipped or len(usable) != len(found):
    text = "%s: %d members of other kinds and %d keys without caption or picture are left out"
    logging.warning(text, file, skipped, len(found) - len(usable))
  table = np.array(list(usable.values()), np.int64).reshape(-1, 3, 2)
  keys = np.array([key.encode() for key in usable], np.bytes_)
  return {"key": keys, "offset": table[..., 0], "size": table[..., 1]}, problem


def _members(stream: BinaryIO, end: int) -> Iterator[tuple[str, int, int]]:
  """(name, offset, size) of the regular members; raises tarfile.ReadError where the tar is cut."""
  position = 0
  with tarfile.open(fileobj=stream, mode="r:") as tar:
    while (member := tar.next()) is not None:
      if member.offset_data + member.size > end:
        raise tarfile.ReadError(f"{member.name} needs byte {member.offset_data + member.size}")
      position = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
      tar.members = []  # type: ignore[attr-defined]  # or it would keep every header
      if member.isreg():
        yield member.name.removeprefix("./"), member.offset_data, member.size
  stream.seek(position)
  if stream.read(_BLOCK) != bytes(_BLOCK):
    raise tarfile.ReadError(f"no end mark at byte {position} of {end}")


def _stat(file: Path) -> tuple[int, int]:
  stat = file.stat()
  return stat.st_size, stat.st_mtime_ns


def _read(path: Path) -> Columns | None:
  """The stored index, or None when it is absent, damaged or of another version (it is remade)."""
  if not path.exists():
    return None
  try:
    with np.load(path, allow_pickle=False) as file:
      out = {name: file[name] for name in file.files}
    if int(out.pop("version")) == VERSION:
      return out
  except (ValueError, OSError, KeyError, EOFError, zlib.error) as error:
    logging.warning("%s: not readable (%s), it is made again", path, error)
  return None


def _write(path: Path, columns: Columns) -> None:
  """Writes to a temporary name, then renames; a folder that cannot be written costs a warning."""
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    with open(temporary, "wb") as file:
      np.savez(file, **columns, version=np.int64(VERSION))  # type: ignore[arg-type]
    temporary.replace(path)
  except OSError as error:
    logging.warning("%s: the index is kept in memory only: %s", path, error)
    with contextlib.suppress(OSError):
      temporary.unlink()
