"""One attention function; the kernel behind it is chosen here, never in a model.

Who sees whom is told by structure (`segments`, `causal`), never by a dense mask in a signature.
"""

import functools
from typing import Literal

from absl import logging
import jax
import jax.numpy as jnp

from blip3o_jax import sharding

Impl = Literal["auto", "xla", "cudnn", "splash"]
Segments = jax.Array | tuple[jax.Array, jax.Array]


def attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  *,
  segments: Segments | None = None,
  causal: bool = False,
  offset: int | jax.Array | None = None,
  scale: float | None = None,
  impl: Impl = "auto",
) -> jax.Array:
  """Multi-head attention with grouped keys and values.

  Args:
    q: float[B, T, N, H].
    k, v: float[B, S, K, H]; query head n uses kv head n // (N // K).
    segments: int[B, T] (self-attention) or (int[B, T], int[B, S]); a position attends to positions
      of its own segment only. Padding is a segment of its own, by convention 0.
    causal: query i stands at key position offset + i and sees keys up to there.
    offset: int or int[] scalar; default S - T, the queries are the last positions.
    scale: of the logits; default H ** -0.5.
    impl: "auto" picks by platform and shape; a named kernel that cannot run raises.

  Returns:
    float[B, T, N, H] in the dtype of q. Logits and softmax are float32.

  Raises:
    ValueError: heads that do not divide, or a named kernel that does not fit the shapes.
  """
  if q.shape[2] % k.shape[2]:
    raise ValueError(f"{q.shape[2]} query heads are not a multiple of {k.shape[2]} kv heads")
  scale = q.shape[-1] ** -0.5 if scale is None else scale
  chosen = _choose(q, k, causal, offset) if impl == "auto" else impl
  if chosen == "splash":
    return _splash(q, k, v, segments, causal, offset, scale)
  mask = _mask(q.shape[1], k.shape[1], segments, causal, offset)
  return jax.nn.dot_product_attention(
    q, k, v, mask=mask, scale=scale, implementation="cudnn" if chosen == "cudnn" else "xla"
  )


def _mask(
  t: int, s: int, segments: Segments | None, causal: bool, offset: int | jax.Array | None
) -> jax.Array | None:
  """bool[B or 1, 1, T, S], True where a query sees a key; None when everybody sees everybody."""
  mask = None
  if segments is not None:
    q_seg, k_seg = segments if isinstance(segments, tuple) else (segments, segments)
    mask = (q_seg[:, :, None] == k_seg[:, None, :])[:, None]
  if causal:
    start = s - t if offset is None else offset
    lower = (start + jnp.arange(t)[:, None] >= jnp.arange(s)[None, :])[None, None]
    mask = lower if mask is None else mask & lower
  return mask


def _platform() -> str:
  """Where the program will run: on the mesh in context (it may be a described one), if any."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform


def _choose(q: jax.Array, k: jax.Array, causal: bool, offset: int | jax.Array | None) -> Impl:
  platform = _platform()
  out: Impl = "xla"
  if platform == "tpu" and not _splash_misfit(q.shape, k.shape, causal, offset):
    out = "splash"
  elif platform == "gpu" and q.dtype == jnp.bfloat16 and q.shape[-1] <= 128:
    out = "cudnn"
  _log_choice(out, q.shape, k.shape)
  return out


@functools.lru_cache(maxsize=256)
def _log_choice(impl: str, q_shape: tuple[int, ...], k_shape: tuple[int, ...]) -> None:
  logging.info("attention: %s for q %s, k %s", impl, q_shape, k_shape)


def _splash_misfit(
  q_shape: tuple[int, ...],
  k_shape: tuple[int, ...],
  causal: bool,
  offset: int | jax.Array | None,
) -> str:
  """Why the splash kernel cannot run; empty when it can (and pays: T of 1024 or more)."""
  t, s = q_shape[1], k_shape[1]
  if t % 128 or s % 128:
    return f"lengths {t} and {s} are not multiples of 128"
  if isinstance(offset, jax.Array):
    return "a traced offset"
  if causal and (s - t if offset is None else offset) != s - t:
    return f"offset {offset} is not S - T"
  return "" if t >= 1024 else f"{t} queries, fewer than 1024"


def _splash(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  segments: Segments | None,
  causal: bool,
  offset: int | jax.Array | None,
  scale: float,
) -> jax.Array:
  """The TPU block-sparse kernel, over shards of batch and heads; interpreted off a TPU."""
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

  reason = _splash_misfit(q.shape, k.shape, causal, offset)
  if reason and "fewer than" not in reason:
    raise ValueError(f"attention impl 'splash' cannot run: {reason}")
  t, s = q.shape[1], k.shape[1]
  block = masks.CausalMask((t, s), offset=s - t) if causal else masks.FullMask((t, s))
  interpret = _platform() != "tpu"

  def local(q: jax.Array, k: jax.Array, v: jax.Array, seg: tuple[jax.Array, ...]) -> jax.Array:
    mask = masks.MultiHeadMask([block] * q.shape[2])
    run = kernel.make_splash_mha(mask, head_shards=1, q_seq_shards=1, interpret=interpret)
    q, k, v = (x.swapaxes(1, 2) for x in (q * scale, k, v))
    out = jax.vmap(run)(q, k, v, kernel.SegmentIds(*seg) if seg else None)
    return out.swapaxes(1, 2)

  seg: tuple[jax.Array, ...] = ()
  if segments is not None:
    seg = segments if isinstance(segments, tuple) else (segments, segments)
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return local(q, k, v, seg)
  heads = sharding.to_spec(("batch", None, "heads", None))
  rows = sharding.to_spec(("batch", None))
  return jax.shard_map(
    local, in_specs=(heads, heads, heads, (rows,) * len(seg)), out_specs=heads, check_vma=False
  )(q, k, v, seg)
