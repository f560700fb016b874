"""Logical axes, meshes and their faults, on one device and on described meshes."""

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
import pytest

from blip3o_jax import layers
from blip3o_jax import sharding


def described(replica=1, fsdp=1, tensor=1):
  return AbstractMesh((replica, fsdp, tensor), sharding.MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def build(dim=8, mlp_dim=12):
  return nnx.eval_shape(
    lambda: layers.GatedMlp(dim, mlp_dim, bias=True, dtype="float32", rngs=nnx.Rngs(0))
  )


def test_a_mesh_that_does_not_fit_the_devices():
  with pytest.raises(ValueError, match="replica 1 x fsdp 3 x tensor 5 = 15 does not equal the 1 d"):
    sharding.make_mesh(fsdp=3, tensor=5, devices=jax.devices()[:1])


def test_zero_fills_the_devices():
  mesh = sharding.make_mesh(fsdp=0, devices=jax.devices()[:1])
  assert dict(mesh.shape) == {"replica": 1, "fsdp": 1, "tensor": 1}
  assert set(mesh.axis_types) == {AxisType.Auto}


def test_specs_follow_the_rules():
  assert sharding.to_spec(("layers", "embed", "heads")) == P(None, "fsdp", "tensor")
  assert sharding.to_spec(("batch", None)) == P(("fsdp", "replica"), None)
  with pytest.raises(KeyError, match="hedas"):
    sharding.to_spec(("hedas",))


def test_ways():
  mesh = described(2, 4, 8)
  assert [sharding.ways(mesh, e) for e in (None, "tensor", ("replica", "fsdp"))] == [1, 8, 8]


def test_every_parameter_gets_a_sharding():
  model = build()
  assert sharding.param_axes(model)["down_proj/kernel"] == ("mlp", "embed")
  found = sharding.shardings(model, described(fsdp=2, tensor=4))
  assert found["up_proj"]["kernel"].spec == P("fsdp", "tensor")
  assert found["up_proj"]["bias"].spec == P("tensor")
  assert found["down_proj"]["bias"].spec == P("fsdp")


def test_a_dim_that_does_not_divide_is_named():
  with pytest.raises(
    ValueError, match=r"down_proj/kernel: dim mlp=10 is not divisible by 4 \(tensor\)"
  ):
    sharding.shardings(build(mlp_dim=10), described(tensor=4))


def test_a_parameter_without_axes_is_named():
  class Bare(nnx.Module):
    def __init__(self):
      self.w = nnx.Param(jnp.ones((2, 2)), axes=("embed",))

  with pytest.raises(ValueError, match=r"w: axes \('embed',\) do not name the dims of shape"):
    sharding.param_axes(Bare())
  with pytest.raises(ValueError, match="kernel: axes None do not name"):
    sharding.param_axes(nnx.Linear(2, 2, use_bias=False, rngs=nnx.Rngs(0)))


def test_constrain_needs_no_mesh_and_works_on_one():
  x = jnp.arange(6.0).reshape(2, 3, 1)
  assert (layers.constrain_tokens(x) == x).all()
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  with jax.set_mesh(mesh):
    assert (jax.jit(layers.constrain_tokens)(x) == x).all()
  placed = jax.device_put(x, sharding.batch_sharding(mesh))
  assert placed.sharding.spec == P(("fsdp", "replica"))
  assert jax.device_put(x, sharding.replicated(mesh)).sharding.is_fully_replicated
