"""The EVA-CLIP vision tower whose pooled patch features are what the generator learns to make.

Knows one network: normalised images in, patch features out. Spec section 2.
"""

import dataclasses
import math

import einops
from flax import nnx
import jax
import jax.numpy as jnp

from blip3o_jax import layers
from blip3o_jax.attention import attention
from blip3o_jax.layers import Dtype
from blip3o_jax.layers import LayerNorm
from blip3o_jax.layers import linear
from blip3o_jax.remat import Remat

POSITION_STD = 0.02


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of an EVA tower (spec 2.1).

  Attributes:
    image_size, patch_size: side in pixels.
    dim, depth, heads, mlp_dim: of the blocks.

  Raises:
    ValueError: sizes that do not divide.
  """

  image_size: int
  patch_size: int
  dim: int
  depth: int
  heads: int
  mlp_dim: int
  norm_eps: float = 1e-6
  dtype: Dtype = "float32"
  remat: Remat = "none"

  def __post_init__(self) -> None:
    if self.image_size % self.patch_size:
      raise ValueError(
        f"image_size {self.image_size} does not divide into patches of {self.patch_size}"
      )
    if self.dim % self.heads:
      raise ValueError(f"dim {self.dim} does not divide into {self.heads} heads")

  @property
  def grid(self) -> int:
    """Patches a side."""
    return self.image_size // self.patch_size


VARIANTS = {
  "eva_clip_e14plus": Config(
    image_size=448,
    patch_size=14,
    dim=1792,
    depth=64,
    heads=16,
    mlp_dim=15360,
    dtype="bfloat16",
  )
}


class PatchEmbed(nnx.Module):
  """float[B, H, W, 3] -> float[B, P, D], patches row-major.

  A convolution whose stride is its size, computed as a matmul: on a CPU a convolution inside a loop
  (gradient accumulation) is many times slower. The kernel keeps the convolution's shape.
  """

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    p = cfg.patch_size
    init, key = layers.uniform_fan_in(3 * p * p), rngs.params
    self.kernel = nnx.Param(init(key(), (p, p, 3, cfg.dim)), axes=("rest", "rest", "rest", "embed"))
    self.bias = nnx.Param(init(key(), (cfg.dim,)), axes=("embed",))
    self.dtype = cfg.dtype

  def __call__(self, images: jax.Array) -> jax.Array:
    p, _, _, dim = self.kernel.shape
    x = images.astype(self.dtype)
    x = einops.rearrange(x, "b (h p) (w q) c -> b (h w) (p q c)", p=p, q=p)
    kernel = self.kernel[...].astype(self.dtype).reshape(-1, dim)
    return x @ kernel + self.bias[...].astype(self.dtype)


class Attention(nnx.Module):
  """Full self-attention; q, k and v with bias (fused in the released files)."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    def proj(axes: tuple[str, str]) -> nnx.Linear:
      return linear(cfg.dim, cfg.dim, axes, dtype=cfg.dtype, rngs=rngs)

    self.q_proj, self.k_proj, self.v_proj = (proj(("embed", "heads")) for _ in range(3))
    self.proj = proj(("heads", "embed"))
    self.heads = cfg.heads

  def __call__(self, x: jax.Array) -> jax.Array:
    q, k, v = (
      layers.split_heads(proj(x), self.heads) for proj in (self.q_proj, self.k_proj, self.v_proj)
    )
    return self.proj(layers.merge_heads(attention(q, k, v)))


class Mlp(nnx.Module):
  """fc2(gelu(fc1(x))), the exact (erf) GELU."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    self.fc1 = linear(cfg.dim, cfg.mlp_dim, ("embed", "mlp"), dtype=cfg.dtype, rngs=rngs)
    self.fc2 = linear(cfg.mlp_dim, cfg.dim, ("mlp", "embed"), dtype=cfg.dtype, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class Block(nnx.Module):
  """x + norm1(attn(x)), then x + norm2(mlp(x)): the norm stands after the layer."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    self.attn = Attention(cfg, rngs=rngs)
    self.norm1 = LayerNorm(cfg.dim, eps=cfg.norm_eps)
    self.mlp = Mlp(cfg, rngs=rngs)
    self.norm2 = LayerNorm(cfg.dim, eps=cfg.norm_eps)

  def __call__(self, x: jax.Array) -> jax.Array:
    x = x + self.norm1(self.attn(x))
    return x + self.norm2(self.mlp(x))


class EvaVit(nnx.Module):
  """The tower: no final norm, no head; the class token attends but is not returned."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    init, key = layers.normal(POSITION_STD), rngs.params
    self.patch_embed = PatchEmbed(cfg, rngs=rngs)
    self.cls_token = nnx.Param(init(key(), (1, 1, cfg.dim)), axes=("rest", "rest", "embed"))
    self.pos_embed = nnx.Param(
      init(key(), (1, cfg.grid**2 + 1, cfg.dim)), axes=("rest", "rest", "embed")
    )
    self.blocks = layers.stack(lambda r: Block(cfg, rngs=r), cfg.depth, rngs)
    self.cfg = cfg

  def __call__(self, images: jax.Array) -> jax.Array:
    """Patch features of the last block (spec 2.1).

    Args:
      images: float[B, image_size, image_size, 3], normalised by CLIP's mean and std.

    Returns:
      float[B, P, D] in the compute dtype, P = grid^2 patches row-major.

    Raises:
      ValueError: images of another size.
    """
    side = self.cfg.image_size
    if images.shape[1:] != (side, side, 3):
      raise ValueError(f"images of shape {images.shape}, expected (batch, {side}, {side}, 3)")
    x = self.patch_embed(images)
    cls = jnp.broadcast_to(self.cls_token[...].astype(x.dtype), (x.shape[0], 1, x.shape[2]))
    x = jnp.concatenate([cls, x], 1) + self.pos_embed[...].astype(x.dtype)

    def apply(block: Block, x: jax.Array) -> tuple[jax.Array, None]:
      return layers.constrain_tokens(block(x)), None

    x, _ = layers.scan(self.blocks, layers.constrain_tokens(x), apply, remat=self.cfg.remat)
    return x[:, 1:]


def pool(x: jax.Array, stride: int) -> jax.Array:
  """Averages patch features over squares of `stride` patches a side (spec 2.5).

  Args:
    x: float[B, P, D], P a square number, row-major.

  Returns:
    float[B, sqrt(P)/stride, sqrt(P)/stride, D] in the dtype of x; means are taken in float32.

  Raises:
    ValueError: P is no square, or its side does not divide by `stride`.
  """
  b, patches, dim = x.shape
  side = math.isqrt(patches)
  if side * side != patches or side % stride:
    raise ValueError(f"{patches} patches do not pool into squares of {stride} a side")
  n = side // stride
  cells = x.astype(jnp.float32).reshape(b, n, stride, n, stride, dim)
  return cells.mean((2, 4)).astype(x.dtype)
