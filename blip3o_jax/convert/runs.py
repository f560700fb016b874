"""What is exported: a conversion as it is, or a run's leaves on top of what it started from."""

from collections.abc import Mapping
import dataclasses
from pathlib import Path
from typing import Any

from blip3o_jax import config
from blip3o_jax import systems
from blip3o_jax import trees
from blip3o_jax.convert import licences
from blip3o_jax.convert import manifest
from blip3o_jax.convert import source as origins
from blip3o_jax.convert.parameters import Layers
from blip3o_jax.convert.parameters import Leaves
from blip3o_jax.convert.parameters import Run
from blip3o_jax.systems.parts import layout
from blip3o_jax.systems.parts import loading
from blip3o_jax.train import checkpoint
from blip3o_jax.weights import store


@dataclasses.dataclass(frozen=True)
class Found:
  """What is to be exported.

  Attributes:
    system: the name of the one whose layout is written. leaves: all parameters.
    export: the directory that they become. cfg: of the model; None for a part of one.
    whole: paths that are read a whole leaf at a time; a run's, and none of a conversion.
    components: {top-level module: component}. said: {component: what the source that it came
      from declares of licences, see `licences.declared`}. tokenizer: a directory to take one from.
  """

  system: str
  leaves: Leaves
  export: layout.Export
  cfg: Any
  whole: frozenset[str]
  components: Mapping[str, str]
  said: Mapping[str, Mapping[str, str]]
  tokenizer: Path | None = None


def of_converted(directory: Path) -> Found:
  """All of a converted directory.

  Raises:
    ValueError: see `store.read_manifest` and `systems.of`.
  """
  leaves = store.Arrays(directory)
  name = systems.of(directory)
  system, told = systems.SYSTEMS[name], leaves.manifest
  cfg = system.parts(layout.Files(directory)).cfg if manifest.is_whole(told) else None
  export = layout.Export(directory, tuple(told["parts"]))
  components = _stored(told)
  said = dict.fromkeys(components.values(), told.get("licences", {}))
  return Found(name, leaves, export, cfg, frozenset(), components, said)


def of_run(run: Path, item: checkpoint.Item, step: int, tokenizer: Path | None) -> Found:
  """The leaves of a run's checkpoint, on top of the sources that it names.

  Args:
    item: "params" or "ema". step: -1 is the latest. tokenizer: used where no source has one.

  Raises:
    FileNotFoundError: a checkpoint or source that is not there. ValueError: a run of a system that
      has no released layout, or one without a tokenizer.
  """
  name = systems.of(run)
  system, record = systems.SYSTEMS[name], checkpoint.read_record(run, step)
  cfg = config.build(system.Config, record["model"], "the run's model")
  used = [*loading.recorded(run, record), loading.Source(str(run), "run", item, record["step"])]
  layers: list[tuple[Leaves, set[str]]] = []
  whole: set[str] = set()
  bases: list[layout.Base] = []
  components: dict[str, str] = {}
  said: dict[str, Mapping[str, str]] = {}
  for source in used:
    leaves, base, known, declared = _opened(source, name)
    components |= known
    mine = source.modules({trees.top(p) for p in leaves})
    # What a run takes of its model's modules says nothing about networks in folders beside it.
    mine |= {m for p in (base.parts if base else ()) if p["folder"] for m in p["modules"]}
    paths = {p for p in leaves if trees.top(p) in mine}
    layers.append((leaves, paths))
    if source.kind != "run":  # what a run trains stays under the licence that it began with
      said |= dict.fromkeys({known[trees.top(p)] for p in paths}, declared)
    whole = whole | paths if source.kind == "run" else whole - paths
    bases += [] if base is None else [base]
  every = Layers(layers)
  try:
    export = system.exported(cfg, bases, list(every), tokenizer)
  except ValueError as error:
    raise ValueError(f"{run}: {error}") from None
  parts = tuple({"system": name, **part} for part in export.parts)
  kept = Layers([(every, set(every) - export.dropped)])
  export = dataclasses.replace(export, parts=parts)
  return Found(name, kept, export, cfg, frozenset(whole), components, said, tokenizer)


def _opened(
  source: loading.Source, system: str
) -> tuple[Leaves, layout.Base | None, Mapping[str, str], Mapping[str, str]]:
  """The parameters of a source, the directory whose files they are, its components, licences."""
  path = Path(source.path)
  if source.kind == "run":
    item: checkpoint.Item = "ema" if source.item == "ema" else "params"
    return Run(path, item, source.step), None, systems.SYSTEMS[system].COMPONENTS, {}
  if store.is_converted(path):
    arrays = store.Arrays(path)
    told = arrays.manifest
    base = layout.Base(path, tuple(told["parts"]), manifest.is_whole(told))
    return arrays, base, _stored(told), told.get("licences", {})
  found = origins.look(path)
  parts = tuple(
    manifest.entry(found.system, p, set(p.tensors) - set(p.leftovers())) for p in found.parts
  )
  base = layout.Base(path, parts, found.cfg is not None and any(not p["folder"] for p in parts))
  return found.leaves, base, systems.SYSTEMS[found.system].COMPONENTS, licences.declared(path)


def _stored(told: Mapping[str, Any]) -> dict[str, str]:
  """{top-level module: component} of a conversion's manifest."""
  return {module: name for name, c in told["components"].items() for module in c["modules"]}
