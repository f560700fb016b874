"""PyTorch's pickled weights (`.bin`), weights only; their bytes are mapped, not loaded.

Files of torch before 1.6, which are no archives, are loaded whole.

A pickle can run code when it is loaded. torch's `weights_only` refuses all but tensors and plain
containers, and nothing here is called without the user's word.
"""

import argparse
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path
import pickletools
import re
from typing import Any
import zipfile

import numpy as np

from blip3o_jax import files
from blip3o_jax.weights import safetensors
from blip3o_jax.weights import wrapped
from blip3o_jax.weights.shards import numbered
from blip3o_jax.weights.shards import placed
from blip3o_jax.weights.table import Reader
from blip3o_jax.weights.table import Shape

# Keys under which training scripts keep what is no table of weights.
OTHER = re.compile(
  r"optim|sched|rng|scaler|callback|loops|hyper_parameters|hparams|args|config|param_shapes"
)
DEPTH = 4  # of tables in tables
Named = dict[str, Any]


class Pickles(Reader):
  """{name: shape} of the tensors of pickled files; the counterpart of `safetensors.Tensors`.

  Args:
    paths: the files. index: of several ones, if any.
    weights: the key of the table to take of files that hold several; "" is the model itself.

  Raises:
    ValueError: torch is absent; a file that is damaged, or holds anything but tensors, or several
      tables of which none is known to be the model's; a dtype that is not supported; a name that
      occurs twice; files that disagree with their index.
  """

  def __init__(self, paths: list[Path], index: Path | None = None, weights: str = ""):
    self.index = index
    self.files: dict[Path, dict[str, str]] = {path: {} for path in paths}
    held: dict[Path, dict[str, np.ndarray]] = {}
    for path in paths:
      table, self.chosen, notes = _load(path, weights)
      self.notes = tuple(dict.fromkeys((*self.notes, *notes)))
      held[path] = {str(name): _array(path, str(name), value) for name, value in table.items()}
    listed = dict.fromkeys(paths) if index is None else safetensors.read_index(index)
    where, self.absent = placed(held, listed)
    self._where = {n: (path, list(held[path]).index(n)) for n, path in where.items()}
    self._views = {name: held[path][name] for name, path in where.items()}
    self.hidden = sum(map(len, held.values())) + len(self.absent) - len(where)

  def __getitem__(self, name: str) -> Shape:
    return self._views[name].shape

  def __iter__(self) -> Iterator[str]:
    return iter(self._views)

  def __len__(self) -> int:
    return len(self._views)

  def dtype(self, name: str) -> np.dtype:
    """The stored dtype of a tensor."""
    return self._views[name].dtype

  def where(self, name: str) -> tuple[Path, int]:
    """The file of a tensor, and its place among those of the file."""
    return self._where[name]

  def view(self, name: str) -> np.ndarray:
    """A whole tensor; its bytes come from the file when touched."""
    return self._views[name]


def find(folder: Path, stem: str) -> tuple[list[Path], Path | None]:
  """The pickled weights of a folder and their index; ([], None) where there are none.

  Raises:
    ValueError: a damaged index, or one that leaves the folder. FileNotFoundError: an absent file.
  """
  index = folder / f"{stem}.bin.index.json"
  if index.is_file():
    return list(safetensors.read_index(index)), index
  single = folder / f"{stem}.bin"
  return [single] if single.is_file() else numbered(folder, stem, ".bin"), None


def strings(path: Path) -> set[str]:
  """The strings in a pickled file, the names of its tensors among them; nothing is executed.

  Returns:
    An empty set for a file that is no archive of torch 1.6 or newer.
  """
  try:
    with zipfile.ZipFile(path) as archive:
      name = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
      data = archive.read(name)
    kinds = ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
    found = {str(value) for kind, value, _ in pickletools.genops(data) if kind.name in kinds}
  except (OSError, ValueError, StopIteration, zipfile.BadZipFile):
    return set()
  # Without keys and places of bytes, which stand among the names, versions, file names.
  other = r"storage|little|big|cpu|(cuda|meta)(:\d+)?|\d.*|.*[^\w.].*"
  return {text for text in found if not re.fullmatch(other, text, re.DOTALL)}


