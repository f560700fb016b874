"""Visual slots: n learned vectors appended to a prompt, whose hidden vectors become a condition.

Knows a language model only by its methods `embed`, `__call__`, `prefill` and `extend`.
"""

from typing import Literal

from flax import nnx
import jax
import jax.numpy as jnp

from blip3o_jax import layers
from blip3o_jax.models.decoder_lm import DecoderLM
from blip3o_jax.models.decoder_lm import plain_positions


class Slots(nnx.Module):
  """The table of `count` learned input vectors of width `dim`, init N(0, std^2) (spec 1.9)."""

  def __init__(self, count: int, dim: int, std: float = 1.0, *, rngs: nnx.Rngs):
    value = layers.normal(std)(rngs.params(), (1, count, dim))
    self.embedding = nnx.Param(value, axes=("rest", "rest", "embed"))

  def __call__(self, batch: int, dtype: jnp.dtype) -> jax.Array:
    """float[batch, Q, D]: the table, once per row."""
    table = self.embedding[...].astype(dtype)
    return jnp.broadcast_to(table, (batch, *table.shape[1:]))


def read(
  language: DecoderLM,
  slots: Slots,
  tokens: jax.Array,
  segments: jax.Array,
  *,
  prompt_gradient: Literal["stop", "full"] = "stop",
) -> jax.Array:
  """The hidden vectors at the slots appended to each prompt.

  With a frozen language model the prompt's activations depend on nothing that is trained, so with
  `prompt_gradient="stop"` the prompt runs forward only and just the slots, attending to its keys
  and values, carry gradients: the same mathematics at less cost (spec 11, query-only trick).

  Args:
    language: the backbone. slots: the table.
    tokens: int[B, P], left-padded, each ending in the image-start token.
    segments: int[B, P], 0 at padding.
    prompt_gradient: "full" is required when the language model itself is trained.

  Returns:
    float[B, Q, D] after the final norm.
  """
  batch, length = tokens.shape
  inputs = language.embed(tokens)
  positions = plain_positions(segments)
  queries = slots(batch, inputs.dtype)
  count = queries.shape[1]
  after = positions[:, -1:] + 1 + jnp.arange(count)[None]
  if prompt_gradient == "stop":
    inputs = jax.lax.stop_gradient(inputs)
    _, cache = language.prefill(inputs, positions, segments, length + count)
    hidden, _ = language.extend(queries, after, jax.lax.stop_gradient(cache))
    return hidden
  x = jnp.concatenate([inputs, queries], 1)
  seen = jnp.concatenate([segments, jnp.ones((batch, count), segments.dtype)], 1)
  return language(x, jnp.concatenate([positions, after], 1), seen)[:, length:]


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
