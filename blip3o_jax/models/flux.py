"""The FLUX transformer: a velocity over patch tokens that attend together with context tokens.

Knows one network: tokens, a timestep and a condition in, a velocity out. Where a token lies the
caller says (three coordinates each). Knows no noise, no schedule and no guidance but the scale that
is embedded. Nexus-Gen spec 5.2 and 5.4.
"""

import dataclasses
from typing import Any

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
from blip3o_jax.layers import RMSNorm
from blip3o_jax.layers import linear
from blip3o_jax.remat import Remat

PATCH = 2  # latent cells a side of one token
NORM_EPS = 1e-6  # of all its norms
GUIDANCE_UNIT = 1000  # guidance is embedded as timesteps are, in 0..1000 and above

Tokens = tuple[jax.Array, jax.Array]  # context float[B, S, D], image float[B, N, D]


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of a FLUX transformer (Nexus-Gen spec 5.4).

  Attributes:
    dim, heads: of the blocks. axes: channels of a head for each of the three coordinates.
    double_depth: blocks with weights of their own for context and image. single_depth: blocks of
      one sequence.
    context_dim, pooled_dim: widths of the context tokens and of the pooled vector.
    in_channels: of a patch token, in and out. mlp_ratio: the MLP is so many times as wide as dim.
    sinusoid_dim: width of the sinusoids of time and guidance.
    guidance: whether it embeds a guidance scale, as the distilled release does.

  Raises:
    ValueError: sizes that do not divide.
  """

  dim: int
  heads: int
  axes: tuple[int, int, int] = (16, 56, 56)
  rope_theta: float = 1e4
  double_depth: int = 19
  single_depth: int = 38
  context_dim: int = 4096
  pooled_dim: int = 768
  in_channels: int = 64
  mlp_ratio: int = 4
  sinusoid_dim: int = 256
  guidance: bool = True
  dtype: Dtype = "float32"
  remat: Remat = "none"

  def __post_init__(self) -> None:
    if any(n % 2 for n in self.axes) or self.heads * sum(self.axes) != self.dim:
      raise ValueError(
        f"axes {self.axes} must be even and {self.heads} heads of {sum(self.axes)} channels make "
        f"dim, found {self.dim}"
      )
    if self.sinusoid_dim % 2 or self.in_channels % PATCH**2:
      raise ValueError(
        f"sinusoid_dim {self.sinusoid_dim} must be even, and in_channels {self.in_channels} those "
        f"of {PATCH**2} cells"
      )

  @property
  def head_dim(self) -> int:
    return self.dim // self.heads

  @property
  def mlp_dim(self) -> int:
    return self.mlp_ratio * self.dim


VARIANTS = {"flux_1_dev": Config(dim=3072, heads=24, dtype="bfloat16")}


@struct.dataclass
class Condition:
  """What depends neither on x nor on t.

  Attributes:
    tokens: float[B, S, D], the embedded context.
    vector: float[B, D], the embedded guidance and pooled vector, summed.
    cos, sin: float32[B, S + N, H], by which channels turn at each token, context first; `sin` has
      the signs.
  """

  tokens: jax.Array
  vector: jax.Array
  cos: jax.Array
  sin: jax.Array


# Where the batch is in each leaf, in the manner of vmap's in_axes.
BATCH_AXES = Condition(tokens=0, vector=0, cos=0, sin=0)  # type: ignore[arg-type]


class Embedder(nnx.Module):
  """float[B, d_in] -> float[B, D]: linear, SiLU, linear."""

  def __init__(self, cfg: Config, d_in: int, *, rngs: nnx.Rngs):
    self.linear_1 = linear(d_in, cfg.dim, ("rest", "mlp"), dtype=cfg.dtype, rngs=rngs)
    self.linear_2 = linear(cfg.dim, cfg.dim, ("mlp", "embed"), dtype=cfg.dtype, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.linear_2(jax.nn.silu(self.linear_1(x)))


class Projections(nnx.Module):
  """Queries, keys and values of one stream; of q and k each head is normed."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    def proj() -> layers.Linear:
      return linear(cfg.dim, cfg.dim, ("embed", "heads"), dtype=cfg.dtype, rngs=rngs)

    self.to_q, self.to_k, self.to_v = proj(), proj(), proj()
    self.norm_q = RMSNorm(cfg.head_dim, eps=NORM_EPS)
    self.norm_k = RMSNorm(cfg.head_dim, eps=NORM_EPS)
    self.heads = cfg.heads

  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """float[B, T, D] -> q, k, v, each float[B, T, N, H]."""
    q, k, v = (layers.split_heads(p(x), self.heads) for p in (self.to_q, self.to_k, self.to_v))
    return self.norm_q(q), self.norm_k(k), v


