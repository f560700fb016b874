"""Directories of safetensors as one mapping of lazily read tensors. Knows no network."""

from collections.abc import Mapping
import json
import math
from pathlib import Path
import struct
from typing import Any

from ml_dtypes import bfloat16
import numpy as np
from safetensors import SafetensorError
from safetensors import safe_open
from safetensors.numpy import save_file

from blip3o_jax import files
from blip3o_jax.weights.shards import VARIANTS
from blip3o_jax.weights.shards import numbered
from blip3o_jax.weights.shards import placed
from blip3o_jax.weights.table import Index
from blip3o_jax.weights.table import Reader
from blip3o_jax.weights.table import Shape

DTYPES = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(bfloat16),
  "I64": np.dtype(np.int64),
  "I32": np.dtype(np.int32),
  "U8": np.dtype(np.uint8),
  "BOOL": np.dtype(np.bool_),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Tensors(Reader):
  """{name: shape} of the safetensors files of a directory (or one file); reads slices on demand.

  Args:
    path: a `.safetensors` file, or a directory that holds one, or one index with its shards.
    stem: of the file name in a directory: "model", or "diffusion_pytorch_model".

  Attributes:
    files: {file: its own metadata}, in the order of the index. index: the index file, if any.

  Raises:
    FileNotFoundError: no such file, or an index that names an absent shard.
    ValueError: a truncated or damaged file, an index that disagrees with its shards or leaves the
      directory, a dtype that is not supported.
  """

  def __init__(self, path: str | Path, stem: str = "model"):
    self.path = Path(path)
    self.index, shards = _shards(self.path, stem)
    self.files: dict[Path, dict[str, str]] = {}
    self._open: dict[Path, Any] = {}
    self._mapped: dict[Path, np.memmap] = {}
    headers: dict[Path, dict[str, dict[str, Any]]] = {}
    for file in shards:
      headers[file], self.files[file] = _read_header(file)
    self._where, self.absent = placed(headers, shards)
    self._meta = {name: headers[file][name] for name, file in self._where.items()}
    self.hidden = sum(map(len, headers.values())) + len(self.absent) - len(self._where)

  def __getitem__(self, name: str) -> Shape:
    return tuple(self._meta[name]["shape"])

  def __iter__(self) -> Any:
    return iter(self._meta)

  def __len__(self) -> int:
    return len(self._meta)

  def dtype(self, name: str) -> np.dtype:
    """The stored dtype of a tensor."""
    return DTYPES[self._meta[name]["dtype"]]

  def read(self, name: str, index: Index | None = None) -> np.ndarray:
    """One slice of a tensor (all of it by default) as a numpy array in its stored dtype."""
    file = self._where[name]
    if file not in self._open:
      self._open[file] = safe_open(file, "numpy")
    part = self._open[file].get_slice(name)
    if index is None or not index:
      return self._open[file].get_tensor(name)
    return part[index]

  def where(self, name: str) -> tuple[Path, int]:
    """The file of a tensor, and where in it the bytes begin."""
    file = self._where[name]
    if file not in self._mapped:
      self._mapped[file] = np.memmap(file, np.uint8, "r")
    length = int(self._mapped[file][:8].view("<u8")[0])
    return file, 8 + length + int(self._meta[name]["data_offsets"][0])

  def view(self, name: str) -> np.ndarray:
    """A whole tensor, read-only; its bytes are mapped and come from the file when touched."""
    file, begin = self.where(name)
    shape, dtype = self[name], self.dtype(name)
    return np.ndarray(shape, dtype, self._mapped[file], begin)


def create(
  file: Path, tensors: Mapping[str, tuple[np.dtype, Shape]], metadata: Mapping[str, str]
) -> dict[str, int]:
  """Makes a safetensors file with its header and room for the bytes: {name: where they begin}.

  Args:
    tensors: {name: (dtype, shape)} in the order of their bytes; these are written afterwards, in
      any order. metadata: of the file, may be empty.
  """
  header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
  end = 0
  for name, (dtype, shape) in tensors.items():
    begin, end = end, end + math.prod(shape) * dtype.itemsize
    header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
  text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
  text += b" " * (-len(text) % 8)
  with open(file, "wb") as handle:
    handle.write(struct.pack("<Q", len(text)) + text)
    handle.truncate(8 + len(text) + end)
  return {name: 8 + len(text) + header[name]["data_offsets"][0] for name in tensors}


def save(
  tensors: Mapping[str, np.ndarray], file: Path, metadata: Mapping[str, str] | None = None
) -> None:
  """Writes a safetensors file, readable by whom the umask says; the library's own is mode 0600."""
  mode = files.usual_mode(file)
  save_file(dict(tensors), file, metadata=None if metadata is None else dict(metadata))
  file.chmod(mode)


