"""The vision tower of Qwen2.5-VL: flattened patches of several images to merged tokens.

Window and full attention differ only in the ids that say who sees whom, so all blocks are one scan
and no token is ever reordered. Source: spec 1.3. One frame an image; video is not supported.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

from flax import nnx
from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from blip3o_jax import layers
from blip3o_jax.attention import attention
from blip3o_jax.layers import Dtype
from blip3o_jax.layers import GatedMlp
from blip3o_jax.layers import Initializer
from blip3o_jax.layers import RMSNorm
from blip3o_jax.layers import constrain_tokens
from blip3o_jax.layers import linear
from blip3o_jax.layers import merge_heads
from blip3o_jax.layers import scan
from blip3o_jax.layers import split_heads
from blip3o_jax.layers import stack
from blip3o_jax.remat import Remat
from blip3o_jax.rotary import rotate_half

CHANNELS = 3
ROPE_THETA = 1e4
NORM_EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of a tower; the defaults are those that all released sizes share.

  Attributes:
    out_dim: width of the language model.
    merge: a merged token is a block of merge x merge patches.
    window_size: side of a window, in pixels.
    full_layers: indices of the blocks in which the whole image is seen.
    init_std: of every matrix at the start (released: 0.02).

  Raises:
    ValueError: heads or windows that do not divide, or a full layer beyond the depth.
  """

  dim: int
  depth: int
  heads: int
  mlp_dim: int
  out_dim: int
  patch_size: int = 14
  temporal_patch_size: int = 2
  merge: int = 2
  window_size: int = 112
  full_layers: tuple[int, ...] = (7, 15, 23, 31)
  init_std: float = 0.02
  dtype: Dtype = "float32"
  remat: Remat = "none"

  def __post_init__(self) -> None:
    if self.dim % (4 * self.heads):
      raise ValueError(f"dim {self.dim} is not a multiple of 4 x {self.heads} heads")
    if self.window_size % (self.patch_size * self.merge):
      raise ValueError(
        f"window_size {self.window_size} is not a multiple of {self.patch_size * self.merge} pixels"
      )
    if any(not 0 <= i < self.depth for i in self.full_layers):
      raise ValueError(f"full_layers {self.full_layers} name a block beyond depth {self.depth}")

  @property
  def patch_dim(self) -> int:
    """Numbers in one flattened patch, ordered channel, frame, row, column."""
    return CHANNELS * self.temporal_patch_size * self.patch_size**2


VARIANTS: dict[str, Config] = {
  f"qwen2_5_vl_{size}": Config(
    dim=1280,
    depth=32,
    heads=16,
    mlp_dim=3420,
    out_dim=out_dim,
    dtype="bfloat16",
    remat="full",
  )
  for size, out_dim in (("3b", 2048), ("7b", 3584))
}


@struct.dataclass
class Layout:
  """Where each patch of a batch of padded images lies; numpy as made, arrays inside jit.

  Attributes:
    positions: int32[I, N, 2], row and column in patches.
    windows: int32[I, N], window id from 1; 0 is padding.
    segments: int32[I, N], 1 for a patch and 0 for padding.
  """

  positions: Any
  windows: Any
  segments: Any


