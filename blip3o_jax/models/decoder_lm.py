"""The causal language model of Qwen2.5-VL: embed, run, prefill and extend a cache, logits.

Knows tokens, positions and segments; knows neither images nor slots: a caller replaces rows of
what `embed` gives. Source: spec 1.1, 1.2.
"""

import dataclasses
import functools
from typing import Any

from flax import nnx
from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from blip3o_jax import layers
from blip3o_jax import quantized
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
from blip3o_jax.remat import rematerialised
from blip3o_jax.remat import stored_gradient
from blip3o_jax.rotary import rotate_half


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of a decoder; the defaults are those that all released sizes share.

  Attributes:
    mrope_section: rotary frequencies that belong to the time, height and width position; they add
      up to head_dim / 2.
    tie_embeddings: the head is the transposed embedding table.
    init_std: of every matrix at the start; 0.02 suits the released widths, a narrow one learns
      sooner from dim ** -0.5.
    quantize: how the linear layers of the blocks are stored and multiplied, see `quantized`; other
      than "none" they cannot be trained.

  Raises:
    ValueError: heads that do not divide, an odd head_dim, sections that do not add up.
  """

  vocab_size: int
  dim: int
  depth: int
  heads: int
  kv_heads: int
  head_dim: int
  mlp_dim: int
  rope_theta: float = 1e6
  mrope_section: tuple[int, int, int] = (16, 24, 24)
  norm_eps: float = 1e-6
  tie_embeddings: bool = False
  init_std: float = 0.02
  dtype: Dtype = "float32"
  remat: Remat = "none"
  quantize: quantized.Quantize = "none"

  def __post_init__(self) -> None:
    if self.heads % self.kv_heads:
      raise ValueError(f"{self.heads} heads are not a multiple of {self.kv_heads} kv heads")
    if 2 * sum(self.mrope_section) != self.head_dim:
      raise ValueError(
        f"mrope_section {self.mrope_section} does not add up to head_dim / 2 = {self.head_dim / 2}"
      )


# The released vocabulary is cut to 151668 rows (spec 1.6).
VARIANTS: dict[str, Config] = {
  "qwen2_5_vl_3b": Config(
    vocab_size=151668,
    dim=2048,
    depth=36,
    heads=16,
    kv_heads=2,
    head_dim=128,
    mlp_dim=11008,
    tie_embeddings=True,
    dtype="bfloat16",
    remat="full",
  ),
  "qwen2_5_vl_7b": Config(
    vocab_size=151668,
    dim=3584,
    depth=28,
    heads=28,
    kv_heads=4,
    head_dim=128,
    mlp_dim=18944,
    dtype="bfloat16",
    remat="full",
  ),
}


@struct.dataclass
class Cache:
  """Keys and values of the positions read so far, in arrays of a fixed length S.

  Attributes:
    k, v: float[L, B, S, K, H], rotated keys and values.
    segments: int32[B, S]; 0 is padding or not yet written, and is never seen.
    length: int32[], how many of the S positions are written, padding included.
  """

  k: jax.Array
  v: jax.Array
  segments: jax.Array
  length: jax.Array


class Embedding(nnx.Module):
  """A table of V vectors: int[B, T] -> float[B, T, D] in the compute dtype."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    table = _init(cfg)(rngs.params(), (cfg.vocab_size, cfg.dim))
    self.embedding = nnx.Param(table, axes=("vocab", "embed"))
    self.dtype = cfg.dtype

  def __call__(self, tokens: jax.Array) -> jax.Array:
    # An id outside the table gives NaN rows, not the nearest row.
    rows = self.embedding[...].at[tokens].get(mode="fill", fill_value=jnp.nan)
    return rows.astype(self.dtype)


