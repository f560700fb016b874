"""The conditional UNet of the pixel decoder, SDXL-shaped (spec 5.2). Latents are channels-last.

What a level is made of comes from lists in the config; a level of transformer depth 0 has no
attention. The transformer blocks of one place are stacked and scanned. Everything that depends on
the condition alone is computed once, by `UNet.prepare`.
"""

from collections.abc import Iterator
import dataclasses
from typing import Any

from flax import nnx
from flax import struct
import jax
import jax.numpy as jnp

from blip3o_jax import layers
from blip3o_jax.attention import attention
from blip3o_jax.layers import Conv
from blip3o_jax.layers import Dtype
from blip3o_jax.layers import GroupNorm
from blip3o_jax.layers import LayerNorm
from blip3o_jax.layers import Resnet
from blip3o_jax.remat import Remat

KeysValues = tuple[jax.Array, jax.Array]
TRANSFORMER_EPS = 1e-6  # of the group norm before a transformer; the resnets' is in the config
TIME_IDS = 6


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes; the defaults are the released decoder's.

  Attributes:
    in_channels, out_channels: of the latents.
    channels: of each level, from the full resolution down; every level but the last halves.
    heads: attention heads of each level (what diffusers calls attention_head_dim).
    depths: transformer blocks of each level; 0 is a level without attention.
    mid_depth: the same in the middle, which has the last level's width and heads.
    resnets: a level on the way down; on the way up one more.
    context_dim: width of the condition's tokens, and of their mean.
    time_ids_dim: sinusoid width of each of the six time ids; 0 is a UNet without this second
      condition (neither pooled tokens nor time ids).
    groups, norm_eps: of the resnets' group norms.

  Raises:
    ValueError: lists of different lengths, or widths that groups or heads do not divide.
  """

  in_channels: int = 4
  out_channels: int = 4
  channels: tuple[int, ...] = (320, 640, 1280)
  heads: tuple[int, ...] = (5, 10, 20)
  depths: tuple[int, ...] = (0, 2, 10)
  mid_depth: int = 10
  resnets: int = 2
  context_dim: int = 1792
  time_ids_dim: int = 256
  groups: int = 32
  norm_eps: float = 1e-5
  dtype: Dtype = "float32"
  remat: Remat = "none"

  def __post_init__(self) -> None:
    if not len(self.channels) == len(self.heads) == len(self.depths):
      raise ValueError(
        f"channels {self.channels}, heads {self.heads} and depths {self.depths} differ in length"
      )
    for width, heads in zip(self.channels, self.heads, strict=True):
      if width % self.groups or width % heads:
        raise ValueError(f"{width} channels: not divided by {self.groups} groups, {heads} heads")

  @property
  def time_dim(self) -> int:
    """Width of the time embedding."""
    return 4 * self.channels[0]


VARIANTS: dict[str, Config] = {"emu2_gen": Config(dtype="bfloat16")}


@struct.dataclass
class Condition:
  """What the UNet is given beside the latents.

  Attributes:
    keys_values: from `UNet.prepare`: (k, v) float[L, B, Q, N, H] of every transformer, in order.
    pooled: float[B, Dctx], the mean of the condition's tokens.
    time_ids: float[B, 6]: original height, width, crop top, left, target height, width, pixels.
  """

  keys_values: tuple[KeysValues, ...]
  pooled: jax.Array
  time_ids: jax.Array


class Embedding(nnx.Module):
  """Two linear layers around a SiLU: float[B, d_in] -> float[B, d_out]."""

  def __init__(self, d_in: int, d_out: int, *, dtype: Dtype, rngs: nnx.Rngs):
    self.linear_1 = layers.linear(d_in, d_out, ("embed", "mlp"), dtype=dtype, rngs=rngs)
    self.linear_2 = layers.linear(d_out, d_out, ("mlp", "embed"), dtype=dtype, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.linear_2(jax.nn.silu(self.linear_1(x)))


class Attention(nnx.Module):
  """Multi-head attention without bias on q, k, v; `context_dim` is that of keys and values."""

  def __init__(self, dim: int, heads: int, context_dim: int, *, dtype: Dtype, rngs: nnx.Rngs):
    bare: dict[str, Any] = dict(bias=False, dtype=dtype, rngs=rngs)
    self.to_q = layers.linear(dim, dim, ("embed", "heads"), **bare)
    self.to_k = layers.linear(context_dim, dim, ("embed", "heads"), **bare)
    self.to_v = layers.linear(context_dim, dim, ("embed", "heads"), **bare)
    self.to_out = layers.linear(dim, dim, ("heads", "embed"), dtype=dtype, rngs=rngs)
    self.heads = heads

  def keys_values(self, context: jax.Array) -> KeysValues:
    """float[B, S, context_dim] -> k, v float[B, S, N, H]."""
    k, v = self.to_k(context), self.to_v(context)
    return layers.split_heads(k, self.heads), layers.split_heads(v, self.heads)

  def __call__(self, x: jax.Array, keys_values: KeysValues) -> jax.Array:
    q = layers.split_heads(self.to_q(x), self.heads)
    return self.to_out(layers.merge_heads(attention(q, *keys_values)))


class FeedForward(nnx.Module):
  """out(value(x) * gelu(gate(x))), the exact (erf) GELU, hidden width four times `dim`."""

  def __init__(self, dim: int, *, dtype: Dtype, rngs: nnx.Rngs):
    self.value = layers.linear(dim, 4 * dim, ("embed", "mlp"), dtype=dtype, rngs=rngs)
    self.gate = layers.linear(dim, 4 * dim, ("embed", "mlp"), dtype=dtype, rngs=rngs)
    self.out = layers.linear(4 * dim, dim, ("mlp", "embed"), dtype=dtype, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.out(self.value(x) * jax.nn.gelu(self.gate(x), approximate=False))


class Block(nnx.Module):
  """Self-attention, cross-attention, feed-forward, each after a norm and around a residual."""

  def __init__(self, dim: int, heads: int, cfg: Config, *, rngs: nnx.Rngs):
    self.norm1, self.norm2, self.norm3 = LayerNorm(dim), LayerNorm(dim), LayerNorm(dim)
    self.attn1 = Attention(dim, heads, dim, dtype=cfg.dtype, rngs=rngs)
    self.attn2 = Attention(dim, heads, cfg.context_dim, dtype=cfg.dtype, rngs=rngs)
    self.ff = FeedForward(dim, dtype=cfg.dtype, rngs=rngs)

  def __call__(self, x: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    y = self.norm1(x)
    x = x + self.attn1(y, self.attn1.keys_values(y))
    x = x + self.attn2(self.norm2(x), (k, v))
    return layers.constrain_tokens(x + self.ff(self.norm3(x)))


class Transformer(nnx.Module):
  """Blocks over the cells, row by row, around a residual: float[B, h, w, C] -> the same."""

  def __init__(self, dim: int, heads: int, depth: int, cfg: Config, *, rngs: nnx.Rngs):
    self.norm = GroupNorm(dim, groups=cfg.groups, eps=TRANSFORMER_EPS)
    self.proj_in = layers.linear(dim, dim, ("embed", "rest"), dtype=cfg.dtype, rngs=rngs)
    self.transformer_blocks = layers.stack(lambda r: Block(dim, heads, cfg, rngs=r), depth, rngs)
    self.proj_out = layers.linear(dim, dim, ("rest", "embed"), dtype=cfg.dtype, rngs=rngs)
    self.remat = cfg.remat

  def prepare(self, context: jax.Array) -> KeysValues:
    """float[B, Q, Dctx] -> k, v float[L, B, Q, N, H] of every block's cross-attention."""
    _, out = layers.scan(
      self.transformer_blocks, (), lambda block, _: ((), block.attn2.keys_values(context))
    )
    return out

  def __call__(self, x: jax.Array, keys_values: KeysValues) -> jax.Array:
    b, h, w, c = x.shape
    y = self.proj_in(self.norm(x).reshape(b, h * w, c))
    y, _ = layers.scan(
      self.transformer_blocks,
      y,
      lambda block, y, k, v: (block(y, k, v), None),
      keys_values,
      remat=self.remat,
    )
    return x + self.proj_out(y).reshape(b, h, w, c)


