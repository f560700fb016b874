"""What lies whole on every device of a run, and what is split over fsdp.

A whole leaf is read where it is used; a split one is gathered in every pass over its layer. Frozen
leaves may be stored whole; trained ones are always stored split, and the step may gather the copy
that it computes with once. Knows sizes and devices, no system.
"""

import dataclasses

import jax
import jax.numpy as jnp

from blip3o_jax import chips
from blip3o_jax import sharding
from blip3o_jax.train.distributed import Mesh
from blip3o_jax.train.state import Partition
from blip3o_jax.train.state import bytes_on_device

# Of a device's memory under "auto": for frozen leaves, and for the step's copy of trained ones. The
# rest is for the optimiser, activations and gradients.
FROZEN_SHARE = 0.5
TRAINED_SHARE = 0.125


def place(part: Partition, mesh: jax.sharding.Mesh, cfg: Mesh) -> tuple[Partition, list[str]]:
  """The partition with its leaves placed, and what was chosen and why, a line each.

  Under "auto" a device of unknown memory splits everything.
  """
  if mesh.shape["fsdp"] == 1:
    return part, []
  room, lines = chips.capacity(list(mesh.devices.flat)), []
  frozen = {
    path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding.whole(leaf.sharding))
    for path, leaf in part.frozen.items()
  }
  if frozen:
    size = bytes_on_device(frozen.values())
    whole, why = _choose(cfg.frozen, "mesh.frozen", size, FROZEN_SHARE, room)
    lines.append(f"frozen leaves are {word(mesh, whole)}: {why}")
    part = dataclasses.replace(part, frozen=frozen) if whole else part
  # Where layers compute in bfloat16 what they do not cast is small, and never gathered in float32.
  copies = {
    path: jax.ShapeDtypeStruct(
      leaf.shape,
      jnp.bfloat16 if part.cast else leaf.dtype,
      sharding=sharding.whole(leaf.sharding),
    )
    for path, leaf in part.trained.items()
    if (path in part.cast or not part.cast) and sharding.whole(leaf.sharding) != leaf.sharding
  }
  if copies:
    size = bytes_on_device(copies.values())
    once, why = _choose(cfg.trained, "mesh.trained", size, TRAINED_SHARE, room)
    lines.append(
      f"trained leaves are gathered {'once a step' if once else 'layer by layer'}: {why}"
    )
    if once:
      places = {path: part.trained[path].sharding for path in copies}
      part = dataclasses.replace(part, gathered=places)
  return part, lines


def word(mesh: jax.sharding.Mesh, whole: bool) -> str:
  """How leaves lie, for the log and for a plan."""
  if not whole:
    return "split"
  return "whole on each device" + (" but for tensor" if mesh.shape["tensor"] > 1 else "")


def _choose(how: str, name: str, size: int, share: float, room: int) -> tuple[bool, str]:
  facts = f"{size / 2**30:.2f} GiB a device if whole"
  if how != "auto":
    return how == "whole", f"{facts}, {name}={how}"
  if not room:
    return False, f"{facts}, {name}=auto splits where the memory of a device is not known"
  fits = size <= share * room
  limit = f"{share:.1%} of {room / 2**30:.1f} GiB"
  return fits, f"{facts}, which is {'within' if fits else 'above'} {limit} ({name}=auto)"
