"""The KL autoencoder between pixels and latents (spec 5.3). Images in [-1, 1], channels last.

Latents are unscaled in `encode` and `decode`. A diffusion model sees those of `latents` and
`pixels`: (mean - shift_factor) * scaling_factor.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import einops
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from blip3o_jax import layers
from blip3o_jax.attention import attention
from blip3o_jax.layers import Conv
from blip3o_jax.layers import Dtype
from blip3o_jax.layers import GroupNorm
from blip3o_jax.layers import Resnet
from blip3o_jax.remat import Remat

EPS = 1e-6
LOGVAR_RANGE = (-30.0, 20.0)


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes; the defaults are the released autoencoder's.

  Attributes:
    image_channels, latent_channels: at the two ends.
    channels: of each level, from pixels down; every level but the last halves the side.
    depth: resnets a level in the encoder; the decoder has one more.
    groups: of every group norm.
    patch_size: pixels a side folded into channels before the first convolution (released: 1).
    mid_attention, quant_conv, post_quant_conv: parts that some autoencoders lack.
    scaling_factor, shift_factor: latents as a diffusion model sees them.

  Raises:
    ValueError: channels that do not divide into groups.
  """

  image_channels: int = 3
  latent_channels: int = 4
  channels: tuple[int, ...] = (128, 256, 512, 512)
  depth: int = 2
  groups: int = 32
  patch_size: int = 1
  mid_attention: bool = True
  quant_conv: bool = True
  post_quant_conv: bool = True
  scaling_factor: float = 0.13025
  shift_factor: float = 0.0
  dtype: Dtype = "float32"
  remat: Remat = "none"

  def __post_init__(self) -> None:
    odd = [c for c in self.channels if c % self.groups]
    if odd or not self.channels:
      raise ValueError(f"channels {self.channels}: {odd} do not divide into {self.groups} groups")

  @property
  def factor(self) -> int:
    """Pixels a side of one latent cell."""
    return self.patch_size * 2 ** (len(self.channels) - 1)


VARIANTS: dict[str, Config] = {
  "sdxl": Config(),
  "flux": Config(
    latent_channels=16,
    quant_conv=False,
    post_quant_conv=False,
    scaling_factor=0.3611,
    shift_factor=0.1159,
  ),
}