class Resample(nnx.Module):
  """The convolution that halves (padding both sides) or doubles the resolution."""

  def __init__(self, dim: int, cfg: Config, *, down: bool, rngs: nnx.Rngs):
    self.conv = Conv(dim, dim, stride=2 if down else 1, dtype=cfg.dtype, rngs=rngs)
    self.down = down

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.conv(x if self.down else layers.upsample(x))


class Level(nnx.Module):
  """Resnets (each followed by a transformer, where there are any) at one width.

  `widths` are the input channels of its resnets, `level` the index into the config's lists, and
  `transformers` how many of the resnets have one of `depth` blocks.
  """

  def __init__(
    self,
    widths: list[int],
    level: int,
    cfg: Config,
    *,
    depth: int,
    transformers: int,
    rngs: nnx.Rngs,
  ):
    dim, heads = cfg.channels[level], cfg.heads[level]
    self.resnets = nnx.List(
      [
        Resnet(
          width,
          dim,
          groups=cfg.groups,
          eps=cfg.norm_eps,
          time_dim=cfg.time_dim,
          dtype=cfg.dtype,
          rngs=rngs,
        )
        for width in widths
      ]
    )
    self.attentions = nnx.List(
      [Transformer(dim, heads, depth, cfg, rngs=rngs) for _ in range(transformers if depth else 0)]
    )
    self.remat = cfg.remat

  def step(self, i: int, x: jax.Array, emb: jax.Array, kv: Iterator[KeysValues]) -> jax.Array:
    """Resnet i, and transformer i where there is one; takes its keys and values from `kv`."""
    resnet = self.resnets[i]
    # A convolution is no dot: only "full" has something to recompute here.
    x = jax.checkpoint(Resnet.__call__)(resnet, x, emb) if self.remat == "full" else resnet(x, emb)
    if i < len(self.attentions):
      x = self.attentions[i](x, next(kv))
    return layers.constrain_cells(x)


