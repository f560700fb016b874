"""The losses of Nexus-Gen's language model: of the next token, and of the vectors of pictures."""

from collections.abc import Mapping
import dataclasses
from typing import Any
from typing import Literal

import jax
import jax.numpy as jnp

from blip3o_jax.data.text import chat
from blip3o_jax.diffusion import flow
from blip3o_jax.systems.parts import next_token
from blip3o_jax.systems.parts import places

FLOOR = 1e-8  # of a norm in the cosine
Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Loss:
  """Weights of the terms (released: 3 and 3), and what a decoder trains on.

  Attributes:
    text: of the next token. image: of the vectors, half squared error and half cosine.
    drop: share of batches whose condition a decoder does not see; as released none.
    times: what a decoder draws a time for. The release draws one for a batch, and its batches are
      one sample on each of many devices, so of a whole batch it is one for each sample.
    by_time: what a decoder's error counts at each time, see `flow.training`. Towards all noise the
      released bell falls to 0, and there a decoder has nothing but what it is told.

  Raises:
    ValueError: a share that is none.
  """

  text: float = 3.0
  image: float = 3.0
  drop: float = 0.0
  times: Literal["sample", "batch"] = "sample"
  by_time: flow.Weights = "bell"

  def __post_init__(self) -> None:
    if not 0 <= self.drop < 1:
      raise ValueError(f"drop {self.drop}: expected a share from 0 to below 1")


def words(labels: jax.Array, image_token: int) -> jax.Array:
  """Labels int[B, T] without those of slots, which are no words (spec 2.5)."""
  return jnp.where(labels == image_token, chat.IGNORED, labels)


def weights(labels: jax.Array, image_token: int) -> dict[str, jax.Array]:
  """Normalisers float32[] of both terms: words that are predicted, and slots; 1 where none is."""
  slots = jnp.maximum(jnp.sum(labels == image_token), 1).astype(jnp.float32)
  return {"text": next_token.weight(words(labels, image_token)), "image": slots}


def regression(
  found: jax.Array, wanted: jax.Array, read: jax.Array, weight: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Half the mean squared error and half of 1 - cosine, summed over what is read (spec 2.5).

  Args:
    found, wanted: float[B, T, D]. read: bool[B, T], which of them count; with none, 0 and
      gradients of 0. weight: see `weights`.

  Returns:
    float32[], and the two as metrics.
  """
  found, wanted = (jnp.where(read[..., None], v, 0).astype(jnp.float32) for v in (found, wanted))
  square = jnp.sum(jnp.mean(jnp.square(found - wanted), -1)) / weight
  cosine = jnp.sum(_unit(found) * _unit(wanted), -1)
  apart = jnp.sum(jnp.where(read, 1 - cosine, 0)) / weight
  value = 0.5 * square + 0.5 * apart
  return value, {"image_loss": value, "image_square": square, "image_cosine": apart}


def language(
  model: Any, batch: Batch, weights: Mapping[str, jax.Array]
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Both terms of `model.NexusGen` on a batch of its stage "language", weighted, and metrics."""
  cfg, labels = model.cfg, batch["labels"]
  read = labels == cfg.image_token
  seen = model.seen(batch["tokens"], *places.shown(batch))
  hidden = model.hidden(batch, seen)
  value, metrics = next_token.loss(
    model.backbone, hidden, words(labels, cfg.image_token), weights["text"]
  )
  total = cfg.loss.text * value
  if seen is not None:
    # The vector of a slot is predicted one place before it.
    wanted = jax.lax.stop_gradient(jnp.roll(seen, -1, 1))
    value, more = regression(model.vision_head(hidden), wanted, read, weights["image"])
    total, metrics = total + cfg.loss.image * value, metrics | more
  return total, metrics


def _unit(x: jax.Array) -> jax.Array:
  """float32[..., D] over its norm, which is at least `FLOOR`; its gradient is finite at 0."""
  square = jnp.sum(jnp.square(x), -1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(square, FLOOR**2))
