"""Converted weights on disk: orbax items, written and read block by block. Knows no network.

A converted directory holds a manifest, `converted.json`, and `weights/<component>/`: one orbax
checkpoint (the `PyTreeCheckpointHandler` kind) of a nested dict for each component, a zarr array
for each parameter. Everything else in it is files of the source as they were.

Orbax itself writes whole trees: it wants every array of an item in memory, and its OCDBT files a
new manifest for whatever is added later. Its older layout, one zarr folder a parameter, it still
reads, and there an uncompressed block is a file of plain bytes. So blocks are written here one at a
time, in any order and by several threads, and a reader maps a block and touches the bytes it wants.
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import itertools
import json
import math
from pathlib import Path
import threading
from typing import Any

from ml_dtypes import bfloat16
import numpy as np

from blip3o_jax.weights import hashes
from blip3o_jax.weights.table import Index
from blip3o_jax.weights.table import Shape

FORMAT_VERSION = 1
MANIFEST = "converted.json"
FOLDER = "weights"
# Large enough that files are few, small enough that some of them in memory are nothing.
BLOCK_BYTES = 32 * 2**20
# Of a call that writes. For more at once the kernel takes pages of 2 MB, which a virtual machine
# hands back to its host when they lie idle: to get them again costs a second a gigabyte.
PIECE_BYTES = 2**18


def is_converted(directory: str | Path) -> bool:
  """Whether a directory is a finished conversion."""
  return (Path(directory) / MANIFEST).is_file()


def read_manifest(directory: str | Path) -> dict[str, Any]:
  """The manifest of a converted directory.

  Raises:
    FileNotFoundError: no manifest. ValueError: a damaged one, or one of a newer format.
  """
  path = Path(directory) / MANIFEST
  try:
    manifest = json.loads(path.read_text())
    version = int(manifest["format_version"])
    parts = {name: str(facts["fingerprint"]) for name, facts in manifest["components"].items()}
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(f"{path}: not the manifest of a conversion: {error!r}") from None
  if version > FORMAT_VERSION:
    raise ValueError(
      f"{path}: format_version {version} is newer than {FORMAT_VERSION}, the newest that this "
      "package reads; use a newer blip3o_jax"
    )
  absent = [name for name in parts if not (path.parent / FOLDER / name / "_METADATA").is_file()]
  if absent:
    raise ValueError(f"{path}: names components that are absent: {', '.join(absent)}")
  return manifest


def fingerprint(manifest: Mapping[str, Any]) -> str:
  """One hash of all components' bytes, from a manifest, of the algorithm that theirs are of."""
  parts = sorted((name, facts["fingerprint"]) for name, facts in manifest["components"].items())
  return hashes.named(hashes.algorithm(parts[0][1]), json.dumps(parts).encode())