class Stream(nnx.Module):
  """One of the two streams of a double block: its modulation, projections and MLP."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    self.modulation = linear(cfg.dim, 6 * cfg.dim, ("embed", "mlp"), dtype=cfg.dtype, rngs=rngs)
    self.attn = Projections(cfg, rngs=rngs)
    self.to_out = linear(cfg.dim, cfg.dim, ("heads", "embed"), dtype=cfg.dtype, rngs=rngs)
    self.linear_1 = linear(cfg.dim, cfg.mlp_dim, ("embed", "mlp"), dtype=cfg.dtype, rngs=rngs)
    self.linear_2 = linear(cfg.mlp_dim, cfg.dim, ("mlp", "embed"), dtype=cfg.dtype, rngs=rngs)

  def finish(self, x: jax.Array, mixed: jax.Array, modulation: Any) -> jax.Array:
    """x float[B, T, D] with what attention gave added, and the MLP's output."""
    gate, shift, scale, mlp_gate = modulation
    x = x + gate * self.to_out(mixed)
    out = self.linear_1(modulated(x, shift, scale))
    return x + mlp_gate * self.linear_2(jax.nn.gelu(out, approximate=True))


class DoubleBlock(nnx.Module):
  """Two streams with weights of their own that attend as one sequence, context first."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    self.context = Stream(cfg, rngs=rngs)
    self.image = Stream(cfg, rngs=rngs)

  def __call__(self, tokens: Tokens, conditioning: jax.Array, condition: Condition) -> Tokens:
    """One block; `conditioning` is silu of the embedding, float[B, D]."""
    streams = (self.context, self.image)
    chunks = [jnp.split(s.modulation(conditioning)[:, None], 6, -1) for s in streams]
    parts = [s.attn(modulated(x, *c[:2])) for s, x, c in zip(streams, tokens, chunks, strict=True)]
    q, k, v = (jnp.concatenate(pair, 1) for pair in zip(*parts, strict=True))
    mixed = attend(q, k, v, condition)
    at = tokens[0].shape[1]
    context, image = (
      s.finish(x, m, c[2:])
      for s, x, m, c in zip(streams, tokens, (mixed[:, :at], mixed[:, at:]), chunks, strict=True)
    )
    return context, image


class SingleBlock(nnx.Module):
  """Attention and MLP side by side over one sequence, with one output projection."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    self.modulation = linear(cfg.dim, 3 * cfg.dim, ("embed", "mlp"), dtype=cfg.dtype, rngs=rngs)
    self.attn = Projections(cfg, rngs=rngs)
    self.linear_1 = linear(cfg.dim, cfg.mlp_dim, ("embed", "mlp"), dtype=cfg.dtype, rngs=rngs)
    # Of attention's channels and then the MLP's.
    self.linear_2 = linear(
      cfg.dim + cfg.mlp_dim, cfg.dim, ("mlp", "embed"), dtype=cfg.dtype, rngs=rngs
    )

  def __call__(self, x: jax.Array, conditioning: jax.Array, condition: Condition) -> jax.Array:
    """One block over float[B, T, D]; `conditioning` is silu of the embedding, float[B, D]."""
    shift, scale, gate = jnp.split(self.modulation(conditioning)[:, None], 3, -1)
    n = modulated(x, shift, scale)
    mixed = attend(*self.attn(n), condition)
    hidden = jax.nn.gelu(self.linear_1(n), approximate=True)
    return x + gate * self.linear_2(jnp.concatenate([mixed, hidden], -1))


