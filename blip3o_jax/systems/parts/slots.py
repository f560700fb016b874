"""Visual slots: n learned vectors appended to a prompt, whose hidden vectors become a condition.

Knows a language model only by its methods `embed`, `__call__`, `prefill` and `extend`.
"""

from typing import Literal

from flax import nnx
import jax
import jax.numpy as jnp

from blip3o_jax import layers
from blip3o_jax.models.decoder_lm import DecoderLM


class Slots(nnx.Module):
  """The table of `count` learned input vectors of width `dim`, init N(0, std^2) (spec 1.9).

  With `one` it has a first axis of 1, as BLIP3-o's files have it.
  """

  def __init__(self, count: int, dim: int, std: float = 1.0, *, one: bool = True, rngs: nnx.Rngs):
    shape = (1, count, dim) if one else (count, dim)
    value = layers.normal(std)(rngs.params(), shape)
    self.embedding = nnx.Param(value, axes=(*("rest",) * (len(shape) - 1), "embed"))

  def __call__(self, batch: int, dtype: jnp.dtype) -> jax.Array:
    """float[batch, Q, D]: the table, once per row."""
    table = self.embedding[...].astype(dtype)
    return jnp.broadcast_to(table, (batch, *table.shape[-2:]))


def read(
  language: DecoderLM,
  inputs: jax.Array,
  positions: jax.Array,
  segments: jax.Array,
  slots: jax.Array,
  offset: Literal[0, -1] = 0,
  *,
  prompt_gradient: Literal["stop", "full"] = "stop",
) -> jax.Array:
  """The hidden vectors of the slots appended to each prompt.

  With a frozen language model the prompt's activations depend on nothing that is trained, so with
  `prompt_gradient="stop"` the prompt runs forward only and just the slots, attending to its keys
  and values, carry gradients: the same mathematics at less cost (spec 11, query-only trick).

  Args:
    language: the backbone.
    inputs: float[B, P, D], embeddings of left-padded prompts, pictures among them.
    positions: int[B, P], or int[3, B, P] of M-RoPE. The slots follow: at the last position + 1 and
      on, on three axes at the largest + 1 and on.
    segments: int[B, P], 0 at padding.
    slots: float[B, Q, D], what stands at the slots.
    offset: 0 reads each slot at its own place, -1 one place before, where the language model
      predicts it.
    prompt_gradient: "full" is required when the language model itself is trained.

  Returns:
    float[B, Q, D] after the final norm.
  """
  (batch, count), length = slots.shape[:2], inputs.shape[1]
  slots = slots.astype(inputs.dtype)
  after = _following(positions, segments, count)
  if prompt_gradient == "stop":
    inputs = jax.lax.stop_gradient(inputs)
    if offset == 0:
      return language.read_after(inputs, positions, segments, slots, after)
    before, cache = language.prefill(inputs, positions, segments, length + count)
    hidden, _ = language.extend(slots, after, jax.lax.stop_gradient(cache))
    return jnp.concatenate([jax.lax.stop_gradient(before[:, -1:]), hidden[:, :-1]], 1)
  x = jnp.concatenate([inputs, slots], 1)
  seen = jnp.concatenate([segments, jnp.ones((batch, count), segments.dtype)], 1)
  hidden = language(x, jnp.concatenate([positions, after], -1), seen)
  return hidden[:, length + offset : length + offset + count]


def _following(positions: jax.Array, segments: jax.Array, count: int) -> jax.Array:
  """Positions of `count` slots after prompts: int[B, Q], or int[3, B, Q]."""
  steps = 1 + jnp.arange(count)[None]
  if positions.ndim == 2:
    return positions[:, -1:] + steps
  last = jnp.max(jnp.where(segments > 0, positions, -1), (0, 2))
  return jnp.broadcast_to(last[:, None] + steps, (3, len(last), count))


class Projector(nnx.Module):
  """From what is read at the slots to the denoiser's condition: "linear" or "mlp".

  Released systems have none (identity): the denoiser's own caption projection follows.
  """

  def __init__(
    self, kind: Literal["linear", "mlp"], dim: int, *, dtype: layers.Dtype, rngs: nnx.Rngs
  ):
    axes = ("embed", "mlp")
    self.linear_1 = layers.linear(dim, dim, axes, dtype=dtype, rngs=rngs)
    self.linear_2 = (
      layers.linear(dim, dim, axes[::-1], dtype=dtype, rngs=rngs) if kind == "mlp" else None
    )

  def __call__(self, z: jax.Array) -> jax.Array:
    """float[B, Q, D] -> float[B, Q, D]."""
    z = self.linear_1(z)
    return z if self.linear_2 is None else self.linear_2(jax.nn.gelu(z))
