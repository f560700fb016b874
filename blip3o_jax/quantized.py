"""Linear layers whose weights are frozen and stored as int8, one scale an output channel.

The forward pass multiplies int8 by int8: the rows of the activations are quantised as they come,
each by its own largest value. There is no gradient of the weights, only one of the activations.
Knows no network.
"""

from collections.abc import Iterable
from collections.abc import Mapping
import functools
from typing import Any
from typing import Literal
from typing import NamedTuple

from flax import nnx
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
import numpy as np

from blip3o_jax import chips
from blip3o_jax import layers
from blip3o_jax.remat import KEPT
from blip3o_jax.remat import stored_gradient

# "int8": the gradient of the activations is a product in the compute dtype. "int8_backward": that
# product is of int8 too.
Quantize = Literal["none", "int8", "int8_backward"]
NOTICED = 1.02  # times as fast, from which a step is called faster
_UNREAD: Any = (None, None)  # no gradients of what is read for `exact`
LARGEST = 127  # -128 is not used: the range is symmetric


class Rounded(NamedTuple):
  """Activations in int8, beside those that they stand for.

  Attributes:
    exact: float[..., D]; a product has its dtype and gives it the gradient, and does not read it.
    values: int8[..., D]. row: float32[..., 1], what 1 stands for in each row.
  """

  exact: jax.Array
  values: jax.Array
  row: jax.Array


class Int8Linear(nnx.Module):
  """float[..., d_in] -> float[..., d_out] in `dtype`; not to be trained.

  Attributes:
    kernel: int8[d_in, d_out]. scale: float[d_out], what 1 in a column of the kernel stands for.
    bias: float[d_out], or None. backward: the gradient of the activations is a product of int8.
    activations: whether they are rounded to int8 too; without, only memory is saved, and less lost.
  """

  def __init__(
    self,
    d_in: int,
    d_out: int,
    axes: tuple[str, str],
    *,
    bias: bool = True,
    dtype: layers.Dtype = "float32",
    init: layers.Initializer | None = None,
    bias_init: layers.Initializer | None = None,
    rngs: nnx.Rngs,
  ):
    uniform = layers.uniform_fan_in(d_in)
    kernel, scale = layers.made(quantize, (init or uniform)(rngs.params(), (d_in, d_out)))
    self.kernel = nnx.Param(kernel, axes=axes)
    self.scale = nnx.Param(scale, axes=axes[-1:])
    made = (bias_init or uniform)(rngs.params(), (d_out,)) if bias else None
    self.bias = None if made is None else nnx.Param(made, axes=axes[-1:])
    self.dtype, self.backward, self.activations = dtype, False, True

  def __call__(self, x: jax.Array | Rounded) -> jax.Array:
    if not self.activations:
      return self._of_weights(x.exact if isinstance(x, Rounded) else x)
    # Not flattened to rows: what follows would not be fused with the product any more.
    product = _product_int8_backward if self.backward else _product
    given = x if isinstance(x, Rounded) else Rounded(x, *_rows(x.astype(self.dtype)))
    given = given._replace(exact=given.exact.astype(self.dtype))
    y = product(given, self.kernel[...], self.scale[...].astype(jnp.float32))
    y = checkpoint_name(y, KEPT)
    return y if self.bias is None else y + self.bias[...].astype(y.dtype)

  def _of_weights(self, x: jax.Array) -> jax.Array:
    """The product of activations as they are: a whole number up to 127 is exact in any type."""
    x = x.astype(self.dtype)
    rows = x.reshape(-1, x.shape[-1])
    kernel = self.kernel[...].astype(x.dtype)
    y = jnp.dot(rows, kernel, preferred_element_type=jnp.float32)
    y = (y * self.scale[...].astype(jnp.float32)).astype(x.dtype)
    y = y.reshape(*x.shape[:-1], y.shape[-1])
    return y if self.bias is None else y + self.bias[...].astype(y.dtype)


