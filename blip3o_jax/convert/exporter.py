"""A converted directory, or a run, to the released layout: `convert.py export`.

The headers of all files are known beforehand, so each tensor is written to its place block by
block, by several threads; nothing is whole in memory but, of a run, one trained leaf at a time.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import json
import math
from pathlib import Path
import shutil
from typing import Any
from typing import Literal

import numpy as np

from blip3o_jax import files
from blip3o_jax import systems
from blip3o_jax import trees
from blip3o_jax.convert import importer
from blip3o_jax.convert import licences
from blip3o_jax.convert import manifest
from blip3o_jax.convert import runs
from blip3o_jax.convert.parameters import Leaves
from blip3o_jax.train import checkpoint
from blip3o_jax.weights import safetensors
from blip3o_jax.weights import store
from blip3o_jax.weights import stream
from blip3o_jax.weights import table

LICENCES = "licences.txt"


@dataclasses.dataclass(frozen=True)
class _Piece:
  """The bytes that one parameter gives to one tensor.

  Attributes:
    file: to write to. tensor: its name. begin: of the tensor in it. code: dtype of the tensor.
    path, number: the parameter, and which one of those of the tensor it is.
  """

  file: Path
  tensor: str
  begin: int
  code: str
  target: table.Target
  path: str
  number: int

  @property
  def rows(self) -> int:
    """How many of the tensor's rows it gives."""
    return self.target.starts[self.number + 1] - self.target.starts[self.number]


def run(
  source: str | Path,
  output: str | Path,
  *,
  weights: Literal["raw", "ema"] = "raw",
  step: int = -1,
  dtype: str = "",
  max_shard_size: str = "",
  tokenizer: str | Path = "",
  say: files.Say = print,
) -> None:
  """Writes the released layout.

  Args:
    source: a converted directory, or that of a run. output: must not exist, or be empty.
    weights, step: of a run: its parameters or their average, of which checkpoint (-1: the latest).
    dtype: of all floating tensors; "" keeps what is stored.
    max_shard_size: "5GB"; "" keeps the files of the source. tokenizer: a directory, for a run that
      started from no model.

  Raises:
    FileNotFoundError, FileExistsError, ValueError, OSError: before anything is written, but for a
      disk that others fill meanwhile and a cast that overflows; nothing is left then.
  """
  code, limit = importer.dtype_code(dtype), manifest.parse_size(max_shard_size)
  source = Path(source)
  words = Path(tokenizer) if tokenizer else None
  place = files.Place(Path(output), source)
  if store.is_converted(source):
    if weights != "raw" or step >= 0:
      raise ValueError(f"{source}: a conversion has no average and no steps; these are a run's")
    found = runs.of_converted(source)
  elif checkpoint.is_run(source):
    found = runs.of_run(source, "ema" if weights == "ema" else "params", step, words)
  elif (source / "config.json").is_file():
    raise ValueError(f"{source}: in the released layout already; there is nothing to export")
  else:
    raise FileNotFoundError(f"{source}: neither a converted directory nor that of a run")
  with place as folder:
    _copy(found, folder)
    written = _plan(found, folder, code, limit)
    place.has_room(sum(n for _, n in written))
    progress = files.Progress("exported", sum(n for _, n in written), say)
    _write([piece for piece, _ in written], found.leaves, progress, found.whole)
    (folder / LICENCES).write_text(_licences(found, say))


def _copy(found: runs.Found, folder: Path) -> None:
  """The files beside the weights: those of the base, and of a run what its system writes of it."""
  base = found.export.base
  if base is not None:
    files.copy_files(base, folder, skip={base / n for n in (store.MANIFEST, store.FOLDER)})
  for source, place in found.export.extra:
    (folder / place).mkdir(parents=True, exist_ok=True)
    for file in source.glob("*.json"):
      shutil.copyfile(file, folder / place / file.name)
  if found.whole:
    system = systems.SYSTEMS[found.system]
    system.write_json(found.cfg, found.export, folder, found.tokenizer)


