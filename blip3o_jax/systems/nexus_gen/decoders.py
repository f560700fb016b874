"""The two pixel decoders: image vectors to a context, and the transformer that paints from it.

    generation: n target vectors ─► adapter ─► n context tokens
    editing: n target and r reference vectors ─► merger ─► n + r context tokens
    context, pooled constant, guidance ─► FLUX ─► velocity

A decoder's vectors cover squares: n and r are cells² of the encoder's merged cells, two patches a
side. B batch, D width of the vectors, C of the context, h w latent cells (Nexus-Gen spec 5, 6).
"""

import abc
import dataclasses
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from blip3o_jax import layers
from blip3o_jax.attention import attention
from blip3o_jax.diffusion import flow
from blip3o_jax.layers import Dtype
from blip3o_jax.layers import LayerNorm
from blip3o_jax.layers import RMSNorm
from blip3o_jax.models import decoder_lm
from blip3o_jax.models import flux
from blip3o_jax.systems.nexus_gen.losses import Loss

PATCHES = 2  # of the vision encoder, a side of one of its merged cells
GUIDANCE = 3.5  # embedded, the one that both decoders were trained with
SHIFT, LAST = 3.0, 0.003 / 1.002  # of the times of sampler and training, see `flow.schedule`
TIME_BINS = 10
Size = tuple[int, int]
Given = tuple[jax.Array, jax.Array | None]


class Adapter(nnx.Module):
  """Vectors to context tokens, each alone: float[B, n, D] -> float[B, n, C] (spec 5.1)."""

  def __init__(self, d_in: int, d_out: int, *, dtype: Dtype = "float32", rngs: nnx.Rngs):
    self.linear_in = layers.linear(d_in, d_out, ("embed", "mlp"), dtype=dtype, rngs=rngs)
    self.norm_in = LayerNorm(d_out, eps=1e-5)
    self.linear_out = layers.linear(d_out, d_out, ("mlp", "embed"), dtype=dtype, rngs=rngs)
    self.norm_out = LayerNorm(d_out, eps=1e-5)

  def __call__(self, vectors: jax.Array) -> jax.Array:
    x = jax.nn.relu(self.norm_in(self.linear_in(vectors)))
    return self.norm_out(self.linear_out(x))


class Merger(nnx.Module):
  """Target and reference vectors, which see each other, to context tokens (spec 6.1).

  Args:
    cfg: of the language model, whose layers these are. depth: of them (released: 1).
    expand: width between the two projections, in units of `out`, the width of the context.
    base_grid: patches a side of the frame that all positions are scaled to.
  """

  def __init__(
    self,
    cfg: decoder_lm.Config,
    depth: int,
    expand: int,
    out: int,
    base_grid: int,
    *,
    rngs: nnx.Rngs,
  ):
    cfg = self.cfg = dataclasses.replace(cfg, quantize="none")
    self.base_grid = base_grid
    self.layers = layers.stack(lambda r: decoder_lm.Layer(cfg, rngs=r), depth, rngs)
    kw: dict[str, Any] = dict(dtype=cfg.dtype, rngs=rngs)
    self.norm_in = RMSNorm(cfg.dim, eps=cfg.norm_eps)
    self.linear_in = layers.linear(cfg.dim, expand * out, ("embed", "mlp"), **kw)
    self.norm_mid = RMSNorm(expand * out, eps=cfg.norm_eps)
    self.linear_out = layers.linear(expand * out, out, ("mlp", "embed"), **kw)
    self.norm_out = RMSNorm(out, eps=cfg.norm_eps)

  def __call__(self, target: jax.Array, reference: jax.Array | None = None) -> jax.Array:
    """float[B, n, D] and float[B, r, D] -> float[B, n + r, C], or float[B, n, C] without.

    Raises:
      ValueError: a number of vectors that is no square.
    """
    both = [target] if reference is None else [target, reference]
    x = jax.nn.silu(self.norm_mid(self.linear_in(self.mixed(both))))
    return self.norm_out(self.linear_out(x))

  def mixed(self, both: list[jax.Array]) -> jax.Array:
    """What is projected, of all vectors in turn, after they have seen each other: [B, n + r, D]."""
    x = layers.constrain_tokens(jnp.concatenate(both, 1).astype(self.cfg.dtype))
    positions = merger_positions([v.shape[1] for v in both], self.base_grid)
    angles = decoder_lm.rotary_angles(self.cfg, jnp.asarray(positions)[:, None])

    def apply(layer: decoder_lm.Layer, x: jax.Array) -> tuple[jax.Array, tuple[()]]:
      return layer.finish(x, attention(*layer.project(x, angles))), ()

    x, _ = layers.scan(self.layers, x, apply, remat=self.cfg.remat)
    return self.norm_in(x)


