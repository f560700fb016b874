"""Recorded inputs through the pixel decoder: arrays of a recording in, PyTorch's layouts out."""

from collections.abc import Mapping
import dataclasses
import functools
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from blip3o_jax.diffusion import eps
from blip3o_jax.diffusion import guidance
from blip3o_jax.systems.blip3o.replay import first
from blip3o_jax.systems.blip3o.replay import last
from blip3o_jax.systems.parts import painter
from blip3o_jax.systems.parts.network import Network
from blip3o_jax.verify.recordings import LOOP_SCALE
from blip3o_jax.verify.recordings import LOOP_STEPS

Inputs = Mapping[str, np.ndarray]


def grid_of(features: np.ndarray) -> int:
  """Cells a side of recorded features (B, Q, C).

  Raises:
    ValueError: a number of features that is no square.
  """
  count = features.shape[1] if features.ndim == 3 else 0
  side = math.isqrt(count)
  if not side or side * side != count:
    raise ValueError(f"features of shape {features.shape}: expected (1, cells squared, channels)")
  return side


def replay(decoder: Network, call: str, inputs: Inputs) -> dict[str, Any]:
  """Runs one call of `names.DECODER`.

  Args:
    decoder: of `verbs.load_decoder`. call: its name.
    inputs: {name: array}, all that the call needs.

  Returns:
    {name: array} with all outputs of the call, float32, in PyTorch's layouts.
  """
  graphdef, params = decoder.graphdef, decoder.params
  if call == "encode":
    mean, logvar = _encode(graphdef, params, last(inputs["vae.image"]))
    return {"vae.mean": first(mean), "vae.logvar": first(logvar)}
  if call == "decode":
    return {"vae.decoded": first(_decode(graphdef, params, last(inputs["vae.latent"])))}
  given, null = (_features(inputs[name]) for name in ("features", "null_features"))
  conditions = _conditions(graphdef, params, given, null, jnp.asarray(inputs["unet.time_ids"]))
  if call == "unet":
    x = last(inputs["unet.sample"])
    t = jnp.full((len(x),), inputs["unet.timestep"])
    both = guidance.join(conditions[0], conditions[1], painter.AXES)
    return {"unet.eps": first(_unet(graphdef, params, x, t, both))}
  schedule = decoder.module().cfg.schedule
  sigmas, timesteps = eps.steps(schedule, LOOP_STEPS)
  fn = functools.partial(_guided, graphdef, params, conditions)
  # On the host: compiled loops convolve slowly on a CPU, and elsewhere twelve steps are few.
  table = eps.table(schedule, LOOP_STEPS)
  latents = eps.euler(fn, last(inputs["loop.noise"]), table, loop="host")
  image = _pixels(graphdef, params, latents)
  return {
    "loop.sigmas": sigmas,
    "loop.timesteps": timesteps,
    "loop.latent": first(latents),
    "loop.image": first(image),
  }


def _features(tokens: np.ndarray) -> jax.Array:
  """(1, Q, C) as float[1, h, w, C]."""
  side = grid_of(tokens)
  return jnp.asarray(tokens.reshape(len(tokens), side, side, tokens.shape[-1]))


@functools.partial(jax.jit, static_argnums=0)
def _conditions(
  graphdef: Any, params: Any, features: jax.Array, null: jax.Array, time_ids: jax.Array
) -> tuple[Any, Any]:
  """Of the features and of their absence, both with the recorded time ids."""
  module = nnx.merge(graphdef, params)
  ids = jnp.broadcast_to(time_ids.astype(jnp.float32), (len(features), len(time_ids)))
  given, without = (
    dataclasses.replace(module.condition(x), time_ids=ids) for x in (features, null)
  )
  return given, without


@functools.partial(jax.jit, static_argnums=0)
def _unet(graphdef: Any, params: Any, x: jax.Array, t: jax.Array, condition: Any) -> jax.Array:
  return nnx.merge(graphdef, params).network(x, t, condition)


@functools.partial(jax.jit, static_argnums=0)
def _guided(graphdef: Any, params: Any, conditions: Any, x: jax.Array, t: jax.Array) -> jax.Array:
  network = nnx.merge(graphdef, params).network
  return guidance.cfg(network, conditions[0], conditions[1], LOOP_SCALE, painter.AXES)(x, t)


@functools.partial(jax.jit, static_argnums=0)
def _encode(graphdef: Any, params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
  return nnx.merge(graphdef, params).autoencoder.encode(images)


@functools.partial(jax.jit, static_argnums=0)
def _decode(graphdef: Any, params: Any, latents: jax.Array) -> jax.Array:
  return nnx.merge(graphdef, params).autoencoder.decode(latents)


@functools.partial(jax.jit, static_argnums=0)
def _pixels(graphdef: Any, params: Any, latents: jax.Array) -> jax.Array:
  return nnx.merge(graphdef, params).pixels(latents)