def _read_header(file: Path) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
  """The header of a file, {name: {"dtype", "shape", "data_offsets"}}, and its own metadata.

  Raises:
    ValueError: a file whose length does not fit its header, or a dtype that is not supported.
  """
  size = file.stat().st_size
  files.refuse_stranger(file)
  with open(file, "rb") as handle:
    head = handle.read(8)
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
    if head.startswith(b"PK\x03\x04"):
      raise ValueError(
        f"{file}: no safetensors but a file of torch.save; name it pytorch_model.bin and read it "
        "with blip3o convert import --allow-pickle"
      )
    if not 0 < length <= size - 8:
      raise ValueError(f"{file}: truncated, or not a safetensors file ({size} bytes)")
    try:
      header = json.loads(handle.read(length))
    except ValueError as error:
      raise ValueError(f"{file}: damaged safetensors header: {error}") from None
  if not isinstance(header, dict):
    raise ValueError(f"{file}: damaged safetensors header: {type(header).__name__}, not a table")
  metadata = header.pop("__metadata__", None) or {}
  for name, meta in header.items():
    if not isinstance(meta, dict) or not {"dtype", "shape", "data_offsets"} <= set(meta):
      raise ValueError(f"{file}: damaged safetensors header: {name} is {meta!r}")
  end = max((m["data_offsets"][1] for m in header.values()), default=0)
  if end + 8 + length != size:
    raise ValueError(f"{file}: truncated, {size} bytes where its header needs {end + 8 + length}")
  for name, meta in header.items():
    if meta["dtype"] not in DTYPES:
      raise ValueError(
        f"{file}: {name} is stored as {meta['dtype']}, which is not supported: float8 and int8 are "
        f"quantised weights; fetch the checkpoint in {', '.join(list(DTYPES)[1:4])}"
      )
  try:
    safe_open(file, "numpy")
  except SafetensorError as error:
    raise ValueError(f"{file}: damaged: {error}") from None
  return header, metadata


def index_map(index: Path) -> dict[str, str]:
  """{tensor: file name} of an index of shards.

  Raises:
    ValueError: a damaged index, or one that leaves the directory.
  """
  try:
    weight_map = dict(json.loads(index.read_text())["weight_map"])
  except (ValueError, KeyError, TypeError) as error:
    kind = "safetensors" if ".safetensors." in index.name else "pickle"
    files.refuse_stranger(index)
    raise ValueError(f"{index}: not a {kind} index: {error!r}") from None
  for name, file in weight_map.items():
    if not isinstance(file, str) or Path(file).name != file or file == "..":
      raise ValueError(f"{index}: {name} points outside the directory, to {file!r}")
  return weight_map


def read_index(index: Path) -> dict[Path, list[str]]:
  """{file: names of its tensors} of an index of shards, in its order; all files are there.

  Raises:
    ValueError: a damaged index, or one that leaves the directory. FileNotFoundError: absent files.
  """
  out: dict[Path, list[str]] = {}
  for name, file in index_map(index).items():
    out.setdefault(index.parent / file, []).append(name)
  absent = [f.name for f in out if not f.exists()]
  if absent:
    raise FileNotFoundError(f"{index} names files that are absent: {', '.join(absent)}")
  return out


def _shards(path: Path, stem: str) -> tuple[Path | None, Mapping[Path, list[str] | None]]:
  """The index, and {file: names that the index puts there (None without an index)}."""
  if path.is_file():
    return None, {path: None}
  if not path.is_dir():
    raise FileNotFoundError(f"{path}: no such file or directory")
  indices = [path / f"{stem}.safetensors.index{v}.json" for v in VARIANTS]
  singles = [path / f"{stem}{v}.safetensors" for v in VARIANTS]
  whole = next((file for file in singles if file.exists()), None)
  for index in (i for i in indices if i.exists()):
    if whole is None or _counts(index, whole):
      return index, read_index(index)
  if whole is not None:
    return None, {whole: None}
  if found := numbered(path, stem):
    return None, dict.fromkeys(found)
  raise FileNotFoundError(f"{path}: holds neither {stem}.safetensors nor {indices[0].name}")


def _counts(index: Path, single: Path) -> bool:
  """Whether an index beside a single file is what to go by: it names that file.

  One that was left behind, whose shards are all gone, is not.

  Raises:
    ValueError: two sets of weights. Loaders differ in which of them they take.
  """
  listed = set(index_map(index).values())
  if single.name in listed:
    return True
  if any((index.parent / file).exists() for file in listed):
    raise ValueError(
      f"{index.parent}: two sets of weights, {single.name} and the shards of {index.name}; "
      "remove one of them"
    )
  return False
