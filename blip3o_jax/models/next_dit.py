"""The Next-DiT with gated cross-attention that predicts a velocity over a grid of features.

Knows one network: features, a timestep and a condition in, a velocity out. Knows no noise, schedule
or guidance. Spec section 3.
"""

import dataclasses
from typing import Literal

import einops
from flax import nnx
from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from blip3o_jax import layers
from blip3o_jax import rotary
from blip3o_jax.attention import attention
from blip3o_jax.layers import Dtype
from blip3o_jax.layers import LayerNorm
from blip3o_jax.layers import RMSNorm
from blip3o_jax.layers import linear
from blip3o_jax.remat import Remat
from blip3o_jax.remat import stored_gradient

SINUSOIDS = 256  # width of the timestep embedding, whatever the other sizes are
MAX_CONDITION = 1024  # the modulation is conditioned on min(dim, 1024) channels
FINAL_EPS = 1e-6

Rotation = rotary.Table


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of a Next-DiT (spec 3.1).

  Attributes:
    in_channels: channels of the features, in and out.
    grid: side of the feature grid, in cells.
    condition_dim: width of the condition z.
    dim, depth, heads, kv_heads: of the blocks; kv_heads divides heads.
    patch_size: cells a side of one token.
    multiple_of: the MLP width is rounded up to a multiple of it.
    rope: "2d" as released (row, column), "3d" for (time, row, column).
    rope_axes: channels of a head for time, height and width; used by "3d" only.
    gate_init: where the gates of the cross-attention start, before their tanh (released: 0, off).

  Raises:
    ValueError: sizes that do not divide.
  """

  in_channels: int
  grid: int
  condition_dim: int
  dim: int
  depth: int
  heads: int
  kv_heads: int
  patch_size: int = 1
  multiple_of: int = 256
  norm_eps: float = 1e-5
  rope: Literal["2d", "3d"] = "2d"
  rope_axes: tuple[int, int, int] = (16, 24, 24)
  rope_theta: float = 1e4
  gate_init: float = 0.0
  dtype: Dtype = "float32"
  remat: Remat = "none"

  def __post_init__(self) -> None:
    if self.dim % self.heads:
      raise ValueError(f"dim {self.dim} does not divide into {self.heads} heads")
    if self.heads % self.kv_heads:
      raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
    if self.grid % self.patch_size:
      raise ValueError(f"grid {self.grid} does not divide into patches of {self.patch_size}")
    if self.rope == "2d" and self.head_dim % 4:
      raise ValueError(f"rope '2d' needs a head dim divisible by 4, found {self.head_dim}")
    if self.rope == "3d" and (
      sum(self.rope_axes) != self.head_dim or any(n % 2 for n in self.rope_axes)
    ):
      raise ValueError(
        f"rope_axes {self.rope_axes} must be even and add up to the head dim {self.head_dim}"
      )

  @property
  def head_dim(self) -> int:
    return self.dim // self.heads

  @property
  def modulation_dim(self) -> int:
    return min(self.dim, MAX_CONDITION)

  @property
  def mlp_dim(self) -> int:
    """Two thirds of four times dim, rounded up to `multiple_of` (4864 as released)."""
    return -(-int(2 * 4 * self.dim / 3) // self.multiple_of) * self.multiple_of


def _released(condition_dim: int) -> Config:
  return Config(
    in_channels=1792,
    grid=8,
    condition_dim=condition_dim,
    dim=1792,
    depth=24,
    heads=28,
    kv_heads=28,
    dtype="bfloat16",
  )


VARIANTS = {"blip3o_4b": _released(2048), "blip3o_8b": _released(3584)}


@struct.dataclass
class Condition:
  """What of a condition depends neither on x nor on t.

  Attributes:
    k, v: float[L, B, Q, K, H], keys and values of each block's cross-attention.
    pooled: float[B, Dc], the embedded mean of the condition.
  """

  k: jax.Array
  v: jax.Array
  pooled: jax.Array


@struct.dataclass
class Context:
  """A condition whose keys and values each block makes itself, for a single call.

  Attributes:
    tokens: float[B, Q, D], the projected condition. pooled: float[B, Dc], its embedded mean.
  """

  tokens: jax.Array
  pooled: jax.Array


# Where the batch is in each leaf, in the manner of vmap's in_axes.
BATCH_AXES = Condition(k=1, v=1, pooled=0)  # type: ignore[arg-type]


class PatchEmbedder(nnx.Module):
  """float[B, h, w, C] -> float[B, T, D], tokens row-major, patch features in order (C, y, x)."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    p = cfg.patch_size
    self.proj = linear(
      cfg.in_channels * p * p, cfg.dim, ("rest", "embed"), dtype=cfg.dtype, rngs=rngs
    )
    self.patch_size = p

  def __call__(self, x: jax.Array) -> jax.Array:
    p = self.patch_size
    return self.proj(einops.rearrange(x, "b (h p) (w q) c -> b (h w) (c p q)", p=p, q=p))