def replace_blocks(module: nnx.Module, rngs: nnx.Rngs) -> int:
  """Replaces the linear layers of a module's stacked blocks by int8 ones, of the weights alone.

  Embeddings, heads, norms and what stands outside of blocks stay. For a module whose parameters are
  read afterwards: the new ones are zeros or random.

  Returns:
    How many layers, a stack counted once.
  """
  found = [
    (parent, name, layer)
    for _, parent in nnx.iter_modules(module)
    for name, layer in vars(parent).items()
    if isinstance(layer, layers.Linear) and layer.kernel.ndim == 3
  ]
  for parent, name, layer in found:
    depth, d_in, d_out = layer.kernel.shape
    _, *axes = layer.kernel.get_metadata("axes")
    more: dict[str, Any] = dict(bias=layer.use_bias, dtype=jnp.dtype(layer.dtype).name)
    make = functools.partial(_of_sizes, (d_in, d_out), tuple(axes), more)
    made = layers.stack(make, depth, rngs)
    made.activations = False
    setattr(parent, name, made)
  return len(found)


def _of_sizes(
  sizes: tuple[int, int], axes: tuple[str, str], more: dict[str, Any], rngs: nnx.Rngs
) -> Int8Linear:
  return Int8Linear(*sizes, axes, **more, rngs=rngs)


def linear(kind: Quantize, *args: Any, **kwargs: Any) -> nnx.Module:
  """`layers.linear`, or for another kind than "none" an `Int8Linear` of the same arguments."""
  if kind == "none":
    return layers.linear(*args, **kwargs)
  made = Int8Linear(*args, **kwargs)
  made.backward = kind == "int8_backward"
  return made


def quantize(kernel: Any) -> tuple[Any, Any]:
  """int8[..., d_in, d_out] and float32[..., d_out] of a kernel, numpy for numpy.

  The scale is the smallest that reaches the largest value of a column, or up to 0.8 % more: it is
  rounded up to a bfloat16, so it is the same number where leaves are stored as such.
  """
  xp: Any = np if isinstance(kernel, np.ndarray) else jnp
  scale = _scale(xp.max(xp.abs(kernel.astype(xp.float32)), -2), xp)
  return divide(kernel, scale), scale


def scales(kernel: np.ndarray) -> np.ndarray:
  """The second of `quantize`."""
  return _scale(np.max(np.abs(kernel.astype(np.float32)), -2), np)


def divide(kernel: Any, scale: Any) -> Any:
  """The first of `quantize`, of some rows of a kernel whose scale is known."""
  xp: Any = np if isinstance(kernel, np.ndarray) else jnp
  column = xp.where(scale > 0, scale, 1)[..., None, :]
  with np.errstate(invalid="ignore"):  # of a column that is not finite its scale tells
    return xp.rint(kernel.astype(xp.float32) / column).astype(xp.int8)


def _scale(top: Any, xp: Any) -> Any:
  return (top * ((1 + 2**-8) / LARGEST)).astype(jnp.bfloat16).astype(xp.float32)


def scales_of(leaves: Mapping[str, Any]) -> dict[str, str]:
  """{path of a scale: path of its kernel} for the int8 kernels among leaves with a dtype."""
  kernels = [path for path, leaf in leaves.items() if leaf.dtype == jnp.int8]
  return {f"{path.rpartition('/')[0]}/scale": path for path in kernels}


def check_trained(trained: Iterable[str], leaves: Mapping[str, Any]) -> None:
  """Raises ValueError for trained leaves, by path, that belong to int8 layers."""
  pairs = scales_of(leaves)
  fixed = {*pairs, *pairs.values()}
  if wrong := [path for path in trained if path in fixed]:
    more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    raise ValueError(
      f"config.trainable: {wrong[0]}{more} cannot be trained, stored in int8; leave it out of the "
      "patterns, or set quantize of its network's config to 'none'"
    )


