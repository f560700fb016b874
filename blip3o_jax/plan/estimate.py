"""Figures of a plan: memory, operations, time by the compiler's own cycles, the roofline, the run.

Cycles become seconds by a matmul of 8192^3 in bfloat16 compiled for the same chip, which is taken
to run at 0.9 of the chip's peak; transfers that nothing hides are added. All of it is a model:
nothing here has run.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from blip3o_jax import chips
from blip3o_jax import compiling
from blip3o_jax import sharding
from blip3o_jax.plan import stored
from blip3o_jax.plan import topology
from blip3o_jax.plan import wires
from blip3o_jax.plan.program import Program
from blip3o_jax.train import placement
from blip3o_jax.train import state as train_state
from blip3o_jax.train.setup import Setup

SIDE, SHARE = 8192, 0.9
_TOO_MUCH = (
  re.compile(r"\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)"),
  re.compile(r"[Uu]sed ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm"),
)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Asked:
  """What a plan is asked beside the config.

  Attributes:
    where: the topology. bucket: tokens of a prompt. samples: of the whole run. layers: of each
      network, if it is a quick look; 0: as the config says. again: compile even if it was before.
    small: what else would need less memory, in words, or "".
  """

  where: topology.Topology
  bucket: int
  samples: int
  layers: int = 0
  again: bool = False
  small: str = ""


class TooLarge(ValueError):
  """A step that a chip has no room for."""


def seconds_a_cycle(devices: Sequence[Any], where: str, again: bool = False) -> float:
  """What a cycle of the compiler takes on one of these devices; 0 where it gives no cycles."""
  place = SingleDeviceSharding(devices[0])
  x = jax.ShapeDtypeStruct((SIDE, SIDE), jnp.bfloat16, sharding=place)
  done = stored.compiled(jax.jit(jnp.dot).lower(x, x), f"one of {where}", {}, again=again)
  cycles = Program(done.text).cycles
  peak = chips.peak(devices)
  return 2 * SIDE**3 / (SHARE * peak) / cycles if cycles and peak else 0.0


def compiled(setup: Setup, asked: Asked) -> stored.Compiled:
  """The step of a run, compiled for its mesh.

  Raises:
    TooLarge: it does not fit; by how much, and what would.
  """
  where = f"{asked.where.name} x {asked.where.slices}"
  where = "here" if asked.where.name == "here" else where
  try:
    lowered = setup.lower_step(asked.bucket)
    return stored.compiled(lowered, where, setup.options, again=asked.again)
  except jax.errors.JaxRuntimeError as error:
    if (found := too_much(error)) is None:
      raise
    raise TooLarge(_too_large(setup, asked, *found)) from None


def too_much(error: Exception) -> tuple[float, float] | None:
  """(bytes that a program needs, those that there are) of a compiler's refusal, if it is one."""
  found = next((m for p in _TOO_MUCH if (m := p.search(str(error)))), None)
  return (
    None
    if found is None
    else (
      float(found[1]) * _UNITS[found[2]],
      float(found[3]) * _UNITS[found[4]],
    )
  )


def _too_large(setup: Setup, asked: Asked, needed: float, there: float) -> str:
  """The refusal; sizes on one device."""
  devices = list(setup.mesh.devices.flat)
  each = chips.devices_a_chip(devices)
  held = train_state.bytes_on_device(leaves(setup))
  batch = setup.run.train.batch * each / len(devices)
  fits = math.floor(batch * (there - held) / max(needed - held, 1))
  unit = "GiB a chip" if each == 1 else f"GiB on one of the {each} devices of a chip"
  ways = [f"about {fits} samples a chip (--batch-per-chip {fits})"] if 1 <= fits < batch else []
  ways += [asked.small] if asked.small else []
  ways.append("more chips" if held < there else "more chips or a mesh with a larger fsdp")
  return (
    f"{asked.where.name}: the step does not fit: it needs {needed / GIB:.2f} of {there / GIB:.2f} "
    f"{unit}, {(needed - there) / GIB:.2f} too many; state and frozen weights take "
    f"{held / GIB:.2f}, {batch:g} samples a chip the rest; what would fit: {', or '.join(ways)}"
  )


