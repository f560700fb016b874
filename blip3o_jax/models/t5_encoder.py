"""The encoder of T5 1.1: all of the tokens of a text see each other, placed by how far apart.

Nothing is masked, padding neither, which is how FLUX reads a text (Nexus-Gen spec 5.3).
"""

import dataclasses
import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from blip3o_jax import layers
from blip3o_jax.layers import Dtype
from blip3o_jax.layers import RMSNorm


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of an encoder.

  Attributes:
    head_dim: of a head; the heads together need not be `dim` wide.
    buckets, max_distance: of the table of distances; half of the buckets are for keys behind the
      query, and distances from max_distance on share the last one.

  Raises:
    ValueError: buckets that are no multiple of 4 (one half a side, half of it for single steps).
  """

  vocab_size: int
  dim: int
  depth: int
  heads: int
  head_dim: int
  mlp_dim: int
  buckets: int = 32
  max_distance: int = 128
  norm_eps: float = 1e-6
  dtype: Dtype = "float32"

  def __post_init__(self) -> None:
    if self.buckets % 4 or self.max_distance <= self.buckets // 4:
      raise ValueError(
        f"buckets {self.buckets}, max_distance {self.max_distance}: expected a multiple of 4, and "
        "more than a fourth of it"
      )


class Attention(nnx.Module):
  """Self-attention without biases and without a scale of the logits."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    wide = cfg.heads * cfg.head_dim

    def proj(d_in: int, d_out: int, axes: tuple[str, str]) -> nnx.Linear:
      return layers.linear(d_in, d_out, axes, bias=False, dtype=cfg.dtype, rngs=rngs)

    self.q, self.k, self.v = (proj(cfg.dim, wide, ("embed", "heads")) for _ in range(3))
    self.o = proj(wide, cfg.dim, ("heads", "embed"))
    self.heads = cfg.heads

  def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
    q, k, v = (layers.split_heads(proj(x), self.heads) for proj in (self.q, self.k, self.v))
    # Not the house's `attention`: its kernels take no bias of the logits.
    mixed = jax.nn.dot_product_attention(q, k, v, bias=bias, scale=1.0, implementation="xla")
    return self.o(layers.merge_heads(mixed))


class Mlp(nnx.Module):
  """wo(gelu(wi_0(x)) * wi_1(x)), the tanh GELU, no biases."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    def proj(d_in: int, d_out: int, axes: tuple[str, str]) -> nnx.Linear:
      return layers.linear(d_in, d_out, axes, bias=False, dtype=cfg.dtype, rngs=rngs)

    self.wi_0, self.wi_1 = (proj(cfg.dim, cfg.mlp_dim, ("embed", "mlp")) for _ in range(2))
    self.wo = proj(cfg.mlp_dim, cfg.dim, ("mlp", "embed"))

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.wo(jax.nn.gelu(self.wi_0(x), approximate=True) * self.wi_1(x))


class Block(nnx.Module):
  """x + attention(norm(x)), then x + mlp(norm(x))."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    self.norm1 = RMSNorm(cfg.dim, eps=cfg.norm_eps)
    self.attention = Attention(cfg, rngs=rngs)
    self.norm2 = RMSNorm(cfg.dim, eps=cfg.norm_eps)
    self.mlp = Mlp(cfg, rngs=rngs)

  def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
    x = x + self.attention(self.norm1(x), bias)
    return x + self.mlp(self.norm2(x))


class T5Encoder(nnx.Module):
  """int[B, T] -> float[B, T, D] after the final norm, in the compute dtype."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    words, apart = (cfg.vocab_size, cfg.dim), (cfg.buckets, cfg.heads)
    draw = layers.normal(1.0)
    self.embedding = nnx.Param(draw(rngs.params(), words), axes=("vocab", "embed"))
    self.distances = nnx.Param(draw(rngs.params(), apart), axes=("rest", "heads"))
    self.layers = layers.stack(lambda r: Block(cfg, rngs=r), cfg.depth, rngs)
    self.norm = RMSNorm(cfg.dim, eps=cfg.norm_eps)
    self.cfg = cfg

  def __call__(self, tokens: jax.Array) -> jax.Array:
    """Features float[B, T, D] of token ids int[B, T]."""
    apart = self.distances[...].astype(jnp.float32)[buckets(tokens.shape[1], self.cfg)]
    bias = jnp.moveaxis(apart, -1, 0)[None]  # [1, N, T, S]

    def apply(block: Block, x: jax.Array) -> tuple[jax.Array, None]:
      return layers.constrain_tokens(block(x, bias)), None

    x = self.embedding[...][tokens].astype(self.cfg.dtype)
    x, _ = layers.scan(self.layers, layers.constrain_tokens(x), apply)
    return self.norm(x)


def buckets(length: int, cfg: Config) -> np.ndarray:
  """The row of the table of distances for each query and key, int[T, T].

  Keys behind the query have the second half. Of each half the first half is for single steps, the
  rest for steps that grow by one factor up to max_distance.
  """
  distance = np.arange(length)[None, :] - np.arange(length)[:, None]
  side = cfg.buckets // 2
  near = side // 2
  far = np.abs(distance)
  # In float32, as the encoder was trained: a distance may stand just at the edge of a bucket.
  ratio = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(near))
  grown = near + (ratio / np.float32(math.log(cfg.max_distance / near)) * (side - near)).astype(int)
  return np.where(distance > 0, side, 0) + np.where(far < near, far, np.minimum(grown, side - 1))
