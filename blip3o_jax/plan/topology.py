"""Slices by any of their names, and their devices as JAX lists them without the chips.

`v5p:4x4x4` is what the compiler takes; clouds sell `v5p-128`, `v5litepod-16` or machines such as
`ct6e-standard-4t` and `a3-highgpu-8g`. Of GPUs nothing is compiled: `h100:8` is a number of them.
"""

from collections.abc import Sequence
import contextlib
import dataclasses
import importlib.machinery
import math
import os
from pathlib import Path
import re
import sys
from typing import Any

import jax
from jax.experimental import topologies

from blip3o_jax import chips

NODE = 8  # GPUs that switches join
ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "trillium": "v6e", "v7x": "tpu7x"}
ALIASES |= {"ironwood": "tpu7x", "tpu7": "tpu7x"}
SQUARES = {
  1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16",
}  # fmt: skip
CUBES = {
  4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8",
  512: "8x8x8", 1024: "8x8x16", 2048: "8x16x16", 4096: "16x16x16",
}  # fmt: skip
MACHINES = {
  "ct4p-hightpu-4t": "v4:2x2x1",
  "ct5lp-hightpu-1t": "v5e:1x1",
  "ct5lp-hightpu-4t": "v5e:2x2",
  "ct5lp-hightpu-8t": "v5e:2x4",
  "ct5p-hightpu-4t": "v5p:2x2x1",
  "ct6e-standard-1t": "v6e:1x1",
  "ct6e-standard-4t": "v6e:2x2",
  "ct6e-standard-8t": "v6e:2x4",
  "tpu7x-standard-4t": "tpu7x:2x2x1",
  **{f"a2-ultragpu-{n}g": f"a100:{n}" for n in (1, 2, 4, 8)},
  "a3-highgpu-8g": "h100:8",
  "a3-megagpu-8g": "h100:8",
  "a3-ultragpu-8g": "h200:8",
  "a4-highgpu-8g": "b200:8",
  "p4de.24xlarge": "a100:8",
  "p5.48xlarge": "h100:8",
  "p5e.48xlarge": "h200:8",
  "p5en.48xlarge": "h200:8",
  "p6-b200.48xlarge": "b200:8",
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """Slices of chips.

  Attributes:
    name: in the compiler's form. chip: of the table; None for this machine's own, if not in it.
    shape: of one slice. slices: how many.
  """

  name: str
  chip: chips.Chip | None
  shape: tuple[int, ...]
  slices: int = 1


def known() -> str:
  """The names, in words, for a message."""
  tpus = [chip.name for chip in chips.CHIPS.values() if chip.is_tpu]
  gpus = [chip.name for chip in chips.CHIPS.values() if not chip.is_tpu]
  return (
    f"NAME:AxB or NAME:AxBxC of {', '.join(tpus)} (v5e:4x4, v5p:4x4x4), the clouds' v4-N, "
    f"v5litepod-N, v5p-N, v6e-N, tpu7x-N, NAME:N of {', '.join(gpus)} (h100:8), a machine "
    f"({', '.join(MACHINES)}), or here"
  )


def resolve(name: str, slices: int = 1) -> Topology:
  """A topology by any of its names; this machine's devices are "here".

  Raises:
    ValueError: no such name, or a number of chips that no slice has; the known ones are listed.
  """
  if slices < 1:
    raise ValueError(f"--slices {slices}: expected at least 1")
  if name == "here":
    if slices > 1:
      raise ValueError("--slices: of this machine's devices there is one slice")
    return Topology(name, chips.of_kind(jax.devices()[0].device_kind), (len(jax.devices()),))
  text = name.strip().lower()
  machine, _, shaped = text.partition(":")
  if machine in MACHINES:
    plain = MACHINES[machine]
    text = f"{plain.partition(':')[0]}:{shaped}" if shaped else plain
  found = re.fullmatch(r"([a-z]+\d*[a-z]*)([:-])(\d+(?:x\d+)*)", text)
  chip = chips.CHIPS.get(ALIASES.get(found[1], found[1])) if found else None
  if found is None or chip is None:
    raise ValueError(f"--topology {name}: unknown; known are {known()}")
  shape = tuple(int(n) for n in found[3].split("x"))
  if chip.is_tpu and len(shape) == 1:
    return _counted(name, chip, shape[0], found[2] == "-", slices)
  if len(shape) != chip.dims or min(shape) < 1:
    wanted = "x".join("ABC"[: chip.dims]) if chip.is_tpu else "N"
    raise ValueError(f"--topology {name}: expected {chip.name}:{wanted}; known are {known()}")
  if not chip.is_tpu and slices > 1:
    raise ValueError(f"--slices {slices}: of TPUs; for GPUs give their number, e.g. {chip.name}:16")
  return Topology(f"{chip.name}:{'x'.join(map(str, shape))}", chip, shape, slices)


def _counted(name: str, chip: chips.Chip, count: int, sold: bool, slices: int) -> Topology:
  """A slice by its number of chips, or, as the cloud sells it, of what it counts."""
  each = chip.cores if sold else 1
  sizes = SQUARES if chip.dims == 2 else CUBES
  if count % each or count // each not in sizes:
    there = ", ".join(f"{chip.name}-{n * chip.cores} ({shape})" for n, shape in sizes.items())
    raise ValueError(f"--topology {name}: no slice has this size; known are {there}")
  shape = sizes[count // each]
  dims = tuple(int(n) for n in shape.split("x"))
  return Topology(f"{chip.name}:{shape}", chip, dims, slices)


def devices(topology: Topology) -> Sequence[Any]:
  """Its devices as JAX lists them. Of GPUs that are not here, as many CPU devices stand in.

  Raises:
    ValueError: libtpu is absent, or does not know the slice.
  """
  if topology.name == "here":
    return jax.devices()
  if topology.chip is not None and not topology.chip.is_tpu:
    return _stand_ins(topology.name, math.prod(topology.shape))
  _find_libtpu()
  # Slices of one chip are no multiple of the usual host of 2 x 2.
  more: dict[str, Any] = {"num_slices": topology.slices} if topology.slices > 1 else {}
  if math.prod(topology.shape) == 1:
    more["chips_per_host_bounds"] = (1, 1, 1)
  if topology.name.startswith("v4:"):  # as its machines list it; JAX lays out no other mesh of it
    more["chip_config_name"] = "megacore"
  try:
    return topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **more).devices
  except Exception as error:  # the compiler's library has no narrower one
    said = " ".join(str(error).split())
    raise ValueError(f"--topology {topology.name}: {said}; known are {known()}") from error


def _find_libtpu() -> None:
  """Lets JAX find the TPU compiler, which commands hide from it on machines without a TPU."""
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  if os.environ.get("TPU_LIBRARY_PATH"):
    return
  found = importlib.machinery.PathFinder.find_spec("libtpu", sys.path)
  if found is None or found.origin is None:
    raise ValueError(
      "--topology: libtpu, the TPU compiler, is not installed; it needs no TPU: "
      "pip install 'blip3o-jax[tpu]'"
    )
  os.environ["TPU_LIBRARY_PATH"] = str(Path(found.origin).with_name("libtpu.so"))


def _stand_ins(name: str, count: int) -> Sequence[Any]:
  if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    # Refused where JAX has counted its devices before; those that are there may do.
    with contextlib.suppress(RuntimeError):
      jax.config.update("jax_num_cpu_devices", count)
  there = jax.devices("cpu")
  if len(there) < count:
    raise ValueError(f"--topology {name}: {len(there)} CPU devices are there to stand in for it")
  return there[:count]