def leaves(setup: Setup) -> list[jax.ShapeDtypeStruct]:
  """The train state and the frozen leaves, with shardings."""
  return [*jax.tree.leaves(setup.abstract), *setup.part.frozen.values()]


def held_whole(setup: Setup) -> int:
  """Bytes of state and frozen leaves that every device holds whole, on one device."""
  if setup.mesh.size == 1:
    return 0
  whole = [x for x in leaves(setup) if x.sharding and x.sharding.is_fully_replicated]
  return train_state.bytes_on_device(whole)


def figures(setup: Setup, asked: Asked, done: stored.Compiled, cycle: float) -> dict[str, Any]:
  """All figures of a compiled step, JSON-ready; None where the chip or its cycles are not known.

  Args:
    cycle: seconds of one, of `seconds_a_cycle`.
  """
  devices, chip = list(setup.mesh.devices.flat), asked.where.chip
  each = chips.devices_a_chip(devices)
  program = Program(done.text)
  operations, moved = program.operations(), wires.totals(program)
  total_operations = sum(operations.values()) * len(devices)
  memory, batch = done.memory, setup.run.train.batch
  own = memory["output"] - memory["alias"]
  whole = memory["argument"] + memory["temp"] + max(own, 0)
  capacity = chips.capacity(devices)
  out = _head(setup, asked) | {
    "bytes_per_chip": {
      "arguments": memory["argument"] * each,
      "temporaries": memory["temp"] * each,
      "output": memory["output"] * each,
      "total": whole * each,
      "capacity": capacity * each or None,
      "headroom": (capacity - whole) * each if capacity else None,
      "host": memory["host_argument"] * each,
    },
    "flops_per_step": total_operations,
    "flops_per_sample": total_operations / batch,
    "collective_bytes": {name: found["bytes"] for name, found in moved.items()},
    "collective_counts": {name: found["count"] for name, found in moved.items()},
    "compile_seconds": done.seconds,
    "compiled_before": done.made,
  }
  terms: dict[str, float] = {}
  time, seconds, basis = wires.Time(), None, "the chip is not in the table: no time"
  if chip is not None:
    time = wires.timeline(program, wires.Wires(chip, devices), cycle)
    terms = _roofline(chip, devices, program, operations, time)
  if chip is not None and cycle:
    seconds, basis = time.compute + time.exposed, "the compiler's cycles, and transfers waited for"
    if memory["host_argument"]:
      basis += "; what crosses to the host and back is not counted"
    out["step_seconds_by_cycles"] = {"compute": time.compute, "exposed": time.exposed}
  elif terms:
    seconds, basis = max(terms.values()), "a bound: the roofline's longest term, no estimate"
  return out | timed(setup, asked, terms, seconds, basis)


def _head(setup: Setup, asked: Asked) -> dict[str, Any]:
  devices, batch = list(setup.mesh.devices.flat), setup.run.train.batch
  each, chip = chips.devices_a_chip(devices), asked.where.chip
  count = len(devices) // each
  analytic = setup.flops(setup.batch_spec(asked.bucket))
  return {
    "topology": asked.where.name,
    "slices": asked.where.slices,
    "chips": count,
    "devices": len(devices),
    "mesh": dict(setup.mesh.shape),
    "batch": batch,
    "batch_per_chip": batch / count if batch % count else batch // count,
    "prompt_bucket": asked.bucket,
    "layers": asked.layers,
    "flops_per_sample_analytic": analytic / batch,
    "replicated_bytes": held_whole(setup) * each,
    "frozen": _frozen(setup, chips.capacity(devices) or int(chip.usable if chip else 0)),
  }


def _frozen(setup: Setup, capacity: int) -> dict[str, Any]:
  """How the frozen leaves lie, in the words of `train.placement`.

  Returns:
    {"placement": in words, "whole": whether all are, "bytes": of a device if they are or were,
    "capacity": of a device}.
  """
  frozen = setup.part.frozen.values()
  wholly = [
    jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.whole(x.sharding)) for x in frozen
  ]
  size, here = (train_state.bytes_on_device(leaves) for leaves in (wholly, frozen))
  how = placement.word(setup.mesh, size == here)
  return {"placement": how, "whole": size == here, "bytes": size, "capacity": capacity or None}