class Attention(nnx.Module):
  """Full attention over all cells, one head, around a residual: float[B, h, w, C] -> the same."""

  def __init__(self, dim: int, cfg: Config, *, rngs: nnx.Rngs):
    self.group_norm = GroupNorm(dim, groups=cfg.groups, eps=EPS)
    self.to_q = layers.linear(dim, dim, ("embed", "rest"), dtype=cfg.dtype, rngs=rngs)
    self.to_k = layers.linear(dim, dim, ("embed", "rest"), dtype=cfg.dtype, rngs=rngs)
    self.to_v = layers.linear(dim, dim, ("embed", "rest"), dtype=cfg.dtype, rngs=rngs)
    self.to_out = layers.linear(dim, dim, ("rest", "embed"), dtype=cfg.dtype, rngs=rngs)

  def __call__(self, x: jax.Array, block: int = 0) -> jax.Array:
    """With `block` so many cells look at a time, which changes no more than the rounding."""
    b, h, w, c = x.shape
    y = self.group_norm(x).reshape(b, h * w, c)
    q, k, v = (layers.split_heads(f(y), 1) for f in (self.to_q, self.to_k, self.to_v))
    if 0 < block < h * w:
      blocks = -(-h * w // block)
      q = jnp.pad(q, ((0, 0), (0, blocks * block - h * w), (0, 0), (0, 0)))
      q = jnp.moveaxis(q.reshape(b, blocks, block, 1, c), 1, 0)
      found = jnp.moveaxis(jax.lax.map(lambda own: attention(own, k, v), q), 0, 1)
      found = found.reshape(b, blocks * block, 1, c)[:, : h * w]
    else:
      found = attention(q, k, v)
    return x + self.to_out(layers.merge_heads(found)).reshape(b, h, w, c)


class MidBlock(nnx.Module):
  """Resnet, attention, resnet at the deepest level."""

  def __init__(self, dim: int, cfg: Config, *, rngs: nnx.Rngs):
    self.resnets = nnx.List([_resnet(dim, dim, cfg, rngs) for _ in range(2)])
    self.attentions = nnx.List([Attention(dim, cfg, rngs=rngs)] if cfg.mid_attention else [])

  def __call__(self, x: jax.Array, block: int = 0) -> jax.Array:
    first, second = self.resnets
    x = first(x)
    for attend in self.attentions:
      x = attend(x, block)
    return second(x)


class Resample(nnx.Module):
  """The convolution that halves or doubles the side: float[B, h, w, C] -> float[B, h', w', C]."""

  def __init__(self, dim: int, cfg: Config, *, down: bool, rngs: nnx.Rngs):
    # Halving pads one row below and one column to the right, not both sides.
    stride, padding = (2, ((0, 1), (0, 1))) if down else (1, None)
    self.conv = Conv(dim, dim, stride=stride, padding=padding, dtype=cfg.dtype, rngs=rngs)
    self.down = down

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.conv(x if self.down else layers.upsample(x))


class Level(nnx.Module):
  """Resnets at one resolution, then the change to the next one."""

  def __init__(
    self, d_in: int, d_out: int, depth: int, cfg: Config, *, down: bool, last: bool, rngs: nnx.Rngs
  ):
    widths = [d_in] + [d_out] * depth
    self.resnets = nnx.List([_resnet(widths[i], d_out, cfg, rngs) for i in range(depth)])
    resample = [] if last else [Resample(d_out, cfg, down=down, rngs=rngs)]
    if down:
      self.downsamplers = nnx.List(resample)
    else:
      self.upsamplers = nnx.List(resample)
    self.down, self.remat = down, cfg.remat

  def __call__(self, x: jax.Array) -> jax.Array:
    for resnet in self.resnets:
      # A convolution is no dot: only "full" has something to recompute here.
      x = jax.checkpoint(Resnet.__call__)(resnet, x) if self.remat == "full" else resnet(x)
    for resample in self.downsamplers if self.down else self.upsamplers:
      x = resample(x)
    return layers.constrain_cells(x)


class Encoder(nnx.Module):
  """float[B, H, W, 3] -> float[B, h, w, 2 C], mean and log-variance before `quant_conv`."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    widths, count = (cfg.channels[0], *cfg.channels), len(cfg.channels)
    pixel = cfg.image_channels * cfg.patch_size**2
    self.conv_in = Conv(pixel, widths[0], dtype=cfg.dtype, rngs=rngs)
    self.down_blocks = nnx.List(
      [
        Level(widths[i], widths[i + 1], cfg.depth, cfg, down=True, last=i == count - 1, rngs=rngs)
        for i in range(count)
      ]
    )
    self.mid_block = MidBlock(widths[-1], cfg, rngs=rngs)
    self.conv_norm_out = GroupNorm(widths[-1], groups=cfg.groups, eps=EPS)
    self.conv_out = Conv(widths[-1], 2 * cfg.latent_channels, dtype=cfg.dtype, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    x = self.conv_in(x)
    for block in self.down_blocks:
      x = block(x)
    return self.conv_out(jax.nn.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nnx.Module):
  """float[B, h, w, C] after `post_quant_conv` -> float[B, H, W, 3]."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    widths, count = (cfg.channels[-1], *cfg.channels[::-1]), len(cfg.channels)
    pixel = cfg.image_channels * cfg.patch_size**2
    self.conv_in = Conv(cfg.latent_channels, widths[0], dtype=cfg.dtype, rngs=rngs)
    self.mid_block = MidBlock(widths[0], cfg, rngs=rngs)
    self.up_blocks = nnx.List(
      [
        Level(
          widths[i], widths[i + 1], cfg.depth + 1, cfg, down=False, last=i == count - 1, rngs=rngs
        )
        for i in range(count)
      ]
    )
    self.conv_norm_out = GroupNorm(widths[-1], groups=cfg.groups, eps=EPS)
    self.conv_out = Conv(widths[-1], pixel, dtype=cfg.dtype, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.rise(self.mid_block(self.conv_in(x)))

  def in_tiles(self, x: jax.Array, side: int) -> jax.Array:
    """As `__call__`, what comes after the middle in tiles of `side` cells; see `decode`."""
    x = self.mid_block(self.conv_in(x), block=side * side)
    return tiled(self.rise, x, side, side // 4)

  def rise(self, x: jax.Array) -> jax.Array:
    """What comes after the middle."""
    for block in self.up_blocks:
      x = block(x)
    return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class Autoencoder(nnx.Module):
  """Encoder and decoder with their 1x1 convolutions around the latents (spec 5.3).

  Attributes:
    tile: latent cells a side of the tiles in which larger pictures are decoded; 0 is never.
  """

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    c = cfg.latent_channels
    self.cfg, self.tile = cfg, 0
    self.encoder = Encoder(cfg, rngs=rngs)
    self.decoder = Decoder(cfg, rngs=rngs)
    one: dict[str, Any] = dict(size=1, dtype=cfg.dtype, rngs=rngs)
    self.quant_conv = Conv(2 * c, 2 * c, **one) if cfg.quant_conv else None
    self.post_quant_conv = Conv(c, c, **one) if cfg.post_quant_conv else None

  def encode(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Moments of the latents of images.

    Args:
      images: float[B, H, W, 3] in [-1, 1], sides multiples of `cfg.factor`.

    Returns:
      mean and logvar float32[B, h, w, C], unscaled; logvar within [-30, 20].

    Raises:
      ValueError: a side that `cfg.factor` does not divide.
    """
    if any(side % self.cfg.factor for side in images.shape[1:3]):
      raise ValueError(f"image sides {images.shape[1:3]} are not multiples of {self.cfg.factor}")
    x = self.encoder(fold(images, self.cfg.patch_size))
    x = x if self.quant_conv is None else self.quant_conv(x)
    mean, logvar = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return mean, jnp.clip(logvar, *LOGVAR_RANGE)

  def decode(self, latents: jax.Array) -> jax.Array:
    """Unscaled latents float[B, h, w, C] -> images float32[B, H, W, 3], about [-1, 1].

    Where a side is longer than `tile`, what comes after the middle, which takes nearly all of the
    memory, is computed in tiles. The middle, which sees the whole picture, is not. The group norms
    of a tile have its own mean and variance, not the picture's: for that the result differs.
    """
    x = latents if self.post_quant_conv is None else self.post_quant_conv(latents)
    cut = 0 < self.tile < max(x.shape[1:3])
    x = self.decoder.in_tiles(x, self.tile) if cut else self.decoder(x)
    return unfold(x, self.cfg.patch_size).astype(jnp.float32)

  def latents(self, images: jax.Array) -> jax.Array:
    """Images [-1, 1] float[B, H, W, 3] -> scaled latents float32[B, h, w, C], the mean."""
    mean, _ = self.encode(images)
    return (mean - self.cfg.shift_factor) * self.cfg.scaling_factor

  def pixels(self, latents: jax.Array) -> jax.Array:
    """Scaled latents float[B, h, w, C] -> images float32[B, H, W, 3] in [0, 1], not rounded.

    What is not finite becomes NaN; clipped, infinity would be black or white.
    """
    x = self.decode(latents / self.cfg.scaling_factor + self.cfg.shift_factor)
    return jnp.where(jnp.isfinite(x), jnp.clip(x / 2 + 0.5, 0.0, 1.0), jnp.nan)


def tiled(f: Callable[[jax.Array], jax.Array], x: jax.Array, side: int, overlap: int) -> jax.Array:
  """`f` of overlapping tiles, one after the other, blended where they overlap.

  Of the overlap's four quarters the one next to a tile's edge, which sees the edge most, is left to
  the neighbour, and from one to the other it goes in the two between: a function that looks no
  further than a quarter gives what it gives of the whole.

  Args:
    f: float[B, t, u, C] -> float[B, k t, k u, D], with the same k for any sides.
    x: float[B, h, w, C]. side: of a tile, in cells. overlap: of two tiles, below `side`.

  Returns:
    float32[B, k h, k w, D].
  """
  b, h, w, c = x.shape
  high, wide = min(side, h), min(side, w)
  out = jax.eval_shape(f, jax.ShapeDtypeStruct((b, high, wide, c), x.dtype))
  factor = out.shape[1] // high
  rows, columns = (_shares(n, t, overlap, factor) for n, t in ((h, high), (w, wide)))
  starts = np.stack(np.meshgrid(rows[0], columns[0], indexing="ij"), -1).reshape(-1, 2)
  shares = (rows[1][:, None, :, None] * columns[1][None, :, None]).reshape(
    len(starts), *out.shape[1:3]
  )

  def add(canvas: jax.Array, tile: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
    (row, column), share = tile
    made = f(jax.lax.dynamic_slice(x, (0, row, column, 0), (b, high, wide, c)))
    at = (0, row * factor, column * factor, 0)
    there = jax.lax.dynamic_slice(canvas, at, out.shape)
    there += made.astype(jnp.float32) * share[None, :, :, None]
    return jax.lax.dynamic_update_slice(canvas, there, at), None

  canvas = jnp.zeros((b, h * factor, w * factor, out.shape[-1]), jnp.float32)
  return jax.lax.scan(add, canvas, (jnp.asarray(starts), jnp.asarray(shares)))[0]


def _shares(n: int, side: int, overlap: int, factor: int) -> tuple[np.ndarray, np.ndarray]:
  """Where tiles begin along n cells, int32[T], and their shares, float32[T, pixels of a side]."""
  step = max(1, side - overlap)
  starts = np.array([min(i * step, n - side) for i in range(-(-(n - side) // step) + 1)], np.int32)
  pixel = (np.arange(side * factor) + 0.5) / factor
  edge, ramp = overlap / 4, max(overlap / 2, 1 / factor)
  shares = np.zeros((len(starts), side * factor))
  whole = np.zeros(n * factor)
  for share, start in zip(shares, starts, strict=True):
    before = 1.0 if start == 0 else np.clip((pixel - edge) / ramp, 0, 1)
    after = 1.0 if start + side == n else np.clip((side - edge - pixel) / ramp, 0, 1)
    share[:] = np.broadcast_to(before * after, share.shape)
    whole[start * factor : (start + side) * factor] += share
  for share, start in zip(shares, starts, strict=True):
    share /= whole[start * factor : (start + side) * factor]
  return starts, shares.astype(np.float32)


def fold(x: jax.Array, p: int) -> jax.Array:
  """Patches into channels, row, column, channel: [B, H, W, C] -> [B, H/p, W/p, p p C]."""
  return einops.rearrange(x, "b (h p) (w q) c -> b h w (p q c)", p=p, q=p)


def unfold(x: jax.Array, p: int) -> jax.Array:
  """The inverse of `fold`."""
  return einops.rearrange(x, "b h w (p q c) -> b (h p) (w q) c", p=p, q=p)


def _resnet(d_in: int, d_out: int, cfg: Config, rngs: nnx.Rngs) -> Resnet:
  return Resnet(d_in, d_out, groups=cfg.groups, eps=EPS, dtype=cfg.dtype, rngs=rngs)


def latent_scale(module: Autoencoder, images: jax.Array) -> float:
  """1 / std of the unscaled latents of images [-1, 1] float[B, H, W, 3]: a `scaling_factor`."""
  graphdef, state = nnx.split(module)
  encode = jax.jit(lambda params, x: jnp.std(nnx.merge(graphdef, params).encode(x)[0]))
  return 1.0 / float(encode(nnx.to_pure_dict(state), images))