class CaptionProjection(nnx.Module):
  """float[B, Q, condition_dim] -> float[B, Q, D]: linear, tanh-GELU, linear."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    self.linear_1 = linear(cfg.condition_dim, cfg.dim, ("embed", "mlp"), dtype=cfg.dtype, rngs=rngs)
    self.linear_2 = linear(cfg.dim, cfg.dim, ("mlp", "embed"), dtype=cfg.dtype, rngs=rngs)

  def __call__(self, z: jax.Array) -> jax.Array:
    return self.linear_2(jax.nn.gelu(self.linear_1(z), approximate=True))


class TimestepEmbedder(nnx.Module):
  """Timesteps float[B] in 0..1000 -> float[B, Dc]: sinusoids, linear, SiLU, linear."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    dim = cfg.modulation_dim
    self.linear_1 = linear(SINUSOIDS, dim, ("rest", "embed"), dtype=cfg.dtype, rngs=rngs)
    self.linear_2 = linear(dim, dim, ("embed", "mlp"), dtype=cfg.dtype, rngs=rngs)

  def __call__(self, timesteps: jax.Array) -> jax.Array:
    e = layers.timestep_embedding(timesteps, SINUSOIDS)
    return self.linear_2(jax.nn.silu(self.linear_1(e)))


class CaptionEmbedder(nnx.Module):
  """The projected condition float[B, Q, D] -> float[B, Dc]: mean, layer norm, linear."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    self.norm = LayerNorm(cfg.dim, eps=1e-5)
    self.linear = linear(cfg.dim, cfg.modulation_dim, ("embed", "mlp"), dtype=cfg.dtype, rngs=rngs)

  def __call__(self, c: jax.Array) -> jax.Array:
    return self.linear(self.norm(jnp.mean(c.astype(jnp.float32), 1)))


class TimeCaptionEmbed(nnx.Module):
  """The two embedders whose sum modulates every block."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    self.timestep_embedder = TimestepEmbedder(cfg, rngs=rngs)
    self.caption_embedder = CaptionEmbedder(cfg, rngs=rngs)


class Attention(nnx.Module):
  """Projections of one attention; q and k are layer-normed over all channels before the split."""

  def __init__(self, cfg: Config, *, out: bool, rngs: nnx.Rngs):
    kv_dim = cfg.kv_heads * cfg.head_dim

    def proj(d_out: int) -> nnx.Linear:
      return linear(cfg.dim, d_out, ("embed", "heads"), bias=False, dtype=cfg.dtype, rngs=rngs)

    self.to_q, self.to_k, self.to_v = proj(cfg.dim), proj(kv_dim), proj(kv_dim)
    self.norm_q = LayerNorm(cfg.dim, eps=1e-5)
    self.norm_k = LayerNorm(kv_dim, eps=1e-5)
    if out:
      self.to_out = linear(
        cfg.dim, cfg.dim, ("heads", "embed"), bias=False, dtype=cfg.dtype, rngs=rngs
      )
    self.heads, self.kv_heads = cfg.heads, cfg.kv_heads

  def query(self, x: jax.Array, rotation: Rotation) -> jax.Array:
    """float[B, T, D] -> float[B, T, N, H], turned."""
    return layers.split_heads(
      rotary.rotate_pairs(self.norm_q(self.to_q(x)), self.heads, rotation), self.heads
    )

  def keys_values(
    self, x: jax.Array, rotation: Rotation | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """float[B, S, D] -> two of float[B, S, K, H]; the keys turned by a rotation."""
    k = self.norm_k(self.to_k(x))
    k = k if rotation is None else rotary.rotate_pairs(k, self.kv_heads, rotation)
    return layers.split_heads(k, self.kv_heads), layers.split_heads(self.to_v(x), self.kv_heads)


class FeedForward(nnx.Module):
  """linear_2(silu(linear_1(x)) * linear_3(x)); the SiLU in float32, without biases."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    def proj(d_in: int, d_out: int, axes: tuple[str, str]) -> nnx.Linear:
      return linear(d_in, d_out, axes, bias=False, dtype=cfg.dtype, rngs=rngs)

    self.linear_1 = proj(cfg.dim, cfg.mlp_dim, ("embed", "mlp"))
    self.linear_2 = proj(cfg.mlp_dim, cfg.dim, ("mlp", "embed"))
    self.linear_3 = proj(cfg.dim, cfg.mlp_dim, ("embed", "mlp"))

  def __call__(self, x: jax.Array) -> jax.Array:
    gate, up = stored_gradient((self.linear_1(x), self.linear_3(x)))
    gate = jax.nn.silu(gate.astype(jnp.float32)).astype(gate.dtype)
    return self.linear_2(gate * up)


class ModulatedNorm(nnx.Module):
  """The first norm of a block and the projection of its four modulations."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    self.linear = linear(
      cfg.modulation_dim, 4 * cfg.dim, ("embed", "mlp"), dtype=cfg.dtype, rngs=rngs
    )
    self.norm = RMSNorm(cfg.dim, eps=cfg.norm_eps)


