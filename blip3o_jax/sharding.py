"""Logical axes -> mesh axes. The mesh lives here, and nowhere else but in `attention`.

Every parameter carries `axes`, one logical name per dim. Rules are a constant; experiments change
the shape of the mesh.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import re
from typing import Any

from flax import nnx
import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from blip3o_jax import trees

MESH_AXES = ("replica", "fsdp", "tensor")
RULES: Mapping[str, str | tuple[str, ...] | None] = {
  "layers": None,
  "vocab": "tensor",
  "heads": "tensor",
  "mlp": "tensor",
  "embed": "fsdp",
  "rest": None,
  # In this order: with the mesh's own, (replica, fsdp), XLA puts the rows of a product that is
  # summed over `tensor` into the wrong places on a mesh that uses all three axes
  # (findings/xla_gated_matmul_three_axes.sh).
  "batch": ("fsdp", "replica"),
  "length": None,
}


def fsdp_ways(replica: int, fsdp: int, tensor: int, devices: int) -> int:
  """`fsdp`, or for 0 the ways that fill the devices which the other two axes leave."""
  return fsdp or max(1, devices // (replica * tensor))


def make_mesh(
  *, replica: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh:
  """A mesh over `MESH_AXES` with Auto axes: XLA propagates, we constrain.

  Over several TPU slices only `replica` crosses from one to another, whose network is slow: each
  slice holds whole copies.

  Args:
    replica: copies of the parameters. fsdp: ways parameters and batch are split; 0 fills the
      devices that the other two leave. tensor: ways heads and MLP are split.
    devices: default all of `jax.devices()`. Where they belong to several slices, `replica` is the
      axis that crosses them: only gradients go between slices.

  Raises:
    ValueError: the product is not the number of devices; slices of different sizes, or whose
      number does not divide `replica`.
  """
  devices = list(jax.devices() if devices is None else devices)
  fsdp = fsdp_ways(replica, fsdp, tensor, len(devices))
  if replica * fsdp * tensor != len(devices):
    raise ValueError(
      f"config.mesh: replica {replica} x fsdp {fsdp} x tensor {tensor} = "
      f"{replica * fsdp * tensor} does not equal the {len(devices)} devices present"
    )
  parts = slices(devices)
  if replica % len(parts) or len({len(part) for part in parts}) > 1:
    sizes = ", ".join(str(len(part)) for part in parts)
    raise ValueError(
      f"config.mesh: replica {replica} over {len(parts)} slices of {sizes} devices: expected "
      f"slices of one size, and a multiple of {len(parts)}, so that no copy lies in two of them"
    )
  within = (replica // len(parts), fsdp, tensor)
  # Cuts an axis of the slice only where none of the mesh's axes fits without.
  places = [
    mesh_utils.create_device_mesh(within, part, allow_split_physical_axes=True) for part in parts
  ]
  return jax.sharding.Mesh(np.concatenate(places), MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def axes_of(text: str) -> dict[str, int]:
  """`fsdp=16,replica=4` as sizes of `MESH_AXES`; what is not named is 1, fsdp fills what is left.

  Raises:
    ValueError: not a mesh.
  """
  out = dict.fromkeys(MESH_AXES, 1) | {"fsdp": 0}
  for word in text.split(","):
    found = re.fullmatch(r"(\w+)=(\d+)", word.strip())
    if not found or found[1] not in out:
      raise ValueError(f"mesh {text}: expected AXIS=N,... with the axes {', '.join(MESH_AXES)}")
    out[found[1]] = int(found[2])
  return out


def slices(devices: Sequence[jax.Device]) -> list[list[jax.Device]]:
  """The devices of each TPU slice, in the order of the slices; others are one."""
  parts: dict[int, list[jax.Device]] = {}
  for device in devices:
    # Machines with GPUs have an index too, each its own: there all axes may cross.
    index = getattr(device, "slice_index", None) if device.platform == "tpu" else None
    parts.setdefault(index or 0, []).append(device)
  return [parts[index] for index in sorted(parts)]


def to_spec(axes: Sequence[str | None]) -> P:
  """The PartitionSpec of logical axes; None stays unsharded.

  Raises:
    KeyError: a logical name without a rule.
  """
  return P(*(None if a is None else RULES[a] for a in axes))


def ways(
  mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh, entry: str | tuple[str, ...] | None
) -> int:
  """Into how many parts one entry of a PartitionSpec splits a dim."""
  out = 1
  for axis in (entry,) if isinstance(entry, str) else entry or ():
    out *= mesh.shape[axis]
  return out


def param_axes(model: nnx.Module) -> dict[str, tuple[str, ...]]:
  """{path: logical axes} of every parameter; works on abstract modules.

  Raises:
    ValueError: a parameter whose `axes` are absent or do not name each dim.
  """
  out = {}
  for path, var in nnx.to_flat_state(nnx.state(model, nnx.Param)):
    name, axes = "/".join(map(str, path)), var.get_metadata("axes", None)
    if axes is None or len(axes) != len(var.shape):
      raise ValueError(f"{name}: axes {axes} do not name the dims of shape {var.shape}")
    out[name] = tuple(axes)
  return out


def shardings(model: nnx.Module, mesh: jax.sharding.Mesh, *, strict: bool = True) -> dict[Any, Any]:
  """A nested pure dict of `NamedSharding`, one per parameter of a (possibly abstract) module.

  Unless `strict`, a dim that its mesh axes do not divide stays whole.

  Raises:
    ValueError: a dim that its mesh axes do not divide, by parameter name.
  """
  shapes = {
    "/".join(map(str, path)): var.shape
    for path, var in nnx.to_flat_state(nnx.state(model, nnx.Param))
  }
  out = {}
  for name, axes in param_axes(model).items():
    spec = to_spec(axes)
    if not strict:
      entries = zip(spec, shapes[name], strict=True)
      spec = P(*(None if size % ways(mesh, entry) else entry for entry, size in entries))
    for dim, size, entry in zip(axes, shapes[name], spec, strict=True):
      if size % ways(mesh, entry):
        raise ValueError(
          f"{name}: dim {dim}={size} is not divisible by {ways(mesh, entry)} ({entry})"
        )
    out[name] = NamedSharding(mesh, spec)
  return trees.unflatten(out)


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
  """The sharding of a batch array: first dim over fsdp and replica, the others whole."""
  return NamedSharding(mesh, to_spec(("batch",)))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
  """The sharding of an array that every device holds whole."""
  return NamedSharding(mesh, P())


def on_host(place: jax.sharding.Sharding | None) -> jax.sharding.Sharding:
  """The same place, None being the default device, in the memory of the host beside it."""
  found = place or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return found.with_memory_kind("pinned_host")


def whole(place: NamedSharding) -> NamedSharding:
  """A parameter's sharding without fsdp: split over `tensor` alone."""
  spec = P(*("tensor" if entry == "tensor" else None for entry in place.spec))
  return NamedSharding(place.mesh, spec)


def platform() -> str:
  """Where the program will run: on the mesh in context (it may be a described one), if any."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
  """Shards an activation by logical axes; a no-op outside `jax.set_mesh`.

  A dim that its mesh axes do not divide stays whole, as the rows of a single picture that is drawn
  on many devices. Of training the batch is checked before.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x
  entries = zip(x.shape, to_spec(axes), strict=True)
  spec = P(*(entry if entry and size % ways(mesh, entry) == 0 else None for size, entry in entries))
  return jax.lax.with_sharding_constraint(x, spec)