def _roofline(
  chip: chips.Chip,
  devices: Sequence[Any],
  program: Program,
  operations: Mapping[str, int],
  time: wires.Time,
) -> dict[str, float]:
  """Seconds of each term if it were alone and at its peak."""
  rate = chip.bandwidth / chips.devices_a_chip(devices)
  terms = {
    "compute": sum(n / chips.peak(devices, kind) for kind, n in operations.items()),
    "memory": program.memory_bytes() / rate,
    "interconnect": time.wires,
  }
  several = len({getattr(d, "slice_index", None) for d in devices}) > 1
  return terms | ({"network": time.network} if several else {})


def timed(
  setup: Setup, asked: Asked, terms: Mapping[str, float], seconds: float | None, basis: str
) -> dict[str, Any]:
  """Figures that follow from the time of a step; None without it."""
  devices, batch, chip = list(setup.mesh.devices.flat), setup.run.train.batch, asked.where.chip
  count = len(devices) // chips.devices_a_chip(devices)
  operations = setup.flops(setup.batch_spec(asked.bucket))
  peak = chip.bf16 * count if chip is not None else 0.0
  days = asked.samples / batch * seconds / 86400 if seconds else None
  return {
    "step_seconds": seconds,
    "step_seconds_basis": basis,
    "step_seconds_by_term": {
      name: terms.get(name) for name in ("compute", "memory", "interconnect", *terms)
    },
    "limited_by": max(terms, key=lambda name: terms[name]) if terms else None,
    "samples_per_second_per_chip": batch / seconds / count if seconds else None,
    "mfu": operations / (seconds * peak) if seconds and peak else None,
    "run_samples": asked.samples,
    "run_days": days,
    "run_chip_hours": days * 24 * count if days else None,
  }


def analytic(setup: Setup, asked: Asked) -> dict[str, Any]:
  """Figures of GPUs that are not here, from counts alone: nothing is compiled, time is a bound.

  The matrix units do the model's own operations, the memory is read for the weights in each pass
  and for the update, and weights are gathered twice and gradients summed over the wires.
  """
  chip = asked.where.chip
  if chip is None:
    raise ValueError(f"{asked.where.name}: not in the table of chips")
  n, part = setup.mesh.size, setup.part
  held = train_state.bytes_on_device(leaves(setup))
  cut = setup.mesh.size // setup.mesh.shape["replica"]
  trained = sum(math.prod(leaf.shape) for leaf in part.trained.values())
  frozen = sum(math.prod(leaf.shape) for leaf in part.frozen.values())
  spread = sum(
    math.prod(x.shape)
    for x in (*part.trained.values(), *part.frozen.values())
    if x.sharding and not x.sharding.is_fully_replicated
  )
  sent = 2 * 2 * spread * (cut - 1) / cut + 2 * 2 * trained * (n - 1) / n
  near = n <= topology.NODE
  terms = {
    "compute": setup.flops(setup.batch_spec(asked.bucket)) / (chip.bf16 * n),
    "memory": (2 * 2 * (trained + frozen) + 2 * held) / chip.bandwidth,
    "interconnect": sent / (chip.link * chip.links if near else chip.network),
  }
  basis = "a bound from counts alone: nothing was compiled"
  out = _head(setup, asked) | {
    "bytes_per_chip": {
      "arguments": held,
      "temporaries": None,
      "total": None,
      "capacity": int(chip.usable),
      "headroom": None,
      "host": train_state.bytes_on_host(leaves(setup)),
    },
    "flops_per_step": None,
    "flops_per_sample": None,
    "collective_bytes": {},
    "collective_counts": {},
    "compile_seconds": None,
    "compiled_before": "",
  }
  if held > chip.usable:
    raise TooLarge(
      f"{asked.where.name}: state and frozen weights alone take {held / GIB:.2f} of "
      f"{chip.usable / GIB:.2f} GiB a chip; what would fit: more chips or a mesh with a larger fsdp"
    )
  return out | timed(setup, asked, terms, max(terms.values()), basis)


def table(setup: Setup) -> list[str]:
  """The table of parameters, what lies whole on each device and why, and the compiler's options."""
  chosen = f"compiler options: {compiling.described(setup.options)}"
  return [*train_state.table(setup.part), *setup.placed, chosen]
