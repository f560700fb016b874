"""A folder of WebDataset tars as a source with random access: an index of byte offsets beside them.

Members `KEY.jpg|jpeg|png|webp`, `KEY.txt` (UTF-8 caption) and `KEY.npy` (cached features); a record
is a KEY with a caption and a picture or features (spec 8). Nothing is unpacked.
"""

from collections.abc import Mapping
import contextlib
import hashlib
import io
import os
from pathlib import Path
import tarfile
import zlib

from absl import logging
from ml_dtypes import bfloat16
import numpy as np

from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.records import Part
from blip3o_jax.data.records import Record
from blip3o_jax.data.sources import members
from blip3o_jax.data.sources.members import TEXT
from blip3o_jax.data.sources.members import Columns
from blip3o_jax.data.sources.members import Place

INDEX = "index.npz"
VERSION = 2
PER_RECORD = ("key", "offset", "size", "sparse")
COUNTED = (*members.LEFT, "again")


class TarSource:
  """The records of the tars of a folder, in the order of file names and then of the tar.

  Args:
    folder: holds `*.tar`; an index that is absent or stale (by size and time) is made first.
    partial: index tars that are cut short too, with their whole records, instead of raising. An
      index that was made so is read with a warning.

  Raises:
    FileNotFoundError: no such folder, or no tar in it.
    ValueError: a tar that is truncated or damaged, or no tar.
  """

  def __init__(self, folder: str | Path, *, partial: bool = False):
    self.folder = Path(folder)
    self._index = index_folder(self.folder, partial=partial)
    self._tars = self._index["tars"].tolist()
    self._stats = [tuple(stat) for stat in self._index["stat"].tolist()]
    for tar, whole in zip(self._tars, self._index["whole"], strict=True):
      if not whole:
        logging.warning("%s: truncated; only its whole records are used", self.folder / tar)
    told = _told(dict(zip(COUNTED, self._index["left"].sum(0).tolist(), strict=True)))
    if told:
      logging.warning("%s: %s", self.folder, told)

  def __len__(self) -> int:
    return len(self._index["tar"])

  def lengths(self) -> np.ndarray:
    """Bytes of each caption, int64[n]."""
    return self._index["size"][:, TEXT].astype(np.int64)

  def hashes(self) -> np.ndarray:
    """uint32[n]: a hash of each record's key that does not change when tars are added."""
    return np.array([zlib.crc32(key) for key in self._index["key"]], np.uint32)

  def parts(self) -> list[Part]:
    """The tars, by what their records are called and where they lie."""
    index, out = self._index, []
    bounds = np.searchsorted(index["tar"], np.arange(len(self._tars) + 1)).tolist()
    for tar, first, end in zip(self._tars, bounds[:-1], bounds[1:], strict=True):
      digest = hashlib.blake2b(b"\0".join(index["key"][first:end].tolist()), digest_size=16)
      for name in ("offset", "size"):
        digest.update(index[name][first:end].astype("<i8").tobytes())
      out.append(Part(tar, end - first, digest.hexdigest()))
    return out

  def places(self) -> np.ndarray:
    """Each record's place in its parts, int64[n]."""
    return np.arange(len(self))

  def __getitem__(self, index: int, /) -> Record:
    """Reads one record; raises BadRecord for a tar that was changed, text that is not UTF-8, or
    features of an unknown form."""
    number = self._index["tar"][index]
    tar, key = self._tars[number], self._index["key"][index]
    name = f"{tar}:{_printable(key.decode('utf-8', 'backslashreplace'))}"
    parts: list[bytes | None] = [None, None, None]
    try:
      with open(self.folder / tar, "rb", buffering=0) as file:
        found = os.fstat(file.fileno())
        changed = (found.st_size, found.st_mtime_ns) != self._stats[number]
        for part in range(3):
          offset, size, sparse = (self._index[c][index, part] for c in ("offset", "size", "sparse"))
          if offset >= 0 and not changed:
            parts[part] = members.read(file, Place(int(offset), int(size), bool(sparse)))
            changed = len(parts[part]) != size  # type: ignore[arg-type]
        if changed:
          raise BadRecord(f"{name}: the tar was changed while in use; start the run again")
    except (OSError, tarfile.TarError) as error:
      raise BadRecord(f"{name}: cannot be read: {error}") from None
    image, text, features = parts
    try:
      prompt = members.caption(text or b"")
    except UnicodeDecodeError as error:
      kind = " but UTF-16" if text and text[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
      raise BadRecord(f"{name}: the caption is not UTF-8{kind}: {error}") from None
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
    tars str[m], stat int64[m, 2] (bytes, modification time in ns), whole bool[m], left
    int64[m, len(COUNTED)] (what is no record, and records whose key stands in the tar before), and
    per record tar int32[n], key bytes[n], offset int64[n, 3], size int64[n, 3] (image, text,
    features; offset -1 where absent), sparse bool[n, 3] (a member with holes, at its header).

  Raises:
    FileNotFoundError: no such folder, or no tar in it.
    ValueError: a truncated or damaged tar, a file that is no tar, or no record at all.
  """
  folder = Path(folder)
  files = _tars(folder)
  stats = {file.name: _stat(file) for file in files}
  old, fresh = _read(folder / INDEX), {}
  if old is not None:
    old_stats = zip(old["tars"].tolist(), old["stat"].tolist(), strict=True)
    fresh = {name: j for j, (name, stat) in enumerate(old_stats) if stats.get(name) == tuple(stat)}
    if list(fresh) == list(stats) and len(old["tars"]) == len(stats):
      return old
  pieces, whole, left = [], [], []
  examples: dict[str, str] = {}
  for i, file in enumerate(files):
    if old is not None and file.name in fresh:
      j = fresh[file.name]
      piece = {k: old[k][old["tar"] == j] for k in PER_RECORD}
      whole.append(bool(old["whole"][j]))
      left.append(old["left"][j].tolist())
    else:
      piece, counts, first, problem = members.scan(file)
      examples = first | examples
      whole.append(not problem)
      left.append([counts[kind] for kind in COUNTED])
      if problem and not partial:
        raise ValueError(
          f"{file}: {problem}; {len(piece['key'])} records are whole. Fetch it again, or accept "
          f"them with blip3o index --partial"
        )
      if told := _told(counts, first):
        logging.warning("%s: %s", file, told)
    pieces.append(piece | {"tar": np.full(len(piece["key"]), i, np.int32)})
  out = {k: np.concatenate([p[k] for p in pieces]) for k in ("tar", *PER_RECORD)}
  if not len(out["tar"]):
    told = _told(dict(zip(COUNTED, np.sum(left, 0).tolist(), strict=True)), examples)
    needs = "KEY.txt with KEY.jpg or KEY.npy"
    raise ValueError(f"{folder}: no record in {len(files)} tars ({needs}); {told or 'empty'}")
  tars = {"tars": np.array(list(stats)), "stat": np.array(list(stats.values()), np.int64)}
  out |= tars | {"whole": np.array(whole), "left": np.array(left, np.int64)}
  if write:
    _write(folder / INDEX, out)
  return out


def summary(index: Columns) -> str:
  """An index in a line: records, and what of."""
  images, _, features = (index["offset"] >= 0).sum(0)
  return (
    f"{len(index['tar'])} records in {len(index['tars'])} tars: {images} with an image, "
    f"{features} with cached features"
  )


def _tars(folder: Path) -> list[Path]:
  """The tars of a folder, in the order of their names; raises FileNotFoundError for none."""
  if folder.is_file():
    raise FileNotFoundError(f"{folder}: a file; expected the folder that holds it")
  if not folder.is_dir():
    raise FileNotFoundError(f"{folder}: no such folder")
  # A Mac leaves ._NAME.tar beside a tar on disks of others.
  files = sorted(file for file in folder.glob("*.tar") if not file.name.startswith("."))
  if files:
    return files
  hint = ""
  if packed := sorted(f.name for ending in ("gz", "tgz") for f in folder.glob(f"*.{ending}")):
    hint = f"; undo the compression of {packed[0]} and others with gunzip"
  elif below := sorted(folder.glob("*/*.tar")):
    hint = f"; name the folder that holds them, such as {below[0].parent}"
  elif split := sorted(f.name for f in folder.glob("*.tar.*")):
    hint = f"; join parts such as {split[0]} with cat"
  raise FileNotFoundError(f"{folder}: no *.tar in it{hint}")


def _told(counts: Mapping[str, int], first: Mapping[str, str] | None = None) -> str:
  """What was counted, in words; "" where there is nothing to say. first: an example of each."""

  def words(kind: str, what: str) -> str:
    example = f", the first {_printable(first[kind])}" if first and kind in first else ""
    return f"{counts[kind]} {what}{example}"

  left = [words(kind, what) for kind, what in members.LEFT.items() if counts[kind]]
  out = [f"left out: {'; '.join(left)}"] if left else []
  if counts["again"]:
    out.append(words("again", "records have a key that stands in their tar more than once"))
  return ". ".join(out)


def _printable(name: str) -> str:
  """A name with what cannot be printed as escapes."""
  if name.isprintable():
    return name
  return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


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
