"""How a model lies in memory while it is used: over a mesh, on the host, in int8, tile by tile.

mesh: each device holds its shard of every parameter, by the rules of training
offload: parameters stay in the host's memory; those modules that a program reads come to the
  device before it runs, and leave when another program reads others
int8: linear layers of blocks keep their kernels in int8 (`quantized`), activations stay
tile: the autoencoder decodes larger pictures in overlapping tiles
"""

from collections.abc import Callable
from collections.abc import Sequence
import contextlib
import dataclasses
from pathlib import Path
import threading
from typing import Any
from typing import TypeVar

from flax import nnx
import jax

from blip3o_jax import layers
from blip3o_jax import quantized
from blip3o_jax import sharding
from blip3o_jax import trees
from blip3o_jax.systems.parts import loading
from blip3o_jax.systems.parts import outline as outlines
from blip3o_jax.systems.parts.network import Network

R = TypeVar("R")
LEAST = 8  # latent cells a side of a tile


@dataclasses.dataclass(frozen=True)
class Memory:
  """See above; the defaults hold everything as stored on the default device.

  Attributes:
    mesh: of this process's devices, see `sharding.make_mesh`. offload, int8: whether.
    tile: pixels a side above which the autoencoder decodes in tiles of that side; 0 is never.
  """

  mesh: jax.sharding.Mesh | None = None
  offload: bool = False
  int8: bool = False
  tile: int = 0

  def __post_init__(self) -> None:
    if self.tile < 0:
      raise ValueError(f"tile {self.tile}: expected pixels a side, or 0 for none")
    if self.mesh is not None and tuple(self.mesh.axis_names) != sharding.MESH_AXES:
      axes = ", ".join(sharding.MESH_AXES)
      raise ValueError(f"mesh of the axes {self.mesh.axis_names}: expected {axes}")
    if self.mesh is not None:  # else no device is asked for: the default stands in signatures
      here = jax.process_index()
      if any(d.process_index != here for d in self.mesh.devices.flat):
        raise ValueError("mesh: has devices of other processes; a model is used by one process")

  def around(self) -> contextlib.AbstractContextManager[Any]:
    """What programs run in."""
    return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)


def asked(mesh: jax.sharding.Mesh | str | None, *, offload: bool, int8: bool, tile: int) -> Memory:
  """As a person says it: the mesh may be a text, see `mesh_of`."""
  return Memory(mesh_of(mesh) if isinstance(mesh, str) else mesh, offload, int8, tile)


def mesh_of(text: str) -> jax.sharding.Mesh:
  """The mesh of this process's devices that a text such as "fsdp=4,tensor=2" describes.

  Raises:
    ValueError: not a mesh; another number of devices.
  """
  sizes = sharding.axes_of(text)
  try:
    return sharding.make_mesh(**sizes, devices=jax.local_devices())
  except ValueError as error:
    raise ValueError(str(error).replace("config.mesh", f"mesh {text}")) from None


class Shelf:
  """The modules of a model's networks that lie on the device: those of the last program.

  Safe to call from several threads; what one of them runs is held until it has ended.
  """

  def __init__(self, memory: Memory):
    self.memory = memory
    self._held: dict[tuple[int, str], trees.Tree] = {}
    self._lock = threading.Lock()

  def around(self) -> contextlib.AbstractContextManager[Any]:
    """See `network.Home`."""
    return self.memory.around()

  def ready(
    self, network: Network, args: tuple[Any, ...], used: Callable[[], frozenset[str]]
  ) -> tuple[Network, tuple[Any, ...]]:
    """See `network.Home`: what the program reads on the device, nothing else there."""
    if not self.memory.offload:
      return network, args
    # Whatever still runs reads what leaves now.
    jax.block_until_ready(args)
    wanted = {(id(network), name) for name in used()}
    with self._lock:
      for key in self._held.keys() - wanted:
        del self._held[key]
      for key in wanted - self._held.keys():
        self._held[key] = jax.tree.map(_to_device, network.params[key[1]])
      here = {
        name: self._held.get((id(network), name), own) for name, own in network.params.items()
      }
    return network.with_params(here), args

  def left(self, result: R) -> R:
    """See `network.Home`: as it is."""
    return result


def _to_device(x: jax.Array) -> jax.Array:
  return jax.device_put(x, x.sharding.with_memory_kind("device"))


class Fitted:
  """A system, or a part that is a network of its own, that builds its model for a `Memory`.

  Args:
    int8: top-level modules whose blocks are to lie in it.
  """

  def __init__(self, system: loading.Builds, memory: Memory, int8: Sequence[str] = ()):
    self._system, self._memory, self._int8 = system, memory, tuple(int8)

  def __getattr__(self, name: str) -> Any:
    return getattr(self._system, name)

  def build(self, cfg: Any, rngs: nnx.Rngs) -> nnx.Module:
    """The model, see `loading.Builds`."""
    model = self._system.build(cfg, rngs)
    for name in self._int8 if self._memory.int8 else ():
      if (module := getattr(model, name)) is not None:
        quantized.replace_blocks(module, rngs)
    decoder = getattr(model, "autoencoder", None)
    if decoder is not None and self._memory.tile:
      decoder.tile = max(LEAST, self._memory.tile // decoder.cfg.factor)
    return model


def outline(
  system: loading.Builds,
  cfg: Any,
  memory: Memory,
  *,
  dtype: layers.Dtype,
  keep: Sequence[str] = (),
  int8: Sequence[str] = (),
) -> Network:
  """What `load` would give, with a shape, dtype and place for each parameter; reads nothing."""
  fitted = Fitted(system, memory, int8)
  graphdef, leaves = outlines.outline(
    lambda rngs: fitted.build(cfg, rngs), dtype=dtype, keep=keep, mesh=memory.mesh
  )
  return Network(graphdef, trees.unflatten(leaves))


def load(
  system: loading.Builds,
  cfg: Any,
  directory: str | Path,
  shelf: Shelf,
  *,
  dtype: layers.Dtype,
  keep: Sequence[str] = (),
  int8: Sequence[str] = (),
) -> Network:
  """A network of a directory, where and as a memory has it; see `loading.load`.

  Args:
    shelf: of the model, with its memory. int8: top-level modules that may lie in it.
  """
  memory = shelf.memory
  network = loading.load(
    Fitted(system, memory, int8),  # type: ignore[arg-type]
    cfg,
    directory,
    dtype=dtype,
    keep=keep,
    mesh=memory.mesh,
    host=memory.offload,
  )
  housed = memory.offload or memory.mesh is not None
  return network.with_params(network.params, shelf) if housed else network