def said(leaves: Mapping[str, Any], device_kind: str) -> str:
  """What a run whose model holds int8 layers should know, a line; "" without."""
  kernels = scales_of(leaves).values()
  if not kernels:
    return ""
  where = f"int8: {len(kernels)} kernels of frozen layers are stored and multiplied in it"
  chip = chips.of_kind(device_kind)
  if chip is not None and chip.gain == "int8":
    return f"{where}; the matrix units of {device_kind} gain by it, {_of_step(chip)}"
  others = [chip for chip in chips.CHIPS.values() if chip.gain == "int8"]
  faster = ", ".join(chip.kinds[0] for chip in others)
  steps = ", ".join(chip.kinds[0] for chip in others if chip.int8_step > NOTICED)
  return (
    f"{where}, but the matrix units of {device_kind} are not known to gain by it: it saves memory "
    f"there and no time (those of {faster} gain; the whole step, as planned, on {steps})"
  )


def _of_step(chip: chips.Chip) -> str:
  """What the plan of a whole step has shown, which does more than multiply frozen layers."""
  if not chip.int8_step:
    return "a whole step in int8 was not planned there"
  times = f"{chip.int8_step:.2f} times as fast"
  if chip.int8_step > NOTICED:
    return f"and the 8B pretraining step, as planned, is {times}"
  return f"but the 8B pretraining step, as planned, is {times}: memory is saved, no time"


def normed(norm: layers.RMSNorm, x: jax.Array) -> Rounded:
  """A norm of float[..., D], rounded from float32.

  The largest value of a normed row is that of the row, times what the norm multiplies it by: so a
  TPU goes twice over it, not once for the norm's own sum, once to norm and twice to round.
  """
  wide = jax.lax.stop_gradient(x).astype(jnp.float32)
  root = jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + norm.eps)
  values, row = _rows(wide * norm.scale[...].astype(x.dtype).astype(jnp.float32))
  # Stored, or XLA goes through the norm's backward pass in each tile of the products that sum it.
  return Rounded(stored_gradient(norm(x)), values, row * root)


def _rows(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The last two of `Rounded` of float[..., D].

  A row that is not finite has a scale that is not, and so has the product.
  """
  x = jax.lax.stop_gradient(x).astype(jnp.float32)
  # Some backends' max passes over a NaN, which as an int8 would be 0; its bits are the largest.
  bits = jax.lax.bitcast_convert_type(jnp.abs(x), jnp.int32)
  top = jax.lax.bitcast_convert_type(jnp.max(bits, -1, keepdims=True), jnp.float32)
  return jnp.round(x * jnp.where(top > 0, LARGEST / top, 0)).astype(jnp.int8), top / LARGEST


def _forward(x: Rounded, kernel: jax.Array, scale: jax.Array) -> jax.Array:
  y = jnp.dot(x.values, kernel, preferred_element_type=jnp.int32)
  return (y.astype(jnp.float32) * x.row * scale).astype(x.exact.dtype)


@jax.custom_vjp
def _product(x: Rounded, kernel: jax.Array, scale: jax.Array) -> jax.Array:
  """[..., D] by int8[D, F] with float32[F]: float[..., F]."""
  return _forward(x, kernel, scale)


@jax.custom_vjp
def _product_int8_backward(x: Rounded, kernel: jax.Array, scale: jax.Array) -> jax.Array:
  """`_product`, whose backward pass multiplies int8 by int8 as well."""
  return _forward(x, kernel, scale)


def _keep(
  x: Rounded, kernel: jax.Array, scale: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return _forward(x, kernel, scale), (kernel, scale)


def _backward(kept: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[Any, None, None]:
  # As if the activations had not been rounded. The scale goes to the gradient, which is smaller
  # than the kernel, and what is multiplied is stored: XLA would make it again for every tile.
  kernel, scale = kept
  g = jax.lax.optimization_barrier((g.astype(jnp.float32) * scale).astype(g.dtype))
  return Rounded(jnp.dot(g, kernel.T.astype(g.dtype)), *_UNREAD), None, None


def _backward_int8(kept: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[Any, None, None]:
  kernel, scale = kept
  values, row = _rows(g.astype(jnp.float32) * scale)
  y = jnp.dot(values, kernel.T, preferred_element_type=jnp.int32)
  return Rounded((y.astype(jnp.float32) * row).astype(g.dtype), *_UNREAD), None, None


_product.defvjp(_keep, _backward)
_product_int8_backward.defvjp(_keep, _backward_int8)
