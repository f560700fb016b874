"""Recorded inputs through the pixel decoder: arrays of a recording in, PyTorch's layouts out."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
from pathlib import Path
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from blip3o_jax.diffusion import eps
from blip3o_jax.diffusion import guidance
from blip3o_jax.layers import Dtype
from blip3o_jax.systems.parts import painter
from blip3o_jax.systems.parts import painter_files
from blip3o_jax.systems.parts.painter_recordings import LOOP_SCALE
from blip3o_jax.systems.parts.painter_recordings import LOOP_STEPS
from blip3o_jax.systems.parts.painter_recordings import grid_of
from blip3o_jax.systems.parts.recorded import first
from blip3o_jax.systems.parts.recorded import last

Inputs = Mapping[str, np.ndarray]


def replay(
  directory: Path, dtype: Dtype, recording: Inputs
) -> Callable[[str, Inputs, Inputs], dict[str, Any]]:
  """Loads the pixel decoder of a directory, for features of as many cells as recorded; see `run`.

  Raises:
    FileNotFoundError, ValueError: what is wrong with the model.
  """
  grid = grid_of(recording["features"]) if "features" in recording else 1
  return functools.partial(run, painter_files.load(directory, grid, dtype))


def run(decoder: Any, call: str, inputs: Inputs, outputs: Inputs) -> dict[str, Any]:
  """Runs one call of `painter_recordings.CALLS`.

  Args:
    decoder: a `Network`. call: its name. inputs: {name: array}, all that the call needs.
    outputs: the recorded ones, which no call here reads.

  Returns:
    {name: array} with all outputs of the call, float32, in PyTorch's layouts.
  """
  del outputs
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
  latents = _loop(graphdef, params, conditions, last(inputs["loop.noise"]))
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
def _loop(graphdef: Any, params: Any, conditions: Any, noise: jax.Array) -> jax.Array:
  module = nnx.merge(graphdef, params)
  fn = guidance.cfg(module.network, conditions[0], conditions[1], LOOP_SCALE, painter.AXES)
  return eps.euler(fn, noise, eps.table(module.cfg.schedule, LOOP_STEPS))


@functools.partial(jax.jit, static_argnums=0)
def _encode(graphdef: Any, params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
  return nnx.merge(graphdef, params).autoencoder.encode(images)


@functools.partial(jax.jit, static_argnums=0)
def _decode(graphdef: Any, params: Any, latents: jax.Array) -> jax.Array:
  return nnx.merge(graphdef, params).autoencoder.decode(latents)


@functools.partial(jax.jit, static_argnums=0)
def _pixels(graphdef: Any, params: Any, latents: jax.Array) -> jax.Array:
  return nnx.merge(graphdef, params).pixels(latents)