class Block(nnx.Module):
  """Self- and gated cross-attention with one output projection, then the MLP (spec 3.2).

  Each half is normed before and after, scaled before and gated by tanh after. As released the
  cross-attention starts switched off: its gate is 0 and tanh(0) = 0 (spec 3.6).
  """

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    self.norm1 = ModulatedNorm(cfg, rngs=rngs)
    self.norm1_context = RMSNorm(cfg.dim, eps=cfg.norm_eps)
    self.attn1 = Attention(cfg, out=False, rngs=rngs)
    self.attn2 = Attention(cfg, out=True, rngs=rngs)
    self.gate = nnx.Param(layers.filled((cfg.heads,), cfg.gate_init), axes=("rest",))
    self.norm2 = RMSNorm(cfg.dim, eps=cfg.norm_eps)
    self.ffn_norm1 = RMSNorm(cfg.dim, eps=cfg.norm_eps)
    self.feed_forward = FeedForward(cfg, rngs=rngs)
    self.ffn_norm2 = RMSNorm(cfg.dim, eps=cfg.norm_eps)

  def context(self, c: jax.Array) -> tuple[jax.Array, jax.Array]:
    """float[B, Q, D] -> the cross-attention's keys and values, float[B, Q, K, H]."""
    return self.attn2.keys_values(self.norm1_context(c))

  def __call__(
    self, x: jax.Array, k: jax.Array, v: jax.Array, modulation: jax.Array, rotation: Rotation
  ) -> jax.Array:
    """One block over float[B, T, D]; `modulation` is silu of the embedding, float[B, Dc]."""
    scale1, gate1, scale2, gate2 = jnp.split(self.norm1.linear(modulation)[:, None], 4, -1)
    n = self.norm1.norm(x) * (1 + scale1)
    own = attention(self.attn1.query(n, rotation), *self.attn1.keys_values(n, rotation))
    cross = attention(self.attn2.query(n, rotation), k, v)
    mixed = own + jnp.tanh(self.gate[...].astype(x.dtype))[:, None] * cross
    out = self.attn2.to_out(stored_gradient(layers.merge_heads(mixed)))
    x = x + jnp.tanh(gate1) * self.norm2(out)
    out = self.feed_forward(self.ffn_norm1(x) * (1 + scale2))
    return x + jnp.tanh(gate2) * self.ffn_norm2(out)