class Constants(nnx.Module):
  """What FLUX's text encoders say of the empty text; given, never trained (spec 5.2, 5.3).

  Attributes:
    pooled: float[P], of every call. context: float[null_tokens, C], the absence of a condition.
  """

  def __init__(self, cfg: flux.Config, null_tokens: int, *, rngs: nnx.Rngs):
    draw, shape = layers.normal(1.0), (null_tokens, cfg.context_dim)
    self.pooled = nnx.Param(draw(rngs.params(), (cfg.pooled_dim,)), axes=("rest",))
    self.context = nnx.Param(draw(rngs.params(), shape), axes=("rest", "rest"))


class Decoder(nnx.Module):
  """A transformer and what makes its context; the common half of the two decoders."""

  dit: flux.Flux

  @abc.abstractmethod
  def context(
    self, vectors: jax.Array, reference: jax.Array | None, size: Size
  ) -> tuple[jax.Array, np.ndarray]:
    """The context of vectors and where its tokens stand, for latents of `size` (h, w).

    Args:
      vectors: float[B, n, D]. reference: float[B, r, D] of the picture that is edited, or None.

    Returns:
      float[B, S, C] and text ids float32[S, 3].

    Raises:
      ValueError: a number of vectors that is no square, a reference where none is read.
    """

  def condition(
    self,
    constants: Constants,
    vectors: jax.Array,
    reference: jax.Array | None,
    size: Size,
    guidance: float | jax.Array = GUIDANCE,
  ) -> flux.Condition:
    """All that is constant over the steps, for latents of `size` (h, w); see `context`."""
    context, ids = self.context(vectors, reference, size)
    return self._prepare(constants, context, ids, size, guidance)

  def null(
    self, constants: Constants, rows: int, size: Size, guidance: float | jax.Array = GUIDANCE
  ) -> flux.Condition:
    """The condition of `rows` pictures that nothing is said about; its tokens stand at 0."""
    context = constants.context[...]
    ids = np.zeros((len(context), 3), np.float32)
    context = jnp.broadcast_to(context, (rows, *context.shape))
    return self._prepare(constants, context, ids, size, guidance)

  def velocity(self, x: jax.Array, t: jax.Array, condition: flux.Condition) -> jax.Array:
    """Of latents float[B, h, w, 16] at t float[B] in 0..1000: float32[B, h, w, 16]."""
    return flux.unpatchify(self.dit(flux.patchify(x), t, condition), *x.shape[1:3])

  def _prepare(
    self,
    constants: Constants,
    context: jax.Array,
    ids: np.ndarray,
    size: Size,
    guidance: float | jax.Array,
  ) -> flux.Condition:
    rows, pooled = len(context), constants.pooled[...]
    # The release rounds the image's ids to bfloat16 too, which changes no whole number up to 256:
    # none in a picture of 4096 pixels a side.
    return self.dit.prepare(
      context,
      jnp.broadcast_to(pooled, (rows, *pooled.shape)),
      jnp.full((rows,), guidance, jnp.float32),
      ids[None],
      flux.image_ids(*size)[None],
    )


class Generator(Decoder):
  """The generation decoder: paints from target vectors alone."""

  def __init__(self, d_in: int, cfg: flux.Config, *, rngs: nnx.Rngs):
    self.adapter = Adapter(d_in, cfg.context_dim, dtype=cfg.dtype, rngs=rngs)
    self.dit = flux.Flux(cfg, rngs=rngs)

  def context(
    self, vectors: jax.Array, reference: jax.Array | None, size: Size
  ) -> tuple[jax.Array, np.ndarray]:
    """See `Decoder`; all tokens stand at 0 (spec 5.1)."""
    del size
    if reference is not None:
      raise ValueError(
        "the generation decoder takes no reference picture; the editing decoder does"
      )
    return self.adapter(vectors), np.zeros((vectors.shape[1], 3), np.float32)


class Editor(Decoder):
  """The editing decoder: paints from target vectors beside those of the picture that is edited."""

  def __init__(
    self,
    language: decoder_lm.Config,
    cfg: flux.Config,
    *,
    depth: int = 1,
    expand: int = 4,
    base_grid: int = 72,
    rngs: nnx.Rngs,
  ):
    self.dtype = cfg.dtype
    self.merger = Merger(language, depth, expand, cfg.context_dim, base_grid, rngs=rngs)
    self.dit = flux.Flux(cfg, rngs=rngs)

  def context(
    self, vectors: jax.Array, reference: jax.Array | None, size: Size
  ) -> tuple[jax.Array, np.ndarray]:
    """See `Decoder`; the reference may be missing (spec 6.2)."""
    counts = [v.shape[1] for v in (vectors, reference) if v is not None]
    return self.merger(vectors, reference), text_ids(counts, size, self.dtype)


