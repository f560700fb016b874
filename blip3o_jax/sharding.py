"""Logical axes -> mesh axes. The mesh lives here, and nowhere else but in `attention`.

Every parameter carries `axes`, one logical name per dim. Rules are a constant; experiments change
the shape of the mesh.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from flax import nnx
import jax
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

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

  Args:
    replica: copies of the parameters. fsdp: ways parameters and batch are split; 0 fills the
      devices that the other two leave. tensor: ways heads and MLP are split.
    devices: default all of `jax.devices()`.

  Raises:
    ValueError: the product is not the number of devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  fsdp = fsdp_ways(replica, fsdp, tensor, len(devices))
  if replica * fsdp * tensor != len(devices):
    raise ValueError(
      f"config.mesh: replica {replica} x fsdp {fsdp} x tensor {tensor} = "
      f"{replica * fsdp * tensor} does not equal the {len(devices)} devices present"
    )
  return jax.make_mesh(
    (replica, fsdp, tensor), MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices
  )


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


def shardings(model: nnx.Module, mesh: jax.sharding.Mesh) -> dict[Any, Any]:
  """A nested pure dict of `NamedSharding`, one per parameter of a (possibly abstract) module.

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


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
  """Shards an activation by logical axes; a no-op outside `jax.set_mesh`."""
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, to_spec(axes))