class FinalLayer(nnx.Module):
  """A layer norm without affine, scaled by the embedding, and the projection to the output."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    d_out = cfg.in_channels * cfg.patch_size**2
    self.linear_1 = linear(
      cfg.modulation_dim, cfg.dim, ("embed", "mlp"), dtype=cfg.dtype, rngs=rngs
    )
    self.linear_2 = linear(cfg.dim, d_out, ("embed", "rest"), dtype=cfg.dtype, rngs=rngs)

  def __call__(self, x: jax.Array, modulation: jax.Array) -> jax.Array:
    y = layers.standardize(x, FINAL_EPS) * (1 + self.linear_1(modulation)[:, None])
    return self.linear_2(y.astype(x.dtype))


class NextDiT(nnx.Module):
  """The network: `prepare` a condition once, then call it for any x and timestep."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    self.patch_embedder = PatchEmbedder(cfg, rngs=rngs)
    self.caption_projection = CaptionProjection(cfg, rngs=rngs)
    self.time_caption_embed = TimeCaptionEmbed(cfg, rngs=rngs)
    self.layers = layers.stack(lambda r: Block(cfg, rngs=r), cfg.depth, rngs)
    self.norm_out = FinalLayer(cfg, rngs=rngs)
    self.cfg = cfg

  def embed(self, z: jax.Array) -> Context:
    """The condition z, float[B, Q, condition_dim], for one call: nothing is kept for another.

    The null condition is zeros, which this maps to something that is not zero.
    """
    c = layers.constrain_tokens(self.caption_projection(z))
    return Context(tokens=c, pooled=self.time_caption_embed.caption_embedder(c))

  def prepare(self, z: jax.Array) -> Condition:
    """Everything of the condition z that depends on no x and no t, for many calls."""
    context = self.embed(z)
    _, (k, v) = layers.scan(self.layers, context.tokens, lambda block, c: (c, block.context(c)))
    return Condition(k=k, v=v, pooled=context.pooled)

  def __call__(
    self, x: jax.Array, timesteps: jax.Array, condition: Condition | Context
  ) -> jax.Array:
    """The velocity (noise - x0) at x.

    Args:
      x: float[B, h, w, C]; h and w may differ from the grid but divide into patches.
      timesteps: float[B] in 0..1000, 1000 is pure noise; fractions are allowed.
      condition: from `prepare` or `embed`, of the same batch; the result is the same.

    Returns:
      float32[B, h, w, C].
    """
    _, h, w, _ = x.shape
    p = self.cfg.patch_size
    rotation = rotary_table(self.cfg, h // p, w // p)
    embedded = self.time_caption_embed.timestep_embedder(timesteps) + condition.pooled
    modulation = jax.nn.silu(embedded)

    def apply(block: Block, x: jax.Array, *kv: jax.Array) -> tuple[jax.Array, None]:
      k, v = block.context(condition.tokens) if isinstance(condition, Context) else kv
      return layers.constrain_tokens(block(x, k, v, modulation, rotation)), None

    tokens = layers.constrain_tokens(self.patch_embedder(x))
    xs = () if isinstance(condition, Context) else (condition.k, condition.v)
    tokens, _ = layers.scan(self.layers, tokens, apply, xs, remat=self.cfg.remat)
    out = self.norm_out(tokens, modulation).astype(jnp.float32)
    # The output's patch features are in order (y, x, C), the input's in (C, y, x).
    return einops.rearrange(out, "b (h w) (p q c) -> b (h p) (w q) c", h=h // p, p=p, q=p)


def rotary_angles(cfg: Config, h: int, w: int, frame: int = 0) -> np.ndarray:
  """The angle of each channel pair at each cell, in radians: float64[h*w, head_dim/2].

  "2d": pair 2i turns by row * theta^(-4i/head_dim), pair 2i+1 by column times the same (spec 3.4).
  "3d": the pairs are split among (time, row, column) by `rope_axes`, each axis with its own
  theta^(-2i/axis); at frame 0 the pairs of time stand still (spec 3.5).
  """
  row, col = np.divmod(np.arange(h * w, dtype=np.float64), w)
  if cfg.rope == "2d":
    freqs = cfg.rope_theta ** (-4.0 * np.arange(cfg.head_dim // 4) / cfg.head_dim)
    pairs = np.stack([row[:, None] * freqs, col[:, None] * freqs], -1)
    return pairs.reshape(h * w, cfg.head_dim // 2)
  parts = []
  for positions, size in zip((np.full_like(row, frame), row, col), cfg.rope_axes, strict=True):
    freqs = cfg.rope_theta ** (-2.0 * np.arange(size // 2) / size)
    parts.append(positions[:, None] * freqs)
  return np.concatenate(parts, -1)


def rotary_table(cfg: Config, h: int, w: int) -> Rotation:
  """Cosines and signed sines float32[h*w, head_dim] of the cells: constants of the trace."""
  angles = rotary_angles(cfg, h, w)
  cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
  return np.repeat(cos, 2, -1), np.stack([-sin, sin], -1).reshape(*sin.shape[:-1], -1)