class FinalLayer(nnx.Module):
  """A layer norm without affine, modulated by the embedding, and the projection to the output."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    self.scale = linear(cfg.dim, cfg.dim, ("embed", "mlp"), dtype=cfg.dtype, rngs=rngs)
    self.shift = linear(cfg.dim, cfg.dim, ("embed", "mlp"), dtype=cfg.dtype, rngs=rngs)
    self.linear = linear(cfg.dim, cfg.in_channels, ("embed", "rest"), dtype=cfg.dtype, rngs=rngs)

  def __call__(self, x: jax.Array, conditioning: jax.Array) -> jax.Array:
    shift, scale = self.shift(conditioning)[:, None], self.scale(conditioning)[:, None]
    return self.linear(modulated(x, shift, scale))


class Flux(nnx.Module):
  """The network: `prepare` a condition once, then call it for any x and timestep."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    self.x_embedder = linear(
      cfg.in_channels, cfg.dim, ("rest", "embed"), dtype=cfg.dtype, rngs=rngs
    )
    self.context_embedder = linear(
      cfg.context_dim, cfg.dim, ("embed", "mlp"), dtype=cfg.dtype, rngs=rngs
    )
    self.time_embedder = Embedder(cfg, cfg.sinusoid_dim, rngs=rngs)
    self.guidance_embedder = Embedder(cfg, cfg.sinusoid_dim, rngs=rngs) if cfg.guidance else None
    self.pooled_embedder = Embedder(cfg, cfg.pooled_dim, rngs=rngs)
    self.double = layers.stack(lambda r: DoubleBlock(cfg, rngs=r), cfg.double_depth, rngs)
    self.single = layers.stack(lambda r: SingleBlock(cfg, rngs=r), cfg.single_depth, rngs)
    self.norm_out = FinalLayer(cfg, rngs=rngs)
    self.cfg = cfg

  def prepare(
    self,
    context: jax.Array,
    pooled: jax.Array,
    guidance: jax.Array,
    text_ids: jax.Array | np.ndarray,
    image_ids: jax.Array | np.ndarray,
  ) -> Condition:
    """Everything that depends on no x and no t.

    The release computes in bfloat16 and rounds ids and guidance to it. In a network of bfloat16 the
    guidance in thousands is rounded here (3500 is 3504 then); ids are taken as they are given.

    Args:
      context: float[B, S, context_dim]. pooled: float[B, pooled_dim].
      guidance: float[B], the scale that is embedded (3.5); not read where cfg.guidance is False.
      text_ids: float32[1 or B, S, 3], coordinates of the context tokens. image_ids: [1 or B, N, 3],
        of the image's, see `image_ids`. Known to the trace (numpy) their angles are exact; traced
        ones have angles of float32.

    Raises:
      ValueError: ids that are not three coordinates for each token.
    """
    rows, length, _ = context.shape
    for name, ids, count in (("text_ids", text_ids, length), ("image_ids", image_ids, None)):
      wanted = f"[1 or {rows}, {'N' if count is None else count}, 3]"
      fits = ids.ndim == 3 and ids.shape[0] in (1, rows) and ids.shape[2] == 3
      if not fits or count not in (None, ids.shape[1]):
        raise ValueError(f"{name}: found shape {tuple(ids.shape)}, expected {wanted}")
    vector = self.pooled_embedder(pooled)
    if self.guidance_embedder is not None:
      given = jnp.asarray(guidance).astype(jnp.dtype(self.cfg.dtype)) * GUIDANCE_UNIT
      vector = self.guidance_embedder(sinusoid(self.cfg, given)) + vector
    tables = [rotary_table(self.cfg, ids) for ids in (text_ids, image_ids)]
    cos, sin = (
      jnp.concatenate([jnp.broadcast_to(t, (rows, *t.shape[1:])) for t in pair], 1)
      for pair in zip(*tables, strict=True)
    )
    tokens = layers.constrain_tokens(self.context_embedder(context))
    return Condition(tokens=tokens, vector=vector, cos=cos, sin=sin)

  def conditioning(self, t: jax.Array, condition: Condition) -> jax.Array:
    """float[B, D] of t float[B] in 0..1000: what modulates every block, before the SiLU."""
    return self.time_embedder(sinusoid(self.cfg, t)) + condition.vector

  def __call__(self, x: jax.Array, t: jax.Array, condition: Condition) -> jax.Array:
    """The velocity (noise - x0) at x.

    Args:
      x: float[B, N, in_channels], patch tokens (`patchify`).
      t: float[B] in 0..1000, 1000 is pure noise; fractions are allowed.
      condition: from `prepare`, of the same batch and for N image tokens.

    Returns:
      float32[B, N, in_channels].
    """
    conditioning = jax.nn.silu(self.conditioning(t, condition))

    def double(block: DoubleBlock, tokens: Tokens) -> tuple[Tokens, None]:
      context, image = block(tokens, conditioning, condition)
      return (layers.constrain_tokens(context), layers.constrain_tokens(image)), None

    def single(block: SingleBlock, tokens: jax.Array) -> tuple[jax.Array, None]:
      return layers.constrain_tokens(block(tokens, conditioning, condition)), None

    image = layers.constrain_tokens(self.x_embedder(x))
    both, _ = layers.scan(self.double, (condition.tokens, image), double, remat=self.cfg.remat)
    tokens, _ = layers.scan(self.single, jnp.concatenate(both, 1), single, remat=self.cfg.remat)
    image = tokens[:, condition.tokens.shape[1] :]
    return self.norm_out(image, conditioning).astype(jnp.float32)