def _plan(found: runs.Found, folder: Path, asked: str, limit: int) -> list[tuple[_Piece, int]]:
  """Makes all files with their headers, and the index; (piece, bytes) of what is to be written."""
  out: list[tuple[_Piece, int]] = []
  for part in found.export.parts:
    targets = _targets(found, part, folder)
    listed = {n: c for file in part["files"].values() for n, c in file["tensors"].items()}
    told = {
      name: (_code(found, target, listed.get(name, ""), asked), target.shape)
      for name, target in targets.items()
    }
    sheet = manifest.sheet(part, told, limit)
    home = folder / part["folder"]
    home.mkdir(parents=True, exist_ok=True)
    if sheet.index is not None:
      (home / sheet.index[0]).write_text(json.dumps(sheet.index[1], indent=2) + "\n")
    for file in sheet.files:
      header = {n: (safetensors.DTYPES[told[n][0]], told[n][1]) for n in file.tensors}
      begins = safetensors.create(home / file.name, header, file.metadata)
      for name in file.tensors:
        kind, _ = told[name]
        size = math.prod(targets[name].shape) * safetensors.DTYPES[kind].itemsize
        for number, path in enumerate(targets[name].paths):
          piece = _Piece(home / file.name, name, begins[name], kind, targets[name], path, number)
          out.append((piece, size * piece.rows // targets[name].shape[0]))
  return out


def _targets(found: runs.Found, part: Mapping[str, Any], folder: Path) -> dict[str, table.Target]:
  """What the tensors of a part are made of, in the naming that its source had.

  Raises:
    WeightsError: a parameter that the layout has no name for.
  """
  listed = [n for file in part["files"].values() for n in file["tensors"]]
  mine = set(part["modules"])
  params = {p: found.leaves[p] for p in found.leaves if trees.top(p) in mine}
  system = systems.SYSTEMS[part["system"]]
  rows = system.rows_of(part["kind"], dict.fromkeys(listed), folder / part["folder"])
  rows = [r for r in rows if any(p in params for p in r.paths)]
  for path in (p for r in rows if r.zero for p in r.paths):
    whole = tuple(slice(None) for _ in params[path])
    if np.any(found.leaves.read(path, whole)):
      raise table.WeightsError(
        "export", [f"{path} is not zero, and the source's layout has no {path}"]
      )
  out = table.targets(rows, params)
  return out | {
    name: out[other]
    for name, other in part["ties"].items()
    if name in listed and name not in out and other in out
  }


def _code(found: runs.Found, target: table.Target, before: str, asked: str) -> str:
  """The dtype code of a tensor: as asked, as its file had it, or as its parameters are stored."""
  stored = stream.widest({found.leaves.dtype(p) for p in target.paths}, target.paths[0])
  if asked and stream.is_float(stored):
    return asked
  trained = any(path in found.whole for path in target.paths)
  return before if before and not trained else safetensors.NAMES[stored]


def _write(
  work: list[_Piece], leaves: Leaves, progress: files.Progress, whole: frozenset[str]
) -> None:
  """Writes all pieces; parameters that are read whole come one after the other."""
  work = sorted(work, key=lambda p: (p.path in whole, p.path if p.path in whole else ""))

  def copy(piece: _Piece) -> None:
    with open(piece.file, "r+b", buffering=0) as handle:
      for begin, values in _blocks(piece, leaves):
        handle.seek(begin)
        store.write_all(handle, values)
        progress.add(values.nbytes)

  stream.in_parallel(copy, work, alone=bool(whole))
  progress.end()


def _blocks(piece: _Piece, leaves: Leaves) -> Iterator[tuple[int, np.ndarray]]:
  """(place in the file, bytes in PyTorch's layout) of a piece, some rows at a time."""
  target, dtype = piece.target, safetensors.DTYPES[piece.code]
  stacked = target.layer is not None
  shape, perm = leaves[piece.path], target.perm
  split = perm.index(0) + stacked
  first = target.starts[piece.number]
  row_bytes = math.prod(target.shape[1:]) * dtype.itemsize
  step = store.block_shape(shape, dtype.itemsize, stacked=stacked, split=split)[split]
  back = tuple(int(i) for i in np.argsort(perm))
  index = [slice(0, n) for n in shape]
  if target.layer is not None:
    index[0] = slice(target.layer, target.layer + 1)
  for part in stream.tiles(piece.rows, row_bytes, step):
    index[split] = part
    values = leaves.read(piece.path, tuple(index))
    values = stream.transpose(values[0] if stacked else values, back)
    values = np.ascontiguousarray(values)
    if values.dtype != dtype:
      values = table.cast(piece.tensor, values, dtype)
    place = piece.begin + (first + part.start) * row_bytes
    yield place, values.reshape(-1).view(np.uint8)


def _licences(found: runs.Found, say: files.Say) -> str:
  """The text of the licences, a line a component; says those that forbid commercial use."""
  counts: dict[str, int] = {}
  for path in found.leaves:
    name = found.components[trees.top(path)]
    counts[name] = counts.get(name, 0) + math.prod(found.leaves[path])
  system = systems.SYSTEMS[found.system]
  told = {
    name: {"licence": licences.of(system.licence(name, found.cfg, n), found.said.get(name, {}))}
    for name, n in counts.items()
  }
  for line in licences.lines(told):
    say(line)
  return "".join(f"{n}: {licences.label(f['licence'])}\n" for n, f in told.items())
