"""A model without its numbers: its structure, and what each of its parameters will be."""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from blip3o_jax import layers
from blip3o_jax import sharding
from blip3o_jax import trees

Leaves = dict[str, jax.ShapeDtypeStruct]  # by path


def outline(
  build: Callable[[nnx.Rngs], nnx.Module],
  *,
  dtype: layers.Dtype | None,
  keep: Sequence[str] = (),
  mesh: jax.sharding.Mesh | None = None,
  host: bool = False,
) -> tuple[nnx.GraphDef[Any], Leaves]:
  """The structure of what `build` builds, and {path: shape, dtype and place} of its parameters.

  Args:
    dtype: of the arrays; None is as the model declares them. keep: top-level modules that stay so.
    mesh: onto whose devices they go, by the model's axes, dims that do not divide whole; else to
      the default device, for which no place is named.
    host: into the memory of the host beside these.
  """
  model = layers.abstract(build)
  graphdef, state = nnx.split(model)
  places = {} if mesh is None else trees.flatten(sharding.shardings(model, mesh, strict=False))
  leaves: Leaves = {}
  for path, leaf in trees.flatten(nnx.to_pure_dict(state)).items():
    own = dtype is None or trees.top(path) in keep or leaf.dtype == jnp.int8
    kind = leaf.dtype if own else jnp.dtype(dtype)
    place = sharding.on_host(places.get(path)) if host else places.get(path)
    leaves[path] = jax.ShapeDtypeStruct(leaf.shape, kind, sharding=place)
  return graphdef, leaves