def block_shape(shape: Shape, itemsize: int, *, stacked: bool, split: int) -> Shape:
  """How an array is cut: one layer a block, and the dim `split` where that is still too large."""
  out = [1, *shape[1:]] if stacked else list(shape)
  size = math.prod(out) * itemsize
  if size > BLOCK_BYTES:
    out[split] = -(-out[split] // -(-size // BLOCK_BYTES))
  return tuple(out)


def _zarray(shape: Shape, block: Shape, dtype: np.dtype) -> dict[str, Any]:
  """The text of a parameter's `.zarray`."""
  return {
    "chunks": list(block),
    "compressor": None,
    "dimension_separator": ".",
    "dtype": "bfloat16" if dtype == bfloat16 else dtype.str,
    "fill_value": None,
    "filters": None,
    "order": "C",
    "shape": list(shape),
    "zarr_format": 2,
  }


class Writer:
  """Writes one component; whole only after `close`.

  Args:
    folder: is made; must not exist.
  """

  def __init__(self, folder: Path):
    self.folder = folder
    self._arrays: dict[str, tuple[Shape, Shape, np.dtype]] = {}
    folder.mkdir(parents=True)

  def add(self, path: str, shape: Shape, dtype: np.dtype, block: Shape) -> None:
    """Declares a parameter; each of its blocks must then be written once."""
    self._arrays[path] = (shape, block, dtype)

  def write(self, path: str, start: Shape, values: np.ndarray) -> None:
    """Writes the block that begins at `start`; one at the end of a dim may be shorter."""
    shape, block, dtype = self._arrays[path]
    if values.shape != block:  # zarr stores whole blocks
      whole = np.zeros(block, dtype)
      whole[tuple(slice(n) for n in values.shape)] = values
      values = whole
    home = self.folder / _name(path)
    home.mkdir(exist_ok=True)  # not in `add`, which one thread calls a thousand times
    if not any(start):
      (home / ".zarray").write_text(json.dumps(_zarray(shape, block, dtype)))
    file = home / _key(tuple(s // b for s, b in zip(start, block, strict=True)))
    with open(file, "wb", buffering=0) as handle:
      write_all(handle, np.ascontiguousarray(values, dtype).reshape(-1).view(np.uint8))

  def close(self) -> None:
    """Writes the metadata by which orbax knows the arrays.

    Raises:
      ValueError: a parameter of which a block was not written.
    """
    for path, (shape, block, _) in self._arrays.items():
      count = math.prod(-(-n // b) for n, b in zip(shape, block, strict=True))
      found = sum(1 for _ in (self.folder / _name(path)).glob("[0-9]*"))
      if found != count:
        raise ValueError(f"{self.folder}: {path} has {found} of {count} blocks")
    leaves = {}
    for path in self._arrays:
      keys = tuple(path.split("/"))
      leaves[str(keys)] = {
        "key_metadata": [{"key": key, "key_type": 2} for key in keys],
        # As numpy, so that a reader that names no devices gets arrays all the same.
        "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False},
      }
    metadata = {
      "tree_metadata": leaves,
      "use_ocdbt": False,
      "use_zarr3": False,
      "store_array_data_equal_to_fill_value": True,
      "custom_metadata": None,
    }
    (self.folder / "_METADATA").write_text(json.dumps(metadata))


class Arrays(Mapping[str, Shape]):
  """{path: shape} of the parameters of a converted directory; reads slices on demand.

  Args:
    directory: a finished conversion. modules: top-level ones to look into; all by default.

  Attributes:
    manifest: of the directory.

  Raises:
    FileNotFoundError, ValueError: see `read_manifest`; metadata that is damaged, blocks that are
      absent, by file.
  """

  def __init__(self, directory: str | Path, modules: Iterable[str] | None = None):
    self.directory = Path(directory)
    self.manifest = read_manifest(directory)
    asked = None if modules is None else set(modules)
    self._homes: dict[str, Path] = {}
    self._held = threading.local()  # the block that a thread looked into last
    self._facts: dict[str, tuple[Shape, Shape, np.dtype]] = {}
    for name in self.manifest["components"]:
      self._open(self.directory / FOLDER / name, asked)
    lost = [str(file.relative_to(self.directory)) for file in self._files() if not file.is_file()]
    if lost:
      more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
      raise ValueError(
        f"{directory}: the conversion is incomplete, it lacks {', '.join(lost[:5])}{more}; "
        "copy it again"
      )

  def _files(self) -> Iterator[Path]:
    """The files of all blocks."""
    for path, (shape, block, _) in self._facts.items():
      counts = (range(-(-n // b)) for n, b in zip(shape, block, strict=True))
      yield from (self._homes[path] / _key(cell) for cell in itertools.product(*counts))

  def _open(self, folder: Path, asked: set[str] | None) -> None:
    file = folder / "_METADATA"
    try:
      for leaf in json.loads(file.read_text())["tree_metadata"].values():
        keys = [str(k["key"]) for k in leaf["key_metadata"]]
        if asked is not None and keys[0] not in asked:
          continue
        path = "/".join(keys)
        file = folder / _name(path) / ".zarray"
        facts = json.loads(file.read_text())
        dtype = np.dtype(bfloat16 if facts["dtype"] == "bfloat16" else facts["dtype"])
        self._facts[path] = tuple(facts["shape"]), tuple(facts["chunks"]), dtype
        self._homes[path] = file.parent
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise ValueError(f"{file}: absent or damaged: {error!r}") from None

  def __getitem__(self, path: str) -> Shape:
    return self._facts[path][0]

  def __iter__(self) -> Iterator[str]:
    return iter(self._facts)

  def __len__(self) -> int:
    return len(self._facts)

  def dtype(self, path: str) -> np.dtype:
    """The stored dtype of a parameter."""
    return self._facts[path][2]

  def block(self, path: str) -> Shape:
    """How a parameter is cut into files."""
    return self._facts[path][1]

  def read(self, path: str, index: Index) -> np.ndarray:
    """One slice of a parameter; only its bytes are touched.

    Raises:
      ValueError: a block that is absent or of the wrong size, by file.
    """
    shape, block, dtype = self._facts[path]
    spans = [s.indices(n)[:2] for s, n in zip(index, shape, strict=True)]
    out = np.empty([max(stop - start, 0) for start, stop in spans], dtype)
    if not out.size:
      return out
    cells = [
      range(start // b, -(-stop // b)) for (start, stop), b in zip(spans, block, strict=True)
    ]
    for cell in itertools.product(*cells):
      ours, theirs = [], []
      for n, b, (start, stop) in zip(cell, block, spans, strict=True):
        low, high = max(n * b, start), min((n + 1) * b, stop)
        ours.append(slice(low - start, high - start))
        theirs.append(slice(low - n * b, high - n * b))
      out[tuple(ours)] = self._map(path, cell)[tuple(theirs)]
    return out

  def _map(self, path: str, cell: Shape) -> np.ndarray:
    if getattr(self._held, "key", None) == (path, cell):
      return self._held.values
    _, block, dtype = self._facts[path]
    file = self._homes[path] / _key(cell)
    wanted = math.prod(block) * dtype.itemsize
    size = file.stat().st_size if file.is_file() else -1
    if size != wanted:
      what = "absent" if size < 0 else f"truncated or damaged, {size} bytes where {wanted} belong"
      raise ValueError(f"{file}: {what}; a block of the parameter {path}")
    found = np.memmap(file, dtype, "r", shape=block) if block else np.fromfile(file, dtype)[0]
    self._held.key, self._held.values = (path, cell), found
    return found


def _name(path: str) -> str:
  """The folder of a parameter, as orbax names it."""
  return path.replace("/", ".")


def _key(cell: Shape) -> str:
  """The file of a block, as zarr names it."""
  return ".".join(map(str, cell)) or "0"


def write_all(handle: Any, data: np.ndarray) -> None:
  """Writes all bytes, some at a time; a call may write fewer than it was given."""
  left = memoryview(data)  # type: ignore[arg-type]
  while left:
    left = left[handle.write(left[:PIECE_BYTES]) :]