def merger_positions(counts: list[int], base_grid: int) -> np.ndarray:
  """Time, row and column of vectors in one frame, float32[3, n + r] (spec 6.1).

  Args:
    counts: vectors of the target and, where there is one, of the reference. base_grid: patches a
      side of the frame.
  """
  found = []
  for n in counts:
    row, column = _cells(n)
    step = base_grid / (PATCHES * math.isqrt(n))
    found.append(np.stack([np.zeros(n), row * step, column * step]))
  return np.concatenate(found, 1).astype(np.float32)


def text_ids(counts: list[int], size: Size, dtype: Dtype) -> np.ndarray:
  """Where the editing decoder's context stands among latents of `size`, float32[n + r, 3].

  Rounded to bfloat16 if that is the compute dtype, as the released pipeline does (spec 6.2).

  Args:
    counts: vectors of the target and, where there is one, of the reference.
  """
  found = []
  for which, n in enumerate(counts):
    steps = [np.float32(side / (PATCHES * math.isqrt(n))) for side in size]  # products in float32
    row, column = (i * step for i, step in zip(_cells(n), steps, strict=True))
    found.append(np.stack([np.full(n, which), row, column]))
  out = np.concatenate(found, 1).T.astype(np.float32)
  return out.astype(jnp.dtype(dtype)).astype(np.float32)


def errors(
  decoder: Decoder,
  condition: flux.Condition,
  latents: jax.Array,
  noise: jax.Array,
  index: jax.Array,
  by_time: flow.Weights = "bell",
) -> jax.Array:
  """The weighted mean squared error of the velocity, float32[B], one a sample (spec 9.4).

  Args:
    latents, noise: float[B, h, w, 16]. index: int[B] into `flow.training`, 0 is all noise.
    by_time: the weights, see there.
  """
  tables = flow.training(SHIFT, LAST, by_time)
  sigmas, weights = (jnp.asarray(table)[index] for table in tables)
  each = flow.loss(lambda x, t: decoder.velocity(x, t, condition), latents, noise, sigmas)
  return each * weights


def loss(
  decoder: Decoder,
  constants: Constants,
  given: Given,
  latents: jax.Array,
  key: jax.Array,
  weight: jax.Array,
  cfg: Loss,
  guidance: float = GUIDANCE,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """`errors` at random times, summed over `weight`, and additive metrics.

  A dropped condition is the null, whose number of tokens differs: all of a batch is dropped or
  nothing.

  Args:
    given: vectors float[B, n, D], and those of the reference or None. latents: float[B, h, w, 16].
    key: of times, noise and drop. weight: samples of the whole batch.
    cfg: `drop`, `times` and `by_time`.
  """
  k_time, k_noise, k_drop = jax.random.split(key, 3)
  rows, *size = latents.shape[:3]
  draws = (1 if cfg.times == "batch" else rows,)
  index = jnp.broadcast_to(jax.random.randint(k_time, draws, 0, flow.TRAIN_STEPS), (rows,))
  noise = jax.random.normal(k_noise, latents.shape, jnp.float32)
  place = (size[0], size[1])

  def told() -> jax.Array:
    condition = decoder.condition(constants, *given, place, guidance)
    return errors(decoder, condition, latents, noise, index, cfg.by_time)

  def untold() -> jax.Array:
    condition = decoder.null(constants, rows, place, guidance)
    return errors(decoder, condition, latents, noise, index, cfg.by_time)

  dropped = jax.random.bernoulli(k_drop, cfg.drop)
  each = jax.lax.cond(dropped, untold, told) if cfg.drop else told()
  value = jnp.sum(each) / weight
  which = jax.nn.one_hot(index * TIME_BINS // flow.TRAIN_STEPS, TIME_BINS)
  return value, {
    "image_loss": value,
    "image_loss_by_index/sum": each @ which,
    "image_loss_by_index/count": jnp.sum(which, 0),
  }


def _cells(n: int) -> tuple[Any, Any]:
  """Row and column, float32[n], of n vectors that cover a square, row by row."""
  side = math.isqrt(n)
  if side * side != n:
    raise ValueError(f"{n} image vectors: expected a square number, one for each cell of a square")
  return np.divmod(np.arange(n, dtype=np.float32), np.float32(side))
