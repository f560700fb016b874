"""The losses of BLIP3-o: of pictures, by flow matching or regression, and of the next token."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from blip3o_jax.diffusion import flow
from blip3o_jax.models import next_dit
from blip3o_jax.systems.parts import next_token
from blip3o_jax.systems.parts import places

TIME_BINS = 10
Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Loss:
  """Which terms, and how.

  Attributes:
    image: weight of the generation term. text: weight of the next-token term.
    drop: share of samples whose condition is dropped (classifier-free guidance).
    times: density of the training times: the released table, or another.
    draws: (noise, time) pairs per condition, so that one prompt pass serves several (released: 1).
  """

  image: float = 1.0
  text: float = 0.0
  drop: float = 0.1
  times: flow.Law = flow.Law()
  draws: int = 1


def image(
  model: Any, batch: Batch, key: jax.Array, weight: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The generation term of `model.Blip3o` over `weight`, and metrics.

  Args:
    batch: tokens, segments int[B, P], features [B, h, w, C], and what `places.shown` reads.
    key: of times, noise and dropped conditions.
  """
  cfg = model.cfg.loss
  k_time, k_noise, k_drop = jax.random.split(key, 3)
  z = model.condition(batch["tokens"], batch["segments"], *places.shown(batch))
  x0 = batch["features"].astype(jnp.float32)
  if model.denoiser is None:
    guess = model.regressor(z).astype(jnp.float32).reshape(x0.shape)
    each = jnp.mean(jnp.square(guess - x0), (1, 2, 3))
    value = jnp.sum(each) / weight
    return value, {"image_loss": value}
  denoiser = model.denoiser
  keep = jax.random.bernoulli(k_drop, 1 - cfg.drop, (len(z), 1, 1))
  z = jnp.where(keep, z, jnp.zeros_like(z))
  condition = denoiser.embed(z) if cfg.draws == 1 else denoiser.prepare(z)
  if cfg.draws > 1:
    x0 = jnp.repeat(x0, cfg.draws, axis=0)
    condition = jax.tree.map(
      lambda axis, v: jnp.repeat(v, cfg.draws, axis=axis), next_dit.BATCH_AXES, condition
    )
  t = flow.times(k_time, len(x0), cfg.times)
  noise = jax.random.normal(k_noise, x0.shape, jnp.float32)
  each = flow.loss(lambda x, s: denoiser(x, s, condition), x0, noise, t)
  value = jnp.sum(each) / (weight * cfg.draws)
  which = jax.nn.one_hot(jnp.minimum((t * TIME_BINS).astype(jnp.int32), TIME_BINS - 1), TIME_BINS)
  return value, {
    "image_loss": value,
    "image_loss_by_t/sum": each @ which,
    "image_loss_by_t/count": jnp.sum(which, 0),
  }


def text(model: Any, batch: Batch, weight: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The next-token term over `weight`, and metrics.

  Args:
    batch: tokens, segments, labels int[B, T], positions int[B, 3, T], and what `places.shown`
      reads.
  """
  x = model.embed(batch["tokens"], *places.shown(batch))
  hidden = model.backbone(x, jnp.moveaxis(batch["positions"], 1, 0), batch["segments"])
  return next_token.loss(model.backbone, hidden, batch["labels"], weight)