def modulated(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
  """float[B, T, D] layer-normed without affine, scaled and shifted by float[B, 1, D]."""
  return (layers.standardize(x, NORM_EPS) * (1 + scale) + shift).astype(x.dtype)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, condition: Condition) -> jax.Array:
  """Attention of three float[B, T, N, H], q and k turned: float[B, T, D]."""
  cos, sin = condition.cos[:, :, None], condition.sin[:, :, None]
  q, k = (rotary.turn(x, cos, sin, "pairs") for x in (q, k))
  return layers.merge_heads(attention(q, k, v))


def sinusoid(cfg: Config, t: jax.Array) -> jax.Array:
  """float32[B, sinusoid_dim] of float[B] in thousands."""
  return layers.timestep_embedding(t, cfg.sinusoid_dim)


def rotary_table(cfg: Config, ids: jax.Array | np.ndarray) -> tuple[Any, Any]:
  """Cosines and signed sines float32[B, T, H] of coordinates float[B, T, 3].

  Channel pair i of an axis of n channels turns by its coordinate * theta^(-2i/n). Of numpy's arrays
  the angles are float64 and the tables numpy's.
  """
  xp: Any = np if isinstance(ids, np.ndarray) else jnp
  wide = ids.astype(np.float64 if xp is np else np.float32)
  parts = []
  for axis, size in enumerate(cfg.axes):
    freqs = cfg.rope_theta ** (-2.0 * np.arange(size // 2) / size)
    parts.append(wide[..., axis, None] * freqs.astype(wide.dtype))
  angles = xp.concatenate(parts, -1)
  cos, sin = (f(angles).astype(np.float32) for f in (xp.cos, xp.sin))
  signed = xp.stack([-sin, sin], -1)
  return xp.repeat(cos, 2, -1), signed.reshape(*signed.shape[:-2], -1)


def patchify(latents: jax.Array) -> jax.Array:
  """float[B, h, w, C] -> float[B, hw/4, 4C], row-major, a patch's features in order (C, y, x)."""
  return einops.rearrange(latents, "b (h p) (w q) c -> b (h w) (c p q)", p=PATCH, q=PATCH)


def unpatchify(tokens: jax.Array, h: int, w: int) -> jax.Array:
  """The inverse of `patchify`: float[B, hw/4, 4C] -> float[B, h, w, C]."""
  return einops.rearrange(
    tokens, "b (h w) (c p q) -> b (h p) (w q) c", h=h // PATCH, w=w // PATCH, p=PATCH, q=PATCH
  )


def image_ids(h: int, w: int) -> np.ndarray:
  """(0, row, column) of each patch of latents of h x w cells: float32[hw/4, 3]."""
  rows, columns = np.divmod(np.arange(h * w // PATCH**2), w // PATCH)
  return np.stack([np.zeros_like(rows), rows, columns], -1).astype(np.float32)
