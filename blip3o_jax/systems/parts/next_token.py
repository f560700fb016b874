"""The loss of the next token."""

import jax
import jax.numpy as jnp

from blip3o_jax.models.decoder_lm import DecoderLM


def weight(labels: jax.Array) -> jax.Array:
  """Its normaliser, float32[]: how many of labels int[B, T] are ids; 1 where none is."""
  return jnp.maximum(jnp.sum(labels >= 0), 1).astype(jnp.float32)


def loss(
  language: DecoderLM, hidden: jax.Array, labels: jax.Array, weight: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The sum of cross entropies over `weight`, and metrics.

  Args:
    hidden: float[B, T, D] after the final norm. labels: int[B, T], the id that each of them
      predicts, below 0 where none is.
  """
  scores = jax.nn.log_softmax(language.logits(hidden), -1)
  picked = jnp.take_along_axis(scores, jnp.maximum(labels, 0)[..., None], -1)[..., 0]
  counted = (labels >= 0).astype(jnp.float32)
  value = -jnp.sum(picked * counted) / weight
  right = jnp.sum((jnp.argmax(scores, -1) == labels) * counted) / weight
  return value, {"text_loss": value, "text_accuracy": right}