def _load(path: Path, weights: str) -> tuple[Named, str, list[str]]:
  """(tensors by name, key of their table where it was asked for, what else there is in words)."""
  files.refuse_stranger(path)
  with open(path, "rb") as handle:
    if handle.read(9)[8:] == b"{":
      raise ValueError(f"{path}: no pickle but safetensors by its content; name it so")
  zipped = zipfile.is_zipfile(path)  # files of torch before 1.6 are none, and cannot be mapped
  try:
    import torch
  except ImportError:
    raise ValueError(f"{path}: reading a pickle needs torch; install blip3o-jax[test]") from None
  try:
    with torch.serialization.safe_globals(_plain()):
      found = torch.load(path, map_location="cpu", mmap=zipped, weights_only=True)
  except Exception as error:  # whatever a damaged or hostile file makes torch raise
    text = " ".join(str(error).split())
    if held := re.search(r"\bGLOBAL (\S+) was not", text):
      text = (
        f"it holds objects ({held[1]}) that are made by running code; save its tensors alone, "
        "torch.save(model.state_dict(), FILE)"
      )
    raise ValueError(f"{path}: not a file of weights alone: {text[:300]}") from None
  if not isinstance(found, dict) or not found:
    raise ValueError(f"{path}: expected a dict of tensors, found {type(found).__name__}")
  tables = _tables(found, torch.Tensor) or {"": found}
  key, notes = _choose(path, tables, weights)
  odd = [
    k for k in found if wrapped.is_average(str(k)) and not any(_under(t, str(k)) for t in tables)
  ]
  notes += [
    f"{path}: {str(k)!r} beside the model has no named tensors, it is left out" for k in odd
  ]
  nested = {k.partition(".")[0] for k in tables if k}
  for name, value in tables[key].items():
    if not isinstance(value, torch.Tensor) and not (key == "" and name in nested):
      raise ValueError(f"{path}: {name!r} is {type(value).__name__}, expected a tensor")
    if isinstance(value, torch.Tensor) and not value.numel():
      raise ValueError(
        f"{path}: {name} is empty, as DeepSpeed leaves parameters that it divided among processes "
        "(ZeRO 3); gather them with its zero_to_fp32.py"
      )
  taken = {k: v for k, v in tables[key].items() if isinstance(v, torch.Tensor)}
  return taken, key if weights and _under(key, weights) else "", notes


def _plain() -> list[Any]:
  """Kinds of values that runs keep beside tensors, and whose making runs no code of the file."""
  multiarray = np._core.multiarray  # type: ignore[attr-defined]
  kinds = [multiarray._reconstruct, multiarray.scalar, np.ndarray, np.dtype, argparse.Namespace]
  return kinds + [type(np.dtype(code)) for code in "?bhilqBHILQefd"]


def _tables(found: Mapping[Any, Any], kind: type, depth: int = DEPTH) -> dict[str, Named]:
  """{keys, joined by dots: table} of all dicts of tensors in a dict; its own is under ""."""
  out: dict[str, Named] = {}
  for key, value in found.items():
    if isinstance(value, dict) and depth and not OTHER.search(str(key).lower()):
      for below, table in _tables(value, kind, depth - 1).items():
        out[f"{key}.{below}" if below else str(key)] = table
  # Beside tables, single numbers are counters of the run.
  if any(isinstance(v, kind) and (not out or getattr(v, "ndim", 0)) for v in found.values()):
    out[""] = dict(found)
  return out


def _choose(path: Path, tables: Mapping[str, Named], weights: str) -> tuple[str, list[str]]:
  """The key of the table to take, and what is left out, in words."""
  told = {key: f"{key!r} ({len(table)} tensors)" for key, table in tables.items()}
  if weights:
    hits = [key for key in tables if _under(key, weights)]
    if len(hits) == 1:
      others = ", ".join(told[key] for key in tables if key != hits[0])
      return hits[0], [f"{path}: {hits[0]!r} is taken" + (f", not {others}" if others else "")]
    if hits:
      raise ValueError(f"{path}: --weights {weights} is any of {', '.join(told[k] for k in hits)}")
  averages = [key for key in tables if wrapped.is_average(key)]
  rest = [key for key in tables if key not in averages] or averages
  known = [key for key in rest if key.split(".")[-1] in wrapped.MODEL or key == ""]
  chosen = rest if len(rest) == 1 else known
  if len(chosen) != 1:
    raise ValueError(
      f"{path}: several tables of tensors, {', '.join(told[key] for key in tables)}; "
      "blip3o convert import --weights NAME takes one"
    )
  key, notes = chosen[0], []
  beside = [told[k] for k in averages if k != key]
  if key in averages:
    notes.append(f"{path}: holds an average alone, {told[key]}")
  elif beside:
    notes.append(f"{path}: {wrapped.left_out(beside)}")
  if more := [told[k] for k in rest if k != key]:
    notes.append(f"{path}: {key!r} is taken, not {', '.join(more)}")
  return key, notes


def _under(key: str, asked: str) -> bool:
  """Whether a table's key is the one asked for, in full or by one of its words."""
  return key == asked or asked in key.split(".")


def _array(path: Path, name: str, value: Any) -> np.ndarray:
  import torch

  kinds = {getattr(torch, str(d)): d for d in safetensors.DTYPES.values() if str(d) != "bool"}
  if value.dtype not in kinds:
    raise ValueError(
      f"{path}: {name} is stored as {value.dtype}, which is not supported: float8 and int8 are "
      "quantised weights"
    )
  dtype = kinds[value.dtype]
  if value.dtype == torch.bfloat16:
    value = value.view(torch.int16)  # numpy knows no bfloat16
  return value.detach().numpy().view(dtype)