class SelfAttention(nnx.Module):
  """The four projections; who sees whom is the caller's."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    q_dim, kv_dim = cfg.heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim
    into, zeros = ("embed", "heads"), layers.zeros
    kw: dict[str, Any] = dict(dtype=cfg.dtype, init=_init(cfg), bias_init=zeros, rngs=rngs)
    make = functools.partial(quantized.linear, cfg.quantize)
    self.q_proj = make(cfg.dim, q_dim, into, **kw)
    self.k_proj = make(cfg.dim, kv_dim, into, **kw)
    self.v_proj = make(cfg.dim, kv_dim, into, **kw)
    self.o_proj = make(q_dim, cfg.dim, ("heads", "embed"), bias=False, **kw)
    self.heads, self.kv_heads = cfg.heads, cfg.kv_heads

  def project(self, x: Any, angles: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """float[B, T, D] -> rotated q [B, T, N, H], rotated k and v [B, T, K, H]."""
    q = split_heads(self.q_proj(x), self.heads)
    k = split_heads(self.k_proj(x), self.kv_heads)
    v = split_heads(self.v_proj(x), self.kv_heads)
    return rotate_half(q, angles), rotate_half(k, angles), v


class Layer(nnx.Module):
  """Pre-norm block: attention, then a gated MLP."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    self.input_layernorm = RMSNorm(cfg.dim, eps=cfg.norm_eps)
    self.self_attn = SelfAttention(cfg, rngs=rngs)
    self.post_attention_layernorm = RMSNorm(cfg.dim, eps=cfg.norm_eps)
    make = functools.partial(quantized.linear, cfg.quantize)
    self.mlp = GatedMlp(
      cfg.dim, cfg.mlp_dim, bias=False, dtype=cfg.dtype, init=_init(cfg), make=make, rngs=rngs
    )
    self.mlp.plain = self.quantised = cfg.quantize != "none"

  def project(self, x: jax.Array, angles: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The first half: q, k, v of the normed input."""
    norm = self.input_layernorm
    return self.self_attn.project(quantized.normed(norm, x) if self.quantised else norm(x), angles)

  def finish(self, x: jax.Array, mixed: jax.Array) -> jax.Array:
    """The second half: residual of float[B, T, D] with attention's [B, T, N, H], then the MLP."""
    x = x + self.self_attn.o_proj(stored_gradient(merge_heads(mixed)))
    norm = self.post_attention_layernorm
    if self.quantised:
      return constrain_tokens(x + self.mlp(quantized.normed(norm, x)))
    # Stored once: XLA would norm again inside the gate's matmul, for every tile.
    return constrain_tokens(x + self.mlp(jax.lax.optimization_barrier(norm(x))))


class DecoderLM(nnx.Module):
  """Token ids or vectors to hidden vectors to logits; every network below is causal.

  `segments` int[B, T]: 0 is padding, anywhere in the row; a position sees earlier ones of its own
  segment. `positions` int[B, T], or int[3, B, T] for time, height and width.
  """

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    self.cfg = cfg
    self.embed_tokens = Embedding(cfg, rngs=rngs)
    self.layers = stack(lambda r: Layer(cfg, rngs=r), cfg.depth, rngs)
    self.norm = RMSNorm(cfg.dim, eps=cfg.norm_eps)
    if not cfg.tie_embeddings:
      self.lm_head = linear(
        cfg.dim, cfg.vocab_size, ("embed", "vocab"), bias=False, init=_init(cfg), rngs=rngs
      )

  def embed(self, tokens: jax.Array) -> jax.Array:
    """int[B, T] -> float[B, T, D] in the compute dtype; NaN for an id outside the vocabulary."""
    return self.embed_tokens(tokens)

  def __call__(self, x: jax.Array, positions: jax.Array, segments: jax.Array) -> jax.Array:
    """Hidden vectors float[B, T, D] after the final norm, of inputs float[B, T, D]."""
    angles = rotary_angles(self.cfg, positions)

    def apply(layer: Layer, x: jax.Array) -> tuple[jax.Array, tuple[()]]:
      q, k, v = layer.project(x, angles)
      return layer.finish(x, attention(q, k, v, segments=segments, causal=True)), ()

    x, _ = scan(self.layers, constrain_tokens(x), apply, remat=self.cfg.remat)
    return self.norm(x)

  def prefill(
    self, x: jax.Array, positions: jax.Array, segments: jax.Array, length: int
  ) -> tuple[jax.Array, Cache]:
    """`__call__` that also keeps keys and values, for `extend`.

    Args:
      x: float[B, T, D]. positions, segments: as in the class.
      length: static number S of positions that the cache can hold, at least T.

    Returns:
      hidden float[B, T, D] and the cache.

    Raises:
      ValueError: a length below T.
    """
    t = x.shape[1]
    if length < t:
      raise ValueError(f"a cache of length {length} cannot hold a prompt of {t} positions")
    angles = rotary_angles(self.cfg, positions)

    def apply(layer: Layer, x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
      q, k, v = layer.project(x, angles)
      return layer.finish(x, attention(q, k, v, segments=segments, causal=True)), (k, v)

    x, (k, v) = scan(self.layers, constrain_tokens(x), apply, remat=self.cfg.remat)
    rest = length - t
    room = ((0, 0), (0, 0), (0, rest), (0, 0), (0, 0))
    cache = Cache(
      k=jnp.pad(k, room),
      v=jnp.pad(v, room),
      segments=jnp.pad(segments.astype(jnp.int32), ((0, 0), (0, rest))),
      length=jnp.asarray(t, jnp.int32),
    )
    return self.norm(x), cache

  def read_after(
    self,
    x: jax.Array,
    positions: jax.Array,
    segments: jax.Array,
    late: jax.Array,
    after: jax.Array,
  ) -> jax.Array:
    """`extend` after `prefill`, without gradient through the prompt, in one pass over the layers.

    So each weight is read, and where it is split gathered, once forward and once backward. The
    prompt's way ends at the keys and values of the last layer.

    Args:
      x: float[B, P, D], the prompt. positions, segments: as in the class.
      late: float[B, t, D], what follows it. after: its positions, int[B, t] or int[3, B, t].

    Returns:
      hidden float[B, t, D] of what follows.
    """
    angles, turned = rotary_angles(self.cfg, positions), rotary_angles(self.cfg, after)
    ones = jnp.ones(late.shape[:2], jnp.int32)
    seen = jnp.concatenate([(segments != 0).astype(jnp.int32), ones], 1)

    # By index, for the backward pass would be given a copy of all weights instead; and of what
    # follows alone, for the prompt has no backward pass.
    def follow(at: Any, late: jax.Array, before: tuple[jax.Array, jax.Array]) -> jax.Array:
      layer = layers.layer_of(self.layers, at)
      q, *own = layer.project(late, turned)
      k, v = (jnp.concatenate(pair, 1) for pair in zip(before, own, strict=True))
      return layer.finish(late, attention(q, k, v, segments=(ones, seen), causal=True))

    one_by_one = isinstance(self.layers, nnx.List)  # nothing is trained so
    if not one_by_one:
      follow = rematerialised(follow, self.cfg.remat)

    def both(carry: tuple[jax.Array, jax.Array], at: Any) -> tuple[Any, None]:
      x, late = carry
      layer = layers.layer_of(self.layers, at)
      q, k, v = layer.project(x, angles)
      x = layer.finish(x, attention(q, k, v, segments=segments, causal=True))
      return (x, follow(at, late, (k, v))), None

    carry = constrain_tokens(jax.lax.stop_gradient(x)), constrain_tokens(late)
    last = self.cfg.depth - 1
    if one_by_one:
      for at in range(last):
        carry, _ = both(carry, at)
      x, late = carry
    else:
      (x, late), _ = jax.lax.scan(both, carry, jnp.arange(last))
    _, *before = layers.layer_of(self.layers, last).project(x, angles)
    return self.norm(follow(last, late, (before[0], before[1])))

  def extend(
    self,
    x: jax.Array,
    positions: jax.Array,
    cache: Cache,
    segments: jax.Array | None = None,
  ) -> tuple[jax.Array, Cache]:
    """Reads t more positions of every row, each seeing the cache and the new ones before it.

    The new positions see every key whose segment is not 0. Differentiable in `x`; with the cache
    under `stop_gradient` this is the exact gradient of slots behind a frozen prompt (spec 11).

    Args:
      x: float[B, t, D]. positions: int[B, t] or int[3, B, t].
      cache: holds at least t free positions; if not, the hidden vectors are NaN.
      segments: int[B, t] of the new positions; those of 0 are written and never seen, for rows
        that wait while others are read. None: all are seen.

    Returns:
      hidden float[B, t, D] and the cache with the new positions written.

    Raises:
      ValueError: more positions than the whole cache holds.
    """
    size, t = cache.segments.shape[1], x.shape[1]
    if t > size:
      raise ValueError(f"{t} new positions do not fit a cache of length {size}")
    angles, start = rotary_angles(self.cfg, positions), cache.length
    ones = jnp.ones(x.shape[:2], jnp.int32)
    new = ones if segments is None else (segments != 0).astype(jnp.int32)
    written = jax.lax.dynamic_update_slice_in_dim(cache.segments, new, start, 1)
    seen = (written != 0).astype(jnp.int32)

    def apply(
      layer: Layer, x: jax.Array, k_old: jax.Array, v_old: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
      q, k, v = layer.project(x, angles)
      k_all = jax.lax.dynamic_update_slice_in_dim(k_old, k.astype(k_old.dtype), start, 1)
      v_all = jax.lax.dynamic_update_slice_in_dim(v_old, v.astype(v_old.dtype), start, 1)
      mixed = attention(q, k_all, v_all, segments=(ones, seen), causal=True, offset=start)
      return layer.finish(x, mixed), (k, v)

    x, (k, v) = scan(
      self.layers, constrain_tokens(x), apply, (cache.k, cache.v), remat=self.cfg.remat
    )
    # A write past the end would be shifted back over the prompt without a word.
    x = jnp.where(start + t <= size, self.norm(x), jnp.nan)
    return x, Cache(
      k=jax.lax.dynamic_update_slice_in_dim(cache.k, k.astype(cache.k.dtype), start, 2),
      v=jax.lax.dynamic_update_slice_in_dim(cache.v, v.astype(cache.v.dtype), start, 2),
      segments=written,
      length=start + t,
    )

  def logits(self, hidden: jax.Array) -> jax.Array:
    """float[B, T, D] after the final norm -> float32[B, T, V]."""
    if self.cfg.tie_embeddings:
      table = self.embed_tokens.embedding[...].astype(hidden.dtype)
      return jnp.einsum("btd,vd->btv", hidden, table, preferred_element_type=jnp.float32)
    kernel = self.lm_head.kernel[...].astype(hidden.dtype)
    return jnp.einsum("btd,dv->btv", hidden, kernel, preferred_element_type=jnp.float32)


def rotary_angles(cfg: Config, positions: jax.Array) -> jax.Array:
  """Rotary angles float32[B, T, H/2]; each frequency turns with the axis of its section.

  Args:
    positions: int or float [B, T], or [3, B, T] for time, height and width.
  """
  half = cfg.head_dim // 2
  freqs = cfg.rope_theta ** -(np.arange(half, dtype=np.float64) / half)
  if positions.ndim == 3:
    axis = np.repeat(np.arange(3), cfg.mrope_section)
    positions = jnp.moveaxis(positions, 0, -1)[..., axis]
  else:
    positions = positions[..., None]
  return positions.astype(jnp.float32) * freqs.astype(np.float32)


def plain_positions(segments: jax.Array) -> jax.Array:
  """int[B, T] segments -> int32[B, T]: 0, 1, 2 ... over what is not padding, 0 at left padding.

  So a left-padded row has the positions of the row alone (spec 1.7, 10.2 F3).
  """
  return jnp.maximum(jnp.cumsum((segments != 0).astype(jnp.int32), 1) - 1, 0)


def _init(cfg: Config) -> Initializer:
  return layers.normal(cfg.init_std)
