"""Layers of one kind, stacked or one by one: a loop over them, or a single one.

Stacked they are one compiled body, whatever their number. But a CPU copies each layer's weights out
of the stack before it multiplies by them, which for a few rows takes longer than the product: there
a small network is taken apart (`apart`), once, and its loops are written out.
"""

from collections.abc import Callable
import functools
from typing import Any
from typing import TypeVar
from typing import cast

from flax import nnx
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
import numpy as np

from blip3o_jax.remat import SLICED
from blip3o_jax.remat import Remat
from blip3o_jax.remat import rematerialised

M = TypeVar("M", bound=nnx.Module)
AXIS = "layers"  # the first of the logical axes of what is stacked


def scan(
  layers: M,
  x: Any,
  apply: Callable[..., tuple[Any, Any]],
  xs: Any = (),
  *,
  remat: Remat = "none",
) -> tuple[Any, Any]:
  """Folds a carry through a stack: `apply(layer, x, *xs_of_layer) -> (x, y)`.

  Args:
    layers: a module from `layers.stack`, or what `apart` made of it.
    x: the carry, any pytree of arrays.
    xs: a tuple of arrays with a leading `layers` dim.
    remat: what the backward pass recomputes: "none", "full" (each layer), "dots" (all but what
      linear layers and rotations give), on TPUs the quickest: more takes long to write and read.

  Returns:
    The last carry and the stacked ys.
  """

  def body(carry: Any, item: Any) -> tuple[Any, Any]:
    layer, extra = item
    return apply(layer, carry, *extra)

  if remat != "none":
    body = rematerialised(body, remat)
  if not isinstance(layers, nnx.List):
    return jax.lax.scan(body, x, (layers, tuple(xs)))
  ys = []
  for i, layer in enumerate(layers):
    x, y = body(x, (layer, jax.tree.map(lambda leaf, i=i: leaf[i], tuple(xs))))
    ys.append(y)
  return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *ys)


def layer_of(layers: M, index: int | jax.Array) -> M:
  """One layer of a stack; of layers that are apart by a number alone."""
  if isinstance(layers, nnx.List):
    return cast(M, layers[cast(int, index)])
  cut = functools.partial(jax.lax.dynamic_index_in_dim, index=index, keepdims=False)
  return jax.tree.map(lambda p: checkpoint_name(cut(p), SLICED), layers)


def apart(module: nnx.Module) -> None:
  """Puts lists of layers in the place of the stacks of a module, however deep; copies them."""
  for name, child in list(vars(module).items()):
    if isinstance(child, nnx.List):
      for each in child:
        apart(each)
    elif isinstance(child, nnx.Module):
      leaves = jax.tree.leaves(child, is_leaf=lambda x: isinstance(x, nnx.Param))
      stacked = [leaf for leaf in leaves if leaf.get_metadata("axes", ("",))[0] == AXIS]
      if not leaves or len(stacked) < len(leaves):
        apart(child)
        continue
      # Cut by NumPy: to cut an array of JAX is a program for each shape and each index.
      host = jax.tree.map(np.asarray, child)
      number = len(leaves[0][...])
      parts = [jax.tree.map(lambda leaf, i=i: leaf[i], host) for i in range(number)]
      setattr(module, name, nnx.List(jax.device_put(parts)))
