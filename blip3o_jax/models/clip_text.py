"""A text tower: tokens in, one vector a text out.

It stands beside a miniature image tower in contrastive training, and it is CLIP's text encoder.
"""

import dataclasses
from typing import Literal

from flax import nnx
import jax
import jax.numpy as jnp

from blip3o_jax import layers
from blip3o_jax.attention import attention
from blip3o_jax.layers import Dtype
from blip3o_jax.layers import LayerNorm
from blip3o_jax.layers import linear
from blip3o_jax.remat import Remat

EMBEDDING_STD = 0.02


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of a text tower.

  Attributes:
    vocab_size: rows of the token table.
    length: rows of the position table; the longest text.
    dim, depth, heads, mlp_dim: of the blocks; `dim` is also the width of the output.
    causal: whether a token sees earlier ones only; the last valid one sees all either way.
    activation: of the MLP: the tanh GELU, which is quick on a CPU, the exact one, or CLIP's own,
      x sigmoid(1.702 x).

  Raises:
    ValueError: sizes that do not divide.
  """

  vocab_size: int
  length: int
  dim: int
  depth: int
  heads: int
  mlp_dim: int
  causal: bool = True
  activation: Literal["gelu_tanh", "gelu", "quick_gelu"] = "gelu_tanh"
  norm_eps: float = 1e-5
  dtype: Dtype = "float32"
  remat: Remat = "none"

  def __post_init__(self) -> None:
    if self.dim % self.heads:
      raise ValueError(f"dim {self.dim} does not divide into {self.heads} heads")


class Table(nnx.Module):
  """int[...] -> float[..., D]: rows of a learned table."""

  def __init__(self, size: int, dim: int, axis: str, *, dtype: Dtype, rngs: nnx.Rngs):
    init = layers.normal(EMBEDDING_STD)
    self.embedding = nnx.Param(init(rngs.params(), (size, dim)), axes=(axis, "embed"))
    self.dtype = dtype

  def __call__(self, index: jax.Array) -> jax.Array:
    return self.embedding[...].astype(self.dtype)[index]


class Attention(nnx.Module):
  """Self-attention with biases."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    def proj(axes: tuple[str, str]) -> nnx.Linear:
      return linear(cfg.dim, cfg.dim, axes, dtype=cfg.dtype, rngs=rngs)

    self.q_proj, self.k_proj, self.v_proj = (proj(("embed", "heads")) for _ in range(3))
    self.o_proj = proj(("heads", "embed"))
    self.heads, self.causal = cfg.heads, cfg.causal

  def __call__(self, x: jax.Array, segments: jax.Array) -> jax.Array:
    q, k, v = (
      layers.split_heads(proj(x), self.heads) for proj in (self.q_proj, self.k_proj, self.v_proj)
    )
    out = attention(q, k, v, segments=segments, causal=self.causal)
    return self.o_proj(layers.merge_heads(out))


class Mlp(nnx.Module):
  """fc2(activation(fc1(x)))."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    self.fc1 = linear(cfg.dim, cfg.mlp_dim, ("embed", "mlp"), dtype=cfg.dtype, rngs=rngs)
    self.fc2 = linear(cfg.mlp_dim, cfg.dim, ("mlp", "embed"), dtype=cfg.dtype, rngs=rngs)
    self.activation = cfg.activation

  def __call__(self, x: jax.Array) -> jax.Array:
    y = self.fc1(x)
    if self.activation == "quick_gelu":
      return self.fc2(y * jax.nn.sigmoid(1.702 * y))
    return self.fc2(jax.nn.gelu(y, approximate=self.activation == "gelu_tanh"))


class Block(nnx.Module):
  """x + attn(norm1(x)), then x + mlp(norm2(x))."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    self.norm1 = LayerNorm(cfg.dim, eps=cfg.norm_eps)
    self.attn = Attention(cfg, rngs=rngs)
    self.norm2 = LayerNorm(cfg.dim, eps=cfg.norm_eps)
    self.mlp = Mlp(cfg, rngs=rngs)

  def __call__(self, x: jax.Array, segments: jax.Array) -> jax.Array:
    x = x + self.attn(self.norm1(x), segments)
    return x + self.mlp(self.norm2(x))


class ClipText(nnx.Module):
  """The tower; a text is read at its last valid position, after the final norm."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    self.embed_tokens = Table(cfg.vocab_size, cfg.dim, "vocab", dtype=cfg.dtype, rngs=rngs)
    self.embed_positions = Table(cfg.length, cfg.dim, "rest", dtype=cfg.dtype, rngs=rngs)
    self.layers = layers.stack(lambda r: Block(cfg, rngs=r), cfg.depth, rngs)
    self.norm = LayerNorm(cfg.dim, eps=cfg.norm_eps)
    self.cfg = cfg

  def __call__(self, tokens: jax.Array, segments: jax.Array) -> jax.Array:
    """One vector a text.

    Args:
      tokens: int[B, T].
      segments: int[B, T], 0 is padding (on either side), the text is 1.

    Returns:
      float[B, D] in the compute dtype, not normalised.

    Raises:
      ValueError: T is more than the position table holds.
    """
    length = tokens.shape[1]
    if length > self.cfg.length:
      raise ValueError(f"a text of {length} tokens, the position table holds {self.cfg.length}")
    valid = (segments != 0).astype(jnp.int32)
    positions = jnp.maximum(jnp.cumsum(valid, 1) - 1, 0)
    x = self.embed_tokens(tokens) + self.embed_positions(positions)

    def apply(block: Block, x: jax.Array) -> tuple[jax.Array, None]:
      return layers.constrain_tokens(block(x, segments)), None

    x, _ = layers.scan(self.layers, layers.constrain_tokens(x), apply, remat=self.cfg.remat)
    last = jnp.max(valid * jnp.arange(length), 1)
    return self.norm(jnp.take_along_axis(x, last[:, None, None], 1)[:, 0])