def layout(grids: Sequence[tuple[int, int]], n: int, cfg: Config) -> Layout:
  """The layout of images of `grids` (rows, columns in patches), each padded to `n` patches.

  Patches stand in the released order: merge blocks row by row, inside a block row by row.

  Raises:
    ValueError: a grid that merge blocks do not tile or that exceeds n, or an n they do not divide.
  """
  m, side = cfg.merge, cfg.window_size // (cfg.patch_size * cfg.merge)
  if n % m**2:
    raise ValueError(f"{n} patches an image are not a multiple of {m**2}, one merged token")
  positions = np.zeros((len(grids), n, 2), np.int32)
  windows, segments = np.zeros((2, len(grids), n), np.int32)
  for i, (h, w) in enumerate(grids):
    if h < 1 or w < 1 or h % m or w % m or h * w > n:
      raise ValueError(f"image {i}: a grid of {h} x {w} patches; need multiples of {m}, up to {n}")
    at = np.moveaxis(np.indices((h, w)), 0, -1).reshape(h // m, m, w // m, m, 2)
    flat = at.swapaxes(1, 2).reshape(h * w, 2)
    cell = flat // (m * side)
    positions[i, : h * w] = flat
    windows[i, : h * w] = 1 + cell[:, 0] * (cell[:, 1].max() + 1) + cell[:, 1]
    segments[i, : h * w] = 1
  return Layout(positions=positions, windows=windows, segments=segments)


class PatchEmbed(nnx.Module):
  """float[I, N, patch_dim] -> float[I, N, D]; the kernel keeps the axes of the released Conv3d."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    p = cfg.patch_size
    shape = (CHANNELS, cfg.temporal_patch_size, p, p, cfg.dim)
    self.kernel = nnx.Param(_init(cfg)(rngs.params(), shape), axes=("rest",) * 4 + ("embed",))
    self.dtype = cfg.dtype

  def __call__(self, patches: jax.Array) -> jax.Array:
    kernel = self.kernel[...]
    kernel = kernel.reshape(-1, kernel.shape[-1]).astype(self.dtype)
    return patches.astype(self.dtype) @ kernel


class SelfAttention(nnx.Module):
  """Multi-head attention with 2-D rotary positions; all projections have a bias."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    kw: dict[str, Any] = dict(dtype=cfg.dtype, init=_init(cfg), bias_init=layers.zeros, rngs=rngs)
    self.q_proj = linear(cfg.dim, cfg.dim, ("embed", "heads"), **kw)
    self.k_proj = linear(cfg.dim, cfg.dim, ("embed", "heads"), **kw)
    self.v_proj = linear(cfg.dim, cfg.dim, ("embed", "heads"), **kw)
    self.proj = linear(cfg.dim, cfg.dim, ("heads", "embed"), **kw)
    self.heads = cfg.heads

  def __call__(self, x: jax.Array, angles: jax.Array, segments: jax.Array) -> jax.Array:
    q, k, v = (split_heads(f(x), self.heads) for f in (self.q_proj, self.k_proj, self.v_proj))
    q, k = rotate_half(q, angles), rotate_half(k, angles)
    return self.proj(merge_heads(attention(q, k, v, segments=segments)))


class Block(nnx.Module):
  """Pre-norm block; `segments` int[I, N] say who sees whom."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    self.norm1 = RMSNorm(cfg.dim, eps=NORM_EPS)
    self.attn = SelfAttention(cfg, rngs=rngs)
    self.norm2 = RMSNorm(cfg.dim, eps=NORM_EPS)
    self.mlp = GatedMlp(
      cfg.dim, cfg.mlp_dim, bias=True, dtype=cfg.dtype, init=_init(cfg), rngs=rngs
    )

  def __call__(self, x: jax.Array, angles: jax.Array, segments: jax.Array) -> jax.Array:
    x = x + self.attn(self.norm1(x), angles, segments)
    return constrain_tokens(x + self.mlp(self.norm2(x)))


class Merger(nnx.Module):
  """float[I, N, D] -> float[I, N / merge^2, out_dim]: merge blocks are neighbours in the order."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    wide = cfg.dim * cfg.merge**2
    kw: dict[str, Any] = dict(dtype=cfg.dtype, init=_init(cfg), bias_init=layers.zeros, rngs=rngs)
    self.ln_q = RMSNorm(cfg.dim, eps=NORM_EPS)
    self.mlp_0 = linear(wide, wide, ("embed", "mlp"), **kw)
    self.mlp_2 = linear(wide, cfg.out_dim, ("mlp", "embed"), **kw)
    self.wide = wide

  def __call__(self, x: jax.Array) -> jax.Array:
    x = self.ln_q(x).reshape(x.shape[0], -1, self.wide)
    return self.mlp_2(jax.nn.gelu(self.mlp_0(x), approximate=False))


class QwenVision(nnx.Module):
  """Patches of I images, each padded to N, to tokens of the language model."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    self.cfg = cfg
    self.patch_embed = PatchEmbed(cfg, rngs=rngs)
    self.blocks = stack(lambda r: Block(cfg, rngs=r), cfg.depth, rngs)
    self.merger = Merger(cfg, rngs=rngs)

  def __call__(self, patches: jax.Array, layout: Layout) -> jax.Array:
    """Merged tokens, row by row of each image; those of padding mean nothing.

    Args:
      patches: float[I, N, patch_dim] in the order of `layout`; padding must be finite.
      layout: of the same I images and N.

    Returns:
      float[I, N / merge^2, out_dim] in the compute dtype.
    """
    angles = self._angles(layout.positions)
    windows, segments = jnp.asarray(layout.windows), jnp.asarray(layout.segments)
    is_full = np.isin(np.arange(self.cfg.depth), self.cfg.full_layers)

    def apply(block: Block, x: jax.Array, full: jax.Array) -> tuple[jax.Array, tuple[()]]:
      return block(x, angles, jnp.where(full, segments, windows)), ()

    x = constrain_tokens(self.patch_embed(patches))
    x, _ = scan(self.blocks, x, apply, (jnp.asarray(is_full),), remat=self.cfg.remat)
    return self.merger(x)

  def _angles(self, positions: Any) -> jax.Array:
    """float32[I, N, H/2]: a quarter of the head turns with the row, a quarter with the column."""
    quarter = self.cfg.dim // self.cfg.heads // 4
    freqs = (ROPE_THETA ** -(np.arange(quarter) / quarter)).astype(np.float32)
    angles = jnp.asarray(positions)[..., None].astype(jnp.float32) * freqs
    return angles.reshape(*angles.shape[:-2], 2 * quarter)


def _init(cfg: Config) -> Initializer:
  return layers.normal(cfg.init_std)
