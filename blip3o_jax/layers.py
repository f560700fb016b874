"""Layers shared by every network. Parameters carry `axes`; kernels are (in, out).

Letters used in shapes everywhere: B batch, T query length, S key length, N heads, K kv heads,
H head dim, D width, F MLP width, V vocabulary, L layers, Q slots, C channels, h w cells or pixels.

Kernels are the transpose of PyTorch's, convolutions are (kh, kw, in, out), images channels-last.
Parameters are float32 as built; `dtype` is the compute type. Norm statistics, rotary tables and
sinusoids are float32 whatever `dtype` is.
"""

from collections.abc import Callable
import contextvars
import math
from typing import Any
from typing import Literal
from typing import TypeVar
from typing import cast

from flax import nnx
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
import numpy as np

from blip3o_jax.remat import KEPT
from blip3o_jax.remat import stored_gradient
from blip3o_jax.sharding import constrain
from blip3o_jax.stacks import layer_of as layer_of
from blip3o_jax.stacks import scan as scan

M = TypeVar("M", bound=nnx.Module)
R = TypeVar("R")
Dtype = Literal["float32", "bfloat16"]
Initializer = Callable[..., jax.Array]
# {(half, max_period): the frequencies, near the middle of two numbers, that PyTorch rounds up}.
ROUNDED_UP = {(128, 10000.0): (13, 44, 119)}


class Shapes:
  """In the place of `nnx.Rngs`: a module is built for its shapes alone, see `abstract`.

  Its keys are None, for which an initialiser gives a shape, and a `stack` builds one layer.
  """

  def params(self) -> None:
    """No key."""


_SHAPES = contextvars.ContextVar("shapes", default=False)


def abstract(build: Callable[[nnx.Rngs], M]) -> M:
  """The module of `build(rngs)` with `jax.ShapeDtypeStruct` for every parameter.

  Nothing is traced, which for a network takes longer than to read its weights: what a module makes
  of its initial values goes through `made`.
  """
  token = _SHAPES.set(True)
  try:
    return build(cast(nnx.Rngs, Shapes()))
  finally:
    _SHAPES.reset(token)


def filled(shape: tuple[int, ...], value: float = 0.0, dtype: Any = jnp.float32) -> jax.Array:
  """An initial value that is one number everywhere; its shape in `abstract`."""
  if _SHAPES.get():
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[return-value]
  return jnp.full(shape, value, dtype)


def made(fn: Callable[..., R], *values: jax.Array) -> R:
  """`fn(*values)` of initial values; its shapes in `abstract`."""
  return jax.eval_shape(fn, *values) if _SHAPES.get() else fn(*values)


def _initializer(draw: Initializer) -> Initializer:
  def init(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32, **_: Any) -> jax.Array:
    return filled(shape, dtype=dtype) if key is None else draw(key, shape, dtype)

  return init


def uniform_fan_in(fan_in: int) -> Initializer:
  """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): PyTorch's default for linear and convolution layers."""
  bound = 1.0 / math.sqrt(fan_in)
  return _initializer(
    lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)
  )


def normal(std: float) -> Initializer:
  """N(0, std^2)."""
  return _initializer(
    lambda key, shape, dtype: jax.random.normal(key, shape, dtype) * jnp.asarray(std, dtype)
  )


def orthogonal(key: Any, shape: tuple[int, int], dtype: Any = jnp.float32) -> jax.Array:
  """The first columns of a random rotation; an `Initializer`."""
  draw = _initializer(
    lambda key, shape, dtype: jax.random.orthogonal(key, shape[0], dtype=dtype)[:, : shape[1]]
  )
  return draw(key, shape, dtype)


def zeros(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32, **_: Any) -> jax.Array:
  """Zeros; an `Initializer`."""
  del key
  return filled(shape, dtype=dtype)


