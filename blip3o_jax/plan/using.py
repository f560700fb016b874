"""Whether a model fits a device where it is used: parameters by shape, programs by the compiler.

A stage is a program (`systems.parts.stages`). What it needs beside parameters, its inputs, results
and temporaries, is counted by the compiler for two batches and taken to grow evenly with the batch.

    on the device: all parameters, and what the stage that needs most needs beside them
    offloaded: the parameters that a stage reads and what it needs beside them, of the largest stage
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import jax

from blip3o_jax import chips
from blip3o_jax import trees
from blip3o_jax.plan import estimate
from blip3o_jax.plan import stored
from blip3o_jax.train import state

GIB = 2**30
MOST = 256  # pictures at once that are asked for at most
FEW = (1, 4)  # the two batches


@dataclasses.dataclass(frozen=True)
class Stage:
  """A stage of one batch, in bytes on one device.

  Attributes:
    name: of it. reads: the modules whose parameters it reads. parameters: their bytes.
    beside: what it needs beside them. temporaries: those among it. cache: keys and values among it.
  """

  name: str
  reads: tuple[str, ...]
  parameters: int
  beside: int
  temporaries: int
  cache: int


@dataclasses.dataclass(frozen=True)
class Use:
  """A model in one way of storing it.

  Attributes:
    model, dtype: in words. modules: {name: bytes}. stages: {batch: its stages, in one order}.
  """

  model: str
  dtype: str
  modules: Mapping[str, int]
  stages: Mapping[int, Sequence[Stage]]

  def beside(self, index: int, batch: int) -> int:
    """Bytes beside parameters of a stage at any batch, on the line through the known two."""
    small, large = sorted(self.stages)[0], sorted(self.stages)[-1]
    few, many = (self.stages[b][index].beside for b in (small, large))
    slope = (many - few) / (large - small) if large > small else 0.0
    return math.ceil(few + max(slope, 0.0) * (batch - small))

  def needs(self, batch: int, offload: bool) -> tuple[int, str]:
    """(bytes on a device, the stage that needs them)."""
    known = self.stages[min(self.stages)]
    held = sum(self.modules.values())
    found = [
      ((stage.parameters if offload else held) + self.beside(i, batch), stage.name)
      for i, stage in enumerate(known)
    ]
    return max(found)

  def fits(self, room: int, offload: bool) -> int:
    """The largest power of two of pictures at once that fits; 0 for none."""
    batch = 1
    while batch <= MOST and self.needs(batch, offload)[0] <= room:
      batch *= 2
    return batch // 2


def used(
  model: str,
  dtype: str,
  stages: Callable[[int], Iterable[Any]],
  mesh: jax.sharding.Mesh,
  where: str,
  batches: Sequence[int] = FEW,
) -> Use:
  """Compiles the stages of a model.

  Args:
    stages: of a batch, `systems.parts.stages.Stage`s with parameters on `mesh`.
    where: names the devices of the mesh; "here" for this machine's, of which nothing is kept.

  Raises:
    ValueError: a system that has none.
  """
  modules: dict[str, int] = {}
  found: dict[int, list[Stage]] = {}
  for batch in sorted(set(batches)):
    found[batch] = []
    for stage in stages(batch):
      for name, tree in stage.network.params.items():
        modules[name] = state.bytes_on_device(trees.flatten(tree).values())
      found[batch].append(_counted(stage, modules, mesh, where))
  if not modules:
    raise ValueError(f"{model}: of a system that has no verbs, so there is nothing to use")
  return Use(model, dtype, modules, found)


def _counted(stage: Any, modules: Mapping[str, int], mesh: jax.sharding.Mesh, where: str) -> Stage:
  with jax.set_mesh(mesh):
    reads = tuple(sorted(stage.used()))
    held = sum(modules[name] for name in reads)
    lowered = stage.program.lower(*stage.args, **stage.kwargs)
    try:
      memory = stored.compiled(lowered, where, {}).memory
    except jax.errors.JaxRuntimeError as error:
      if (said := estimate.too_much(error)) is None:
        raise
      beside = max(0, math.ceil(said[0]) - held)
      return Stage(stage.name, reads, held, beside, beside, stage.cache)
  # Of the parameters a program may read some, such as no head: its other arguments are counted.
  others = jax.tree.leaves((stage.args[1:], dict(stage.kwargs)))
  given = state.bytes_on_device(x for x in others if isinstance(x, jax.ShapeDtypeStruct))
  beside = given + memory["temp"] + max(0, memory["output"] - memory["alias"])
  return Stage(stage.name, reads, held, beside, memory["temp"], stage.cache)


# As text ------------------------------------------------------------------------------------------


def lines(use: Use, where: str) -> list[str]:
  """Modules and stages of one model."""
  batches = sorted(use.stages)
  out = ["", f"{use.model}, {use.dtype}: parameters {_gib(sum(use.modules.values()))} GiB"]
  out += [f"  {name:<34} {_gib(size):>8} GiB" for name, size in use.modules.items()]
  said = ", ".join(f"{b}" for b in batches)
  out.append(f"stages: parameters, and what is needed beside them for {said} at once ({where})")
  for i, stage in enumerate(use.stages[batches[0]]):
    beside = "  ".join(f"{_gib(use.stages[b][i].beside):>7}" for b in batches)
    cache = f"  cache {_gib(stage.cache)}" if stage.cache else ""
    out.append(f"  {stage.name:<34} {_gib(stage.parameters):>8}  {beside}{cache}")
  return out


def table(uses: Sequence[Use], devices: Sequence[str]) -> list[str]:
  """What fits where, in Markdown: of each model, type and way, the most at once on each device."""
  head = ["model", "stored as", "parameters", "kept", "needs at 1", "of the stage"]
  head += [f"{name} ({_gib(chips.room(name))})" for name in devices]
  out = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
  for use in uses:
    for offload in (False, True):
      size, stage = use.needs(1, offload)
      row = [use.model, use.dtype, _gib(sum(use.modules.values()))]
      row += ["on the host" if offload else "on the device", _gib(size), stage]
      row += [_at_once(use.fits(chips.room(name), offload)) for name in devices]
      out.append("| " + " | ".join(row) + " |")
  return out


def facts(use: Use, devices: Sequence[str]) -> dict[str, Any]:
  """All of it, JSON-ready."""
  return {
    "model": use.model,
    "dtype": use.dtype,
    "modules": dict(use.modules),
    "stages": {b: [dataclasses.asdict(s) for s in found] for b, found in use.stages.items()},
    "needs": {
      "device": dict(zip(("bytes", "stage"), use.needs(1, False), strict=True)),
      "offload": dict(zip(("bytes", "stage"), use.needs(1, True), strict=True)),
    },
    "fits": {
      name: {
        "room": chips.room(name),
        "device": use.fits(chips.room(name), False),
        "offload": use.fits(chips.room(name), True),
      }
      for name in devices
    },
  }


def _gib(size: float) -> str:
  return f"{size / GIB:.2f}"


def _at_once(count: int) -> str:
  return "no" if not count else f"{count} or more" if count >= MOST else str(count)
