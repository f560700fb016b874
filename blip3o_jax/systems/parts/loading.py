"""Where the arrays of a run come from: released weights, earlier runs, or random numbers.

A source is a directory. A run directory stands for the whole model that it trained: the sources
of its frozen leaves, then its own leaves. Among several sources the later one wins.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import hashlib
import os
import re
from typing import Any

from absl import logging
from etils import epath
import jax
import jax.numpy as jnp

from blip3o_jax import trees
from blip3o_jax.train import checkpoint
from blip3o_jax.train.state import Leaves
from blip3o_jax.weights import store

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
      out.append(Source(str(path), "released", item, sha=fingerprint(path)))
  return out


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
    if source.sha and source.sha != fingerprint(path):
      raise ValueError(f"{run}: its frozen weights came from {path}, whose files changed since")
    out.append(source)
  return out


def to_record(sources: Sequence[Source], workdir: epath.PathLike) -> list[dict[str, Any]]:
  """JSON-ready facts of sources, for the record of a checkpoint."""
  base = epath.Path(workdir).absolute()
  return [
    {**dataclasses.asdict(s), "relative": os.path.relpath(s.path, str(base))} for s in sources
  ]


def fingerprint(directory: epath.PathLike) -> str:
  """The hash of a converted directory's parameters, as its record has it.

  Of any other directory, a hash of the names and sizes of all files and of its JSON files' text.
  """
  root = epath.Path(directory)
  if store.is_converted(str(root)):
    return store.fingerprint(store.read_record(str(root)))
  digest = hashlib.sha256()
  for file in _files(root):
    digest.update(f"{file.relative_to(root)} {file.stat().length}\n".encode())
    if file.suffix == ".json":
      digest.update(file.read_bytes())
  return digest.hexdigest()


def _files(directory: epath.Path) -> Iterator[epath.Path]:
  """All files below a directory, in the order of their names."""
  for path in sorted(directory.iterdir(), key=str):
    if path.is_dir():
      yield from _files(path)
    else:
      yield path


def fill(
  system: Any,
  model_cfg: Any,
  sources: Sequence[Source],
  leaves: Leaves,
  model: Leaves,
) -> tuple[dict[str, jax.Array], Leaves]:
  """Fills leaves from sources, the later one first: ({path: array}, the leaves left over).

  Args:
    leaves: what is wanted. model: all leaves of the model.

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
      item: checkpoint.Item = "ema" if source.item == "ema" else "params"
      held = checkpoint.held(source.path, item=item, step=source.step)
      if not held & set(model):
        raise ValueError(f"{source}: holds no parameter of this model, but {sorted(held)[:5]} ...")
      found = checkpoint.restore_params(source.path, left, item=item, step=source.step)
    else:
      # A strict reader accounts for whole networks, so it is asked for whole modules.
      may = source.modules({path.partition("/")[0] for path in model})
      modules = {path.partition("/")[0] for path in left} & may
      whole = {path: leaf for path, leaf in model.items() if path.partition("/")[0] in modules}
      found = system.load_params(model_cfg, source.path, whole)
    found = {path: value for path, value in found.items() if path in left}
    faults = trees.diff({path: left[path] for path in found}, found)
    if faults:
      raise ValueError(f"{source} does not fit the model:\n  " + "\n  ".join(faults))
    logging.info("parameters: %d leaves from %s", len(found), source)
    for path, value in found.items():
      filled[path] = _place(value, left.pop(path))
  return filled, left


def _place(value: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
  """The value in the dtype and sharding of `leaf`; unchanged when it has them."""
  if isinstance(value, jax.Array) and value.sharding == leaf.sharding and value.dtype == leaf.dtype:
    return value
  return jax.device_put(jnp.asarray(value, leaf.dtype), leaf.sharding)