class DownBlock(Level):
  """One level on the way down."""

  def __init__(self, level: int, cfg: Config, *, rngs: nnx.Rngs):
    dim = cfg.channels[level]
    widths = [cfg.channels[max(level - 1, 0)]] + [dim] * (cfg.resnets - 1)
    depth = cfg.depths[level]
    super().__init__(widths, level, cfg, depth=depth, transformers=len(widths), rngs=rngs)
    last = level == len(cfg.channels) - 1
    self.downsamplers = nnx.List([] if last else [Resample(dim, cfg, down=True, rngs=rngs)])

  def __call__(
    self, x: jax.Array, emb: jax.Array, kv: Iterator[KeysValues]
  ) -> tuple[jax.Array, list[jax.Array]]:
    """The output, and everything that the way up will want."""
    skips = []
    for i in range(len(self.resnets)):
      x = self.step(i, x, emb, kv)
      skips.append(x)
    for resample in self.downsamplers:
      x = resample(x)
      skips.append(x)
    return x, skips


class MidBlock(Level):
  """Resnet, transformer, resnet at the deepest level."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    widths, level = [cfg.channels[-1]] * 2, len(cfg.channels) - 1
    super().__init__(widths, level, cfg, depth=cfg.mid_depth, transformers=1, rngs=rngs)

  def __call__(self, x: jax.Array, emb: jax.Array, kv: Iterator[KeysValues]) -> jax.Array:
    return self.step(1, self.step(0, x, emb, kv), emb, kv)


class UpBlock(Level):
  """One level on the way up; every resnet also reads one output of the way down."""

  def __init__(self, level: int, cfg: Config, *, rngs: nnx.Rngs):
    dim, last = cfg.channels[level], len(cfg.channels) - 1
    below = cfg.channels[min(level + 1, last)]
    above = cfg.channels[max(level - 1, 0)]
    inputs = [below] + [dim] * cfg.resnets
    skips = [dim] * cfg.resnets + [above]
    widths = [a + b for a, b in zip(inputs, skips, strict=True)]
    depth = cfg.depths[level]
    super().__init__(widths, level, cfg, depth=depth, transformers=len(widths), rngs=rngs)
    self.upsamplers = nnx.List([Resample(dim, cfg, down=False, rngs=rngs)] if level else [])

  def __call__(
    self, x: jax.Array, emb: jax.Array, kv: Iterator[KeysValues], skips: list[jax.Array]
  ) -> jax.Array:
    """Pops from `skips`, the last one first."""
    for i in range(len(self.resnets)):
      x = self.step(i, jnp.concatenate([x, skips.pop()], -1), emb, kv)
    for resample in self.upsamplers:
      x = resample(x)
    return x


class UNet(nnx.Module):
  """Latents, time and condition to the predicted noise (or whatever it was trained for)."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    c, levels = cfg.channels, range(len(cfg.channels))
    self.cfg = cfg
    self.conv_in = Conv(cfg.in_channels, c[0], dtype=cfg.dtype, rngs=rngs)
    self.time_embedding = Embedding(c[0], cfg.time_dim, dtype=cfg.dtype, rngs=rngs)
    pooled = cfg.context_dim + TIME_IDS * cfg.time_ids_dim
    self.add_embedding = (
      Embedding(pooled, cfg.time_dim, dtype=cfg.dtype, rngs=rngs) if cfg.time_ids_dim else None
    )
    self.down_blocks = nnx.List([DownBlock(i, cfg, rngs=rngs) for i in levels])
    self.mid_block = MidBlock(cfg, rngs=rngs)
    self.up_blocks = nnx.List([UpBlock(i, cfg, rngs=rngs) for i in reversed(levels)])
    self.conv_norm_out = GroupNorm(c[0], groups=cfg.groups, eps=cfg.norm_eps)
    self.conv_out = Conv(c[0], cfg.out_channels, rngs=rngs)  # float32 whatever `dtype` is

  def prepare(self, context: jax.Array) -> tuple[KeysValues, ...]:
    """Tokens float[B, Q, Dctx] -> `Condition.keys_values`; k and v have the batch on axis 1."""
    parts = [*self.down_blocks, self.mid_block, *self.up_blocks]
    return tuple(t.prepare(context) for part in parts for t in part.attentions)

  def embed(self, timesteps: jax.Array, condition: Condition) -> jax.Array:
    """float[B] and the condition's pooled part -> float[B, time_dim], activated."""
    dtype = jnp.dtype(self.cfg.dtype)
    time = layers.timestep_embedding(timesteps, self.cfg.channels[0]).astype(dtype)
    emb = self.time_embedding(time)
    if self.add_embedding is not None:
      ids = layers.timestep_embedding(condition.time_ids, self.cfg.time_ids_dim)
      ids = ids.reshape(len(ids), -1).astype(dtype)
      emb = emb + self.add_embedding(jnp.concatenate([condition.pooled.astype(dtype), ids], -1))
    return jax.nn.silu(emb)

  def __call__(self, x: jax.Array, timesteps: jax.Array, condition: Condition) -> jax.Array:
    """One evaluation.

    Args:
      x: float[B, h, w, C], as the schedule scales it. timesteps: float or int[B], 0 to 999.
      condition: see `Condition`.

    Returns:
      float32[B, h, w, C].
    """
    emb = self.embed(timesteps, condition)
    kv = iter(condition.keys_values)
    x = self.conv_in(x)
    skips = [x]
    for down in self.down_blocks:
      x, new = down(x, emb, kv)
      skips += new
    x = self.mid_block(x, emb, kv)
    for up in self.up_blocks:
      x = up(x, emb, kv, skips)
    return self.conv_out(jax.nn.silu(self.conv_norm_out(x.astype(jnp.float32))))