class Linear(nnx.Linear):
  """`nnx.Linear` over rows: the leading dims become one before the matmul.

  The gradient of the kernel then contracts one dim, for which XLA needs no transposed copy of the
  activations: a sixth of a small step on a CPU, a twentieth of the released one on a TPU.
  """

  def __call__(self, inputs: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
    rows = super().__call__(inputs.reshape(-1, inputs.shape[-1]), *args, **kwargs)
    rows = checkpoint_name(rows, KEPT)
    return rows.reshape(*inputs.shape[:-1], rows.shape[-1])


def linear(
  d_in: int,
  d_out: int,
  axes: tuple[str, str],
  *,
  bias: bool = True,
  dtype: Dtype = "float32",
  init: Initializer | None = None,
  bias_init: Initializer | None = None,
  rngs: nnx.Rngs,
) -> Linear:
  """float[..., d_in] -> float[..., d_out] in `dtype`; logical `axes` of the kernel (in, out).

  `init` defaults to PyTorch's uniform in 1/sqrt(fan_in), kernel and bias alike.
  """
  return Linear(
    d_in,
    d_out,
    use_bias=bias,
    dtype=jnp.dtype(dtype),
    kernel_init=init or uniform_fan_in(d_in),
    bias_init=bias_init or uniform_fan_in(d_in),
    kernel_metadata={"axes": axes},
    bias_metadata={"axes": axes[-1:]},
    rngs=rngs,
  )


class Conv(nnx.Module):
  """A 2-D convolution, channels-last: float[B, h, w, d_in] -> float[B, h', w', d_out].

  `padding` is ((top, bottom), (left, right)); default size // 2 on every side.
  """

  def __init__(
    self,
    d_in: int,
    d_out: int,
    size: int = 3,
    *,
    stride: int = 1,
    padding: tuple[tuple[int, int], tuple[int, int]] | None = None,
    dtype: Dtype = "float32",
    init: Initializer | None = None,
    rngs: nnx.Rngs,
  ):
    fan_in = d_in * size * size
    init = init or uniform_fan_in(fan_in)
    key = rngs.params
    # A side of a few channels (pixels, latents) does not divide over devices.
    axes = ("embed" if d_in > 16 else "rest", "mlp" if d_out >= 16 else "rest")
    self.kernel = nnx.Param(init(key(), (size, size, d_in, d_out)), axes=("rest", "rest", *axes))
    self.bias = nnx.Param(uniform_fan_in(fan_in)(key(), (d_out,)), axes=axes[1:])
    side = (size // 2, size // 2)
    self.stride, self.padding, self.dtype = stride, padding or (side, side), dtype

  def __call__(self, x: jax.Array) -> jax.Array:
    dtype = jnp.dtype(self.dtype)
    y = jax.lax.conv_general_dilated(
      x.astype(dtype),
      self.kernel[...].astype(dtype),
      (self.stride, self.stride),
      self.padding,
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y + self.bias[...].astype(dtype)


class RMSNorm(nnx.Module):
  """Statistics in float32, scale applied after the cast back (the PyTorch order, bit for bit)."""

  def __init__(self, dim: int, *, eps: float = 1e-6):
    self.scale = nnx.Param(filled((dim,), 1.0), axes=("rest",))
    self.eps = eps

  def __call__(self, x: jax.Array) -> jax.Array:
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + self.eps)
    return self.scale[...].astype(x.dtype) * y.astype(x.dtype)


class LayerNorm(nnx.Module):
  """Statistics and affine in float32, result in the dtype of the input."""

  def __init__(self, dim: int, *, eps: float = 1e-5):
    self.scale = nnx.Param(filled((dim,), 1.0), axes=("rest",))
    self.bias = nnx.Param(filled((dim,)), axes=("rest",))
    self.eps = eps

  def __call__(self, x: jax.Array) -> jax.Array:
    y = standardize(x, self.eps)
    y = y * self.scale[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)
    return y.astype(x.dtype)


def standardize(x: jax.Array, eps: float) -> jax.Array:
  """float32 (x - mean) / sqrt(var + eps) over the last axis: a layer norm without affine."""
  y = x.astype(jnp.float32)
  y = y - jnp.mean(y, -1, keepdims=True)
  return y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + eps)


class GroupNorm(nnx.Module):
  """Group norm of float[B, ..., C], channels last; statistics float32 over cells and channels."""

  def __init__(self, dim: int, *, groups: int, eps: float):
    if dim % groups:
      raise ValueError(f"group norm: {dim} channels do not divide into {groups} groups")
    self.scale = nnx.Param(filled((dim,), 1.0), axes=("rest",))
    self.bias = nnx.Param(filled((dim,)), axes=("rest",))
    self.groups, self.eps = groups, eps

  def __call__(self, x: jax.Array) -> jax.Array:
    shape, c = x.shape, x.shape[-1]
    y = x.astype(jnp.float32).reshape(shape[0], -1, self.groups, c // self.groups)
    y = y - jnp.mean(y, (1, 3), keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, (1, 3), keepdims=True) + self.eps)
    y = y.reshape(shape) * self.scale[...].astype(jnp.float32)
    return (y + self.bias[...].astype(jnp.float32)).astype(x.dtype)


class Resnet(nnx.Module):
  """Norm, SiLU and convolution, twice, around a shortcut: float[B, h, w, d_in] -> [.., d_out].

  With `time_dim` a projection of `emb` float[B, time_dim] (activated by the caller) is added after
  the first convolution (spec 5.2; the autoencoder's, 5.3, has none).
  """

  def __init__(
    self,
    d_in: int,
    d_out: int,
    *,
    groups: int,
    eps: float,
    time_dim: int = 0,
    dtype: Dtype = "float32",
    rngs: nnx.Rngs,
  ):
    self.norm1 = GroupNorm(d_in, groups=groups, eps=eps)
    self.conv1 = Conv(d_in, d_out, dtype=dtype, rngs=rngs)
    self.time_emb_proj = (
      linear(time_dim, d_out, ("embed", "mlp"), dtype=dtype, rngs=rngs) if time_dim else None
    )
    self.norm2 = GroupNorm(d_out, groups=groups, eps=eps)
    self.conv2 = Conv(d_out, d_out, dtype=dtype, rngs=rngs)
    self.conv_shortcut = Conv(d_in, d_out, 1, dtype=dtype, rngs=rngs) if d_in != d_out else None

  def __call__(self, x: jax.Array, emb: jax.Array | None = None) -> jax.Array:
    if (emb is None) != (self.time_emb_proj is None):
      raise ValueError("a resnet takes a time embedding exactly when it was built with time_dim")
    y = self.conv1(jax.nn.silu(self.norm1(x)))
    if self.time_emb_proj is not None and emb is not None:
      y = y + self.time_emb_proj(emb)[:, None, None]
    y = self.conv2(jax.nn.silu(self.norm2(y)))
    return y + (x if self.conv_shortcut is None else self.conv_shortcut(x))


def upsample(x: jax.Array) -> jax.Array:
  """Nearest neighbour, twice the side: float[B, h, w, C] -> float[B, 2h, 2w, C]."""
  b, h, w, c = x.shape
  return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


class GatedMlp(nnx.Module):
  """down(silu(gate(x)) * up(x)), Qwen's; `make` builds the three of the arguments of `linear`."""

  def __init__(
    self,
    dim: int,
    mlp_dim: int,
    *,
    bias: bool,
    dtype: Dtype,
    init: Initializer | None = None,
    make: Callable[..., Any] = linear,
    rngs: nnx.Rngs,
  ):
    up: dict[str, Any] = dict(bias=bias, dtype=dtype, init=init, rngs=rngs)
    self.gate_proj = make(dim, mlp_dim, ("embed", "mlp"), **up)
    self.up_proj = make(dim, mlp_dim, ("embed", "mlp"), **up)
    self.down_proj = make(mlp_dim, dim, ("mlp", "embed"), **up)
    self.plain = False  # for layers in int8, which store what they multiply themselves

  def __call__(self, x: Any) -> jax.Array:
    gate, up = self.gate_proj(x), self.up_proj(x)
    if self.plain:
      return self.down_proj(jax.nn.silu(gate) * up)
    return self.down_proj(gated(*stored_gradient((gate, up))))


@jax.custom_vjp
def gated(gate: jax.Array, up: jax.Array) -> jax.Array:
  """silu(gate) * up of two float[B, T, F]; keeps for the backward pass just what it multiplies."""
  return jax.nn.silu(gate) * up


def _gated_forward(gate: jax.Array, up: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  wide = gate.astype(jnp.float32)
  s = jax.nn.sigmoid(wide)
  slope = up.astype(jnp.float32) * s * (1 + wide * (1 - s))
  kept = (slope.astype(gate.dtype), (wide * s).astype(gate.dtype))
  return gated(gate, up), tuple(checkpoint_name(k, KEPT) for k in kept)


def _gated_backward(kept: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
  slope, value = kept
  return g * slope, g * value


gated.defvjp(_gated_forward, _gated_backward)


def split_heads(x: jax.Array, heads: int) -> jax.Array:
  """float[B, T, N*H] -> float[B, T, N, H]."""
  return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def merge_heads(x: jax.Array) -> jax.Array:
  """float[B, T, N, H] -> float[B, T, N*H]."""
  return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def timestep_embedding(t: jax.Array, dim: int, max_period: float = 10000.0) -> jax.Array:
  """Sinusoids of float[...] as float32[..., dim], cosines first; t in 0..1000 units, not scaled."""
  args = t.astype(jnp.float32)[..., None] * sinusoid_frequencies(dim, max_period)
  return jnp.concatenate([jnp.cos(args), jnp.sin(args)], -1)


def sinusoid_frequencies(dim: int, max_period: float = 10000.0) -> np.ndarray:
  """max_period ** (-i / half), i below half = dim // 2, as PyTorch has them on a CPU, float32.

  On the host: in sinusoids of thousands of radians one unit in the last place of these shows.
  """
  half, scale = dim // 2, np.float32(-math.log(max_period))
  exponents = scale * np.arange(half, dtype=np.float32) / np.float32(half)
  out = np.exp(exponents.astype(np.float64)).astype(np.float32)
  above = np.isin(np.arange(half), ROUNDED_UP.get((half, max_period), ()))
  return np.where(above, np.nextafter(out, np.float32(2)), out)


def stack(make: Callable[[nnx.Rngs], M], depth: int, rngs: nnx.Rngs) -> M:
  """`depth` copies of a layer as one module whose parameters have a leading `layers` dim."""
  if isinstance(rngs, Shapes):
    layer = make(rngs)
    for _, variable in nnx.iter_graph(layer):
      if isinstance(variable, nnx.Param):
        variable.set_value(filled((depth, *variable.shape), dtype=variable.dtype))
        variable.set_metadata(axes=("layers", *variable.get_metadata("axes")))
    return layer
  meta = {nnx.PARTITION_NAME: "layers", "axes": "layers"}
  return nnx.vmap(make, transform_metadata=meta)(rngs.split(depth))


def constrain_tokens(x: jax.Array) -> jax.Array:
  """Shards float[B, T, D] activations over the batch."""
  return constrain(x, "batch", "length", None)


def constrain_pairs(x: jax.Array) -> jax.Array:
  """Shards float[2, B, ...] over the batch, so that a device has both of a row, see `guidance`.

  All rows where they do not divide: XLA, left to itself, moves the halves of a single row twice.
  """
  return constrain(x, None, "batch", *(None,) * (x.ndim - 2))


def constrain_cells(x: jax.Array) -> jax.Array:
  """Shards float[B, h, w, C] activations over the batch."""
  return constrain(x, "batch", None, None, None)
