"""Where the arrays of a run come from: released weights, earlier runs, or random numbers.

A source is a directory. A run directory stands for the whole model that it trained: the sources
of its frozen leaves, then its own leaves. Among several sources the later one wins.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import hashlib
import os
from pathlib import Path
import re
from typing import Any
from typing import Protocol

from absl import logging
from etils import epath
from flax import nnx
import jax
import numpy as np

from blip3o_jax import config
from blip3o_jax import layers
from blip3o_jax import trees
from blip3o_jax.systems.parts import layout
from blip3o_jax.systems.parts import opened
from blip3o_jax.systems.parts import others
from blip3o_jax.systems.parts import quantising
from blip3o_jax.systems.parts.network import Network
from blip3o_jax.systems.parts.outline import Leaves
from blip3o_jax.systems.parts.outline import outline
from blip3o_jax.train import checkpoint
from blip3o_jax.weights import hashes
from blip3o_jax.weights import store
from blip3o_jax.weights.table import Index
from blip3o_jax.weights.table import WeightsError

ONLY = "only="


@dataclasses.dataclass(frozen=True)
class Source:
  """One directory that fills leaves, as the record of a checkpoint keeps it.

  Attributes:
    path: absolute. kind: "run" or "released". item, step: of a run's checkpoint; the item of
      released weights is "" or "only=MODULE+MODULE", the top-level modules that are taken.
    sha: of a converted directory's parameters; of any other's file names, sizes and JSON files;
      "" for a run.
  """

  path: str
  kind: str
  item: str = ""
  step: int = -1
  sha: str = ""

  def __str__(self) -> str:
    if self.kind == "run":
      return f"{self.path} ({self.item} of step {self.step})"
    return f"{self.path} ({self.item})" if self.item else self.path

  def modules(self, present: set[str]) -> set[str]:
    """Those of the top-level modules `present` in a model that this source may fill."""
    if self.kind == "run" or not self.item:
      return present
    asked = set(self.item.removeprefix(ONLY).split("+"))
    if asked - present:
      logging.warning("%s: the model has no %s", self, ", ".join(sorted(asked - present)))
    return asked & present


def resolve(entries: Sequence[str]) -> list[Source]:
  """Sources of `init_from` entries, each run preceded by the sources of its frozen leaves.

  Args:
    entries: a directory each; a run directory may end in "#ema" for the average of its leaves, and
      in "#params@500" or "#ema@500" for the checkpoint of a step (the latest without), one of
      released weights in "#only=backbone+encoder" to take these modules alone.

  Raises:
    FileNotFoundError: a directory that does not exist, or a run without a complete checkpoint, or
      without the one asked for.
    ValueError: an unknown ending, or a source of a run that changed since.
  """
  out: list[Source] = []
  for entry in entries:
    name, _, item = entry.partition("#")
    path = epath.Path(name).absolute()
    step = -1
    if found := re.fullmatch(r"(params|ema)@(\d+)", item):
      item, step = found[1], int(found[2])
    if item not in ("", "params", "ema") and not item.startswith(ONLY):
      raise ValueError(
        f"init_from {entry!r}: expected nothing, #params, #ema or #ema@STEP after the directory of "
        "a run, nothing or #only=MODULE+MODULE after that of released weights"
      )
    if not path.is_dir():
      raise FileNotFoundError(f"init_from {entry!r}: no such directory")
    if checkpoint.is_run(path):
      if item.startswith(ONLY):
        raise ValueError(f"init_from {entry!r}: a run directory is taken whole, without #{item}")
      record = checkpoint.read_record(path, step)
      out += recorded(path, record)
      out.append(Source(str(path), "run", item or "params", int(record["step"])))
    elif item and not item.startswith(ONLY):
      raise ValueError(f"init_from {entry!r}: {path} is no run directory, so it has no #{item}")
    else:
      others.check(layout.Files(str(path)))
      out.append(Source(str(path), "released", item, sha=fingerprint(path)))
  return out


def check(entries: Sequence[str]) -> None:
  """Refuses those of `init_from` that are here and are no use (`others.check`: ValueError)."""
  for entry in entries:
    path = entry.partition("#")[0]
    if Path(path).is_dir():
      others.check(layout.Files(path))


def recorded(run: epath.PathLike, record: dict[str, Any]) -> list[Source]:
  """The sources that a checkpoint of `run` names, looked up again where they are now.

  Raises:
    FileNotFoundError: a directory that is gone (both as recorded and relative to the run).
    ValueError: a released directory whose files changed since.
  """
  out = []
  for facts in record["sources"]:
    near = epath.Path(os.path.normpath(epath.Path(run).absolute() / facts["relative"]))
    path = next((p for p in (epath.Path(facts["path"]), near) if p.is_dir()), None)
    if path is None:
      raise FileNotFoundError(f"{run}: its frozen weights came from {facts['path']}, which is gone")
    fields = {k: v for k, v in facts.items() if k != "relative"}
    source = Source(**{**fields, "path": str(path)})
    if source.sha and source.sha != (now := fingerprint(path)):
      why = hashes.difference(source.sha, now)
      raise ValueError(f"{run}: its frozen weights came from {path}, {why}")
    out.append(source)
  return out


def to_record(sources: Sequence[Source], workdir: epath.PathLike) -> list[dict[str, Any]]:
  """JSON-ready facts of sources, for the record of a checkpoint."""
  base = epath.Path(workdir).absolute()
  return [
    {**dataclasses.asdict(s), "relative": os.path.relpath(s.path, str(base))} for s in sources
  ]


def fingerprint(directory: epath.PathLike) -> str:
  """The hash of a converted directory's parameters, as its manifest has it.

  Of any other directory, a hash of the names and sizes of all files and of its JSON files' text.
  """
  root = epath.Path(directory)
  if store.is_converted(str(root)):
    return store.fingerprint(store.read_manifest(str(root)))
  digest = hashlib.sha256()
  for file in _files(root):
    digest.update(f"{file.relative_to(root)} {file.stat().length}\n".encode())
    if file.suffix == ".json":
      digest.update(file.read_bytes())
  return digest.hexdigest()


def _files(directory: epath.Path) -> Iterator[epath.Path]:
  """All files below a directory, in the order of their names, but hidden ones.

  Those are of whatever fetched or shows the folder, and change although no weight does.
  """
  for path in sorted(directory.iterdir(), key=str):
    if path.name.startswith("."):
      continue
    if path.is_dir():
      yield from _files(path)
    else:
      yield path


class Builds(layout.Describes, Protocol):
  """What filling a model asks of a system, or of a part that is a network of its own."""

  def build(self, cfg: Any, rngs: nnx.Rngs) -> nnx.Module:
    """The model, with random parameters."""

  def stored_as(self, cfg: Any) -> Mapping[str, str]:
    """See `systems.System`."""


def load(
  system: Builds,
  cfg: Any,
  entries: str | Path | Sequence[str],
  *,
  dtype: layers.Dtype | None,
  keep: Sequence[str] = (),
  only: Sequence[str] = (),
  mesh: jax.sharding.Mesh | None = None,
  host: bool = False,
) -> Network:
  """A system's model with the parameters of directories: released, converted, or of runs.

  Args:
    system: a system's module, or a part with the same functions. cfg: of the model.
    entries: a directory, or several as `init_from` has them, the later one first.
    dtype: of the arrays; None is as the model declares them. keep: top-level modules that stay so.
    only: top-level modules to fill; `params` holds these alone, so the whole does not merge.
    mesh: onto whose devices they go, by the model's axes; else to the default device.
    host: into the memory of the host beside these.

  Raises:
    FileNotFoundError: a directory or file that is not there.
    ValueError: what does not fit, all of a directory at once; parameters that nothing fills.
  """
  graphdef, leaves = outline(
    lambda rngs: system.build(cfg, rngs), dtype=dtype, keep=keep, mesh=mesh, host=host
  )
  wanted = {p: v for p, v in leaves.items() if not only or trees.top(p) in only}
  names = [str(entries)] if isinstance(entries, str | Path) else list(entries)
  filled, left = fill(system, cfg, resolve(names), wanted, leaves)
  if left:
    shown = f"nothing fills {len(left)} parameters, first {next(iter(left))}"
    if seen := sorted(layout.Files(names[-1]).names())[:2]:
      shown += f"; the tensors of the files are named {', '.join(seen)}, ..."
    raise ValueError(f"{', '.join(names)}: {shown}")
  return Network(graphdef, trees.unflatten({path: filled[path] for path in wanted}))


def fill(
  system: Builds,
  cfg: Any,
  sources: Sequence[Source],
  leaves: Leaves,
  model: Leaves,
) -> tuple[dict[str, jax.Array], Leaves]:
  """Fills leaves from sources, the later one first: ({path: array}, the leaves left over).

  Args:
    leaves: what is wanted, with shardings where the arrays should be sharded; each process then
      reads only the bytes of its own shards. model: all leaves of the model.

  Raises:
    ValueError: a leaf of the wrong shape (all of a source are listed), or a run that holds no leaf
      of the model at all.
  """
  left = dict(leaves)
  filled: dict[str, jax.Array] = {}
  for source in reversed(sources):
    if not left:
      break
    if source.kind == "run":
      found = _from_run(source, left, model)
    else:
      # A strict reader accounts for whole networks, so it is asked for whole modules.
      may = source.modules({trees.top(path) for path in model})
      modules = {trees.top(path) for path in left} & may
      whole = {path: leaf for path, leaf in model.items() if trees.top(path) in modules}
      found = _from_directory(system, cfg, source.path, whole, left)
    logging.info("parameters: %d leaves from %s", len(found), source)
    for path, value in found.items():
      del left[path]
      filled[path] = value
  return filled, left


def _from_run(source: Source, left: Leaves, model: Leaves) -> dict[str, jax.Array]:
  """Those of the leaves `left` that a run trained."""
  item: checkpoint.Item = "ema" if source.item == "ema" else "params"
  held = checkpoint.held(source.path, item=item, step=source.step)
  if not held & set(model):
    raise ValueError(f"{source}: holds no parameter of this model, but {sorted(held)[:5]} ...")
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  wanted = {
    path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or here)
    for path, leaf in quantising.floats(left).items()
  }
  found = checkpoint.restore_params(source.path, wanted, item=item, step=source.step)
  found = quantising.quantise(found, left)
  # A leaf without a place must not be bound to one device, or it meets no sharded array.
  return {
    path: value if left[path].sharding is not None else jax.device_put(np.asarray(value))
    for path, value in found.items()
  }


def _from_directory(
  system: Builds, cfg: Any, directory: str, whole: Leaves, left: Leaves
) -> dict[str, jax.Array]:
  """Those of the leaves `left` whose module a released or converted directory holds.

  Args:
    whole: all leaves of the modules that are asked for.

  Raises:
    WeightsError: all that is absent or of another shape.
  """
  if not whole:
    return {}
  names = system.stored_as(cfg)
  stored = {path: _renamed(path, names) for path in whole}
  floats = quantising.floats(whole)
  wanted = {stored[path]: tuple(leaf.shape) for path, leaf in floats.items()}
  arrays: store.Arrays | opened.Released
  if store.is_converted(directory):
    arrays = store.Arrays(directory, {trees.top(path) for path in wanted})
    parts, present = arrays.manifest["parts"], {trees.top(path) for path in arrays}
    mine = [p for p in floats if trees.top(stored[p]) in present and layout.fills(parts, stored[p])]
    found = {
      p: jax.ShapeDtypeStruct(arrays[stored[p]], leaf.dtype)
      for p, leaf in floats.items()
      if p in mine and stored[p] in arrays
    }
    if wrong := trees.diff({p: floats[p] for p in mine}, found, limit=len(mine)):
      raise WeightsError(directory, wrong)
  else:
    arrays = opened.fitting(system, directory, wanted)
  reader = quantising.Reader(arrays, {stored[path]: leaf for path, leaf in whole.items()})
  return {p: _array(reader, stored[p], left[p]) for p in whole if p in left and stored[p] in reader}


def _renamed(path: str, names: Mapping[str, str]) -> str:
  module, slash, rest = path.partition("/")
  return f"{names.get(module, module)}{slash}{rest}"


def _array(arrays: quantising.Reader, path: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
  """A stored parameter as `leaf` wants it; a process reads the bytes of its own shards alone."""
  seen: dict[str, np.ndarray] = {}  # jax asks once a device, also for copies of one shard

  def shard(index: Index | None) -> np.ndarray:
    index = (slice(None),) * len(leaf.shape) if index is None else index
    if str(index) not in seen:
      # A copy: what jax keeps must not be a mapped file.
      seen[str(index)] = np.array(arrays.read(path, index), dtype=leaf.dtype)
    return seen[str(index)]

  if leaf.sharding is None:
    return jax.device_put(shard(None))  # `asarray` compiles a program for each shape
  return jax.make_array_from_callback(leaf.shape, leaf.sharding, shard)


# A directory as a whole --------------------------------------------------------------------------


def config_of(system: Any, directory: str | Path) -> Any:
  """The Config of a directory: of a run that of its record, else what a system's files say.

  Raises:
    FileNotFoundError: no checkpoint, or no config.json. ValueError: files that say nothing usable.
  """
  if checkpoint.is_run(directory):
    record = checkpoint.read_record(directory)
    return config.build(system.Config, record["model"], f"{directory}: the run's model")
  found = system.parts(layout.Files(directory)).cfg
  if found is None:
    raise FileNotFoundError(f"{directory}: no config.json of a whole model")
  return found


def home_of(directory: str | Path, wanted: str) -> Path:
  """Where a file or folder of a model's directory is: there, or for a run in one of its sources.

  Args:
    wanted: such as "tokenizer.json"; of several sources that have it the last one counts.

  Raises:
    FileNotFoundError: a run whose sources all lack it, by name.
  """
  if not checkpoint.is_run(directory):
    return Path(directory)
  used = [s for s in resolve([str(directory)]) if s.kind != "run"]
  for source in reversed(used):
    if (Path(source.path) / wanted).exists():
      return Path(source.path)
  where = ", ".join(map(str, used)) or "it has none"
  raise FileNotFoundError(f"{directory}: no {wanted} in what this run started from ({where})")


def tokenizer_of(directory: str | Path) -> Path:
  """Where the tokenizer of a model is: as `home_of`, or for a run from nothing where it was given.

  Raises:
    FileNotFoundError: see `home_of`; a tokenizer that is gone.
  """
  try:
    return home_of(directory, "tokenizer.json")
  except FileNotFoundError:
    given = checkpoint.read_record(directory).get("tokenizer", "")
    if not given:
      raise
    if not Path(given).is_dir():
      raise FileNotFoundError(f"{directory}: its tokenizer was {given}, which is gone") from None
    return Path(given)
