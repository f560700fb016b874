"""One attention function; the kernel behind it is chosen here, never in a model.

Who sees whom is told by structure (`segments`, `causal`), never by a dense mask in a signature.
"""

import functools
from typing import Literal

from absl import logging
import einops
import jax
from jax.extend import backend as backends
import jax.numpy as jnp

from blip3o_jax import sharding

Impl = Literal["auto", "xla", "columns", "cudnn", "splash"]
Segments = jax.Array | tuple[jax.Array, jax.Array]
Offset = int | jax.Array | None
LANES, ROWS = 128, 8  # of a TPU's registers; its matrix units are a square of the first
LOWEST = -0.7 * float(jnp.finfo(jnp.float32).max)  # a logit not seen: finite, or rows become NaN


def attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  *,
  segments: Segments | None = None,
  causal: bool = False,
  offset: Offset = None,
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
    impl: "auto" picks by platform, dtype and shape, and logs it; a named kernel that cannot run
      raises. The platform is that of the mesh in context, else of this process. "xla" and
      "columns" run anywhere; the second is laid out for TPUs.

  Returns:
    float[B, T, N, H] in the dtype of q. Logits and softmax are float32.

  Raises:
    ValueError: heads that do not divide, an unknown `impl`, or a named kernel that cannot run
      here or does not fit the arrays.
  """
  if q.shape[2] % k.shape[2]:
    raise ValueError(f"{q.shape[2]} query heads are not a multiple of {k.shape[2]} kv heads")
  scale = q.shape[-1] ** -0.5 if scale is None else scale
  chosen = _choose(q, k, segments, causal, offset) if impl == "auto" else impl
  if chosen not in ("xla", "columns", "cudnn", "splash"):
    raise ValueError(f"attention impl {impl!r}: expected auto, xla, columns, cudnn or splash")
  if impl != "auto" and (reason := _cannot_run(chosen, q, k, segments, causal, offset)):
    raise ValueError(f"attention impl {impl!r} cannot run: {reason}")
  if chosen == "splash":
    return _splash(q, k, v, segments, causal, scale)
  inside = chosen == "cudnn" and _is_diagonal(q, k, causal, offset)
  mask = _mask(q.shape[1], k.shape[1], segments, causal and not inside, offset)
  if chosen == "columns":
    return _columns(q, k, v, mask, scale)
  return jax.nn.dot_product_attention(
    q, k, v, mask=mask, scale=scale, is_causal=inside, implementation=chosen
  )


def _columns(
  q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, scale: float
) -> jax.Array:
  """All [T, S] at once, as "xla", in the layout that a TPU fills.

  The queries that share a key's head stand side by side, so their number times T fills lanes and
  the softmax goes down the keys. Two heads of half the lanes become one: of each query only its
  own half is not zero, so the other half's product is. What is divided by the sum of the weights
  is the result, so both passes go over the logits once less.
  """
  rows, t, n, head = q.shape
  kv = k.shape[2]
  if _in_pairs(q, k):
    first = jnp.arange(LANES) < head
    q, k, v = (x.reshape(rows, -1, kv // 2, LANES) for x in (q, k, v))
    both = jnp.concatenate([jnp.where(first, q, 0), jnp.where(first, 0, q)], 1)
    mixed = _attend(both, k, v, None if mask is None else jnp.tile(mask, (1, 1, 2, 1)), scale)
    return jnp.where(first, mixed[:, :t], mixed[:, t:]).reshape(rows, t, n, head)
  # Groups of whole tiles stay behind the tokens, as they lie; others would be padded there.
  tiled = n // kv % ROWS == 0
  order = "b (t g) k h" if tiled else "b (g t) k h"
  columns = einops.rearrange(q, f"b t (k g) h -> {order}", k=kv)
  if mask is not None:
    mask = jnp.repeat(mask, n // kv, 2) if tiled else jnp.tile(mask, (1, 1, n // kv, 1))
  mixed = _attend(columns, k, v, mask, scale)
  return einops.rearrange(mixed, f"{order} -> b t (k g) h", t=t)


def _attend(
  columns: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, scale: float
) -> jax.Array:
  """float[B, C, K, H] of queries [B, C, K, H] that each see their own head of [B, S, K, H]."""
  logits = jnp.einsum("bskh,bckh->bksc", k, columns, preferred_element_type=jnp.float32) * scale
  if mask is not None:
    logits = jnp.where(mask.swapaxes(2, 3), logits, LOWEST)
  weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(2, keepdims=True)))
  mixed = jnp.einsum(
    "bksc,bskh->bckh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
  )
  return (mixed / weights.sum(2).swapaxes(1, 2)[..., None]).astype(columns.dtype)


def _in_pairs(q: jax.Array, k: jax.Array) -> bool:
  """Whether "columns" makes one of two heads: of half the lanes, none split over the mesh."""
  (heads, head), mesh = k.shape[2:], jax.sharding.get_abstract_mesh()
  ways = 1 if mesh.empty else sharding.ways(mesh, sharding.RULES["heads"])
  return 2 * head == LANES and q.shape[2] == heads and heads % (2 * ways) == 0


def _fills_lanes(q: jax.Array, k: jax.Array) -> bool:
  """Whether "columns" has enough queries for a head of the keys; in decoding it has not."""
  side_by_side = 2 if _in_pairs(q, k) else q.shape[2] // k.shape[2]
  return q.shape[1] * side_by_side >= LANES


def _mask(
  t: int, s: int, segments: Segments | None, causal: bool, offset: Offset
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


def _cuda_capability() -> tuple[int, ...]:
  """Of this process's first GPU, e.g. (9, 0); () without CUDA, which ROCm's devices are."""
  backend = backends.get_backend()
  if "cuda" not in backend.platform_version:
    return ()
  return tuple(int(x) for x in jax.local_devices()[0].compute_capability.split("."))


def _choose(
  q: jax.Array, k: jax.Array, segments: Segments | None, causal: bool, offset: Offset
) -> Impl:
  """The kernel that can run and pays.

  Below a length the logits of all heads are small, and a kernel's own blocks are larger than the
  arrays: 1024 queries for splash, as the TPU compiler counts; 128 for cuDNN, which is not measured.
  """
  kernels: dict[str, tuple[Impl, int]] = {"tpu": ("splash", 1024), "gpu": ("cudnn", 128)}
  kernel, pays = kernels.get(platform := sharding.platform(), ("xla", 0))
  out: Impl = "columns" if platform == "tpu" and _fills_lanes(q, k) else "xla"
  if min(q.shape[1], k.shape[1]) >= pays and not _cannot_run(
    kernel, q, k, segments, causal, offset
  ):
    out = kernel
  _log_choice(out, q.shape, k.shape)
  return out


@functools.lru_cache(maxsize=256)
def _log_choice(impl: str, q_shape: tuple[int, ...], k_shape: tuple[int, ...]) -> None:
  logging.info("attention: %s for q %s, k %s", impl, q_shape, k_shape)


def _cannot_run(
  impl: str, q: jax.Array, k: jax.Array, segments: Segments | None, causal: bool, offset: Offset
) -> str:
  """Why a kernel cannot run on these arrays; empty when it can."""
  if impl == "splash":
    return _splash_misfit(q, k, causal, offset)
  if impl == "cudnn":
    masked = segments is not None or (causal and not _is_diagonal(q, k, causal, offset))
    return _cudnn_misfit(q, k, masked)
  return ""


def _is_diagonal(q: jax.Array, k: jax.Array, causal: bool, offset: Offset) -> bool:
  """Whether it is causal with query i at key i: what cuDNN masks without an array."""
  if not causal or isinstance(offset, jax.Array):
    return False
  return (k.shape[1] - q.shape[1] if offset is None else offset) == 0


def _cudnn_misfit(q: jax.Array, k: jax.Array, masked: bool) -> str:
  """What JAX asks of arrays for cuDNN's flash attention, of 0.10 and 0.12 alike.

  A mask becomes a bias [B, 1, T, S]; the gradient with one needs even lengths.
  """
  (t, s), head = (q.shape[1], k.shape[1]), q.shape[-1]
  if (platform := sharding.platform()) != "gpu":
    return f"the platform is {platform!r}, not 'gpu'"
  if not (capability := _cuda_capability()):
    return "this process has no CUDA device"
  if capability < (8, 0):
    return f"compute capability {capability[0]}.{capability[1]}, expected 8.0 or more"
  if q.dtype not in (jnp.bfloat16, jnp.float16) or k.dtype != q.dtype:
    return f"dtypes {q.dtype} and {k.dtype}, expected bfloat16 or float16"
  largest = 256 if capability >= (9, 0) else 128
  if head > largest or head % 8:
    return f"head dim {head}, expected a multiple of 8 up to {largest}"
  if masked and (t % 2 or s % 2):
    return f"lengths {t} and {s} with a mask, expected even ones"
  return ""


def _splash_misfit(q: jax.Array, k: jax.Array, causal: bool, offset: Offset) -> str:
  t, s = q.shape[1], k.shape[1]
  if sharding.platform() == "gpu":
    return "the platform is 'gpu', not 'tpu'"
  if t % 128 or s % 128:
    return f"lengths {t} and {s} are not multiples of 128"
  if isinstance(offset, jax.Array):
    return "a traced offset"
  if causal and (s - t if offset is None else offset) != s - t:
    return f"offset {offset} is not S - T"
  mesh = jax.sharding.get_abstract_mesh()
  if not mesh.empty:
    for what, size in (("batch", q.shape[0]), ("heads", q.shape[2]), ("heads", k.shape[2])):
      if size % (ways := sharding.ways(mesh, sharding.RULES[what])):
        return f"{what} {size} does not divide over the mesh's {ways}"
  return ""


def _splash(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  segments: Segments | None,
  causal: bool,
  scale: float,
) -> jax.Array:
  """The TPU block-sparse kernel, over shards of batch and heads; interpreted on a CPU."""
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

  t, s = q.shape[1], k.shape[1]
  block = masks.CausalMask((t, s), offset=s - t) if causal else masks.FullMask((t, s))
  interpret = sharding.platform() != "tpu"

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
