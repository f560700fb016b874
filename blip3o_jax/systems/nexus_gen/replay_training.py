"""Recorded training steps: of the language model and of the two decoders, with their gradients."""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from blip3o_jax import trees
from blip3o_jax.data.text import chat
from blip3o_jax.diffusion import flow
from blip3o_jax.models import qwen_vision
from blip3o_jax.systems.nexus_gen import decoders
from blip3o_jax.systems.nexus_gen import painting
from blip3o_jax.systems.nexus_gen import recordings
from blip3o_jax.systems.nexus_gen import replay_language as language
from blip3o_jax.systems.nexus_gen import rows as names
from blip3o_jax.systems.nexus_gen import verbs
from blip3o_jax.systems.nexus_gen.replay_language import Inputs
from blip3o_jax.systems.nexus_gen.replay_language import Outputs
from blip3o_jax.systems.parts import asked
from blip3o_jax.systems.parts import places
from blip3o_jax.systems.parts.network import Network
from blip3o_jax.systems.parts.recorded import first
from blip3o_jax.systems.parts.recorded import last
from blip3o_jax.weights import table

# The language model ------------------------------------------------------------------------------


def train(model: verbs.Model, inputs: Inputs, outputs: Inputs) -> Outputs:
  batch, labels = _training_batch(model, inputs)
  weights = (3.0, 3.0)
  (loss, (metrics, between)), grads = _trained(model.network, batch, *weights)
  seen, hidden, embedded, vectors = (np.asarray(x, np.float32) for x in between)
  at, slots = batch["tokens"] == model.cfg.image_token, labels == model.cfg.image_token
  read = batch["labels"] == model.cfg.image_token
  out = {
    "position_ids": np.moveaxis(batch["positions"], 1, 0),
    "image_embeds": seen[at],
    "inputs_embeds": embedded,
    "last_hidden": np.where(batch["segments"][..., None] != 0, hidden, 0),
    "read_hidden": hidden[read],
    "predicted_vectors": vectors[read],
    "target_vectors": seen[slots],
    "mse": metrics["image_square"],
    "cosine": metrics["image_cosine"],
    "image_loss": metrics["image_loss"],
    "ce": metrics["text_loss"],
    "loss": loss,
    "loss_code_default_weights": 0.1 * metrics["text_loss"] + metrics["image_loss"],
  }
  found = {f"train.{name}": np.asarray(value) for name, value in out.items()}
  tower = trees.flatten({"visual": model.network.params["visual"]})
  rows = [r for r in names.language_rows() if not set(r.paths) & tower.keys()]
  return found | gradients("train", rows, trees.flatten(grads), outputs)


def _training_batch(model: verbs.Model, inputs: Inputs) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """The recorded batch as `loss` takes it, and the labels of the slots as they are recorded."""
  cfg = model.cfg
  tokens, labels, mask = (
    inputs[f"train.{name}"].astype(np.int32) for name in ("input_ids", "labels", "attention_mask")
  )
  grids = language.grids_of(inputs, "train")
  rows = {"tokens": tokens, "segments": mask}
  found = asked.positions(rows, len(tokens), grids, cfg.image_token, cfg.visual.merge)
  shifted = np.pad(labels[:, 1:], ((0, 0), (0, 1)), constant_values=-1)
  patches = language.split(inputs["train.pixel_values"], grids, "train")
  each = (tokens == cfg.boi).sum(1).tolist()
  if sum(each) != len(grids):
    raise ValueError(
      f"train.input_ids has {sum(each)} marks before pictures, of {len(grids)} grids"
    )
  most, n = max(each), max(len(p) for p in patches)
  layout = qwen_vision.layout(grids, n, cfg.visual)
  at = [b * most + i for b, count in enumerate(each) for i in range(count)]

  def spread(values: np.ndarray) -> np.ndarray:
    out = np.zeros((len(tokens) * most, *values.shape[1:]), values.dtype)
    out[at] = values
    return out.reshape(len(tokens), most, *values.shape[1:])

  padded = np.stack([np.pad(p, ((0, n - len(p)), (0, 0))) for p in patches])
  return {
    **rows,
    "labels": np.where(shifted < 0, chat.IGNORED, shifted),
    "positions": np.moveaxis(found["positions"], 1, 0),
    "patches": spread(padded),
    "patch_positions": spread(layout.positions),
    "patch_windows": spread(layout.windows),
    "patch_segments": spread(layout.segments),
  }, labels


@jax.jit
def _trained(network: Network, batch: Mapping[str, Any], text: Any, image: Any) -> Any:
  """(loss, ((metrics, what lies between), gradients of all that is trained))."""
  trained = ("backbone", "vision_head", "slots")
  rest = {name: leaf for name, leaf in network.params.items() if name not in trained}

  def loss(params: Any) -> Any:
    module = Network(network.graphdef, rest | params).module()
    weights = dataclasses.replace(module.cfg.loss, text=text, image=image)
    module.cfg = dataclasses.replace(module.cfg, stage="language", loss=weights)
    seen = module.seen(batch["tokens"], *places.shown(batch))
    embedded = module.inputs(batch["tokens"], batch["labels"], seen)
    hidden = module.hidden(batch, seen)
    between = (seen, hidden, embedded, module.part("vision_head")(hidden))
    value, metrics = module.loss(batch, jax.random.key(0), module.weights(batch))
    return value, (metrics, between)

  return jax.value_and_grad(loss, has_aux=True)({name: network.params[name] for name in trained})


def gradients(
  call: str, rows: list[table.Row], grads: Mapping[str, Any], outputs: Inputs
) -> Outputs:
  """The recorded gradients, and the norm of each in the order of the names, in the files' names.

  Args:
    rows: that name all of the gradients. grads: {path: array}.

  Raises:
    ValueError: a recorded gradient of a parameter that the model has not.
  """
  found = dict(table.export(rows, dict(grads)))
  out: Outputs = {}
  for name in outputs:
    key = name.removeprefix(f"{call}.grad.")
    if key != name:
      if key not in found:
        raise ValueError(f"{name}: the model has no trained parameter {key}")
      out[name] = np.asarray(found[key], np.float32)
  norms = [np.linalg.norm(np.asarray(found[key], np.float64)) for key in sorted(found)]
  return out | {f"{call}.grad_norms": np.array(norms, np.float32)}


def first_version(model: verbs.Model, inputs: Inputs, outputs: Inputs) -> Outputs:
  """The same prompts and batch with the row of the slots' id at every slot (spec 2.6)."""
  params = trees.flatten(model.network.params)
  embedding = params["backbone/embed_tokens/embedding"]
  rows = names.repeated(embedding, model.cfg.image_token, model.cfg.slots)
  first = Network(model.network.graphdef, trees.unflatten(params | {"slots/embedding": rows}))
  out: Outputs = {}
  for call in ("gen", "edit"):
    found, wanted = language.prompt_of(inputs, call), outputs.get(f"v1.{call}_text_tokens")
    count = language.LENGTH if wanted is None else len(wanted)
    if language.exact(model):
      answer = language.say(model, found, count, network=first)
      value: Any = np.array(language.before_picture(model, answer.tokens))
      vectors = answer.vectors[:1]
    else:
      words = [model.cfg.boi] if wanted is None else wanted.tolist()
      row, drawn = language.with_picture(model, found, words)
      made = language.read(model, row, drawn, network=first)
      value = language.shortfall(model, made, len(found.ids), len(words))
      vectors = made.vectors[None, drawn[0] - 1 : -1]
    out |= {f"v1.{call}_text_tokens": value, f"v1.{call}_image_vectors": vectors}
  batch, _ = _training_batch(model, inputs)
  (loss, (_, between)), _ = _trained(first, batch, 0.1, 1.0)
  read = batch["labels"] == model.cfg.image_token
  vectors = np.asarray(between[3], np.float32)[read]
  return out | {"v1.train_predicted_vectors": vectors, "v1.train_loss": np.asarray(loss)}


# The decoders ------------------------------------------------------------------------------------


@jax.jit
def encoded(network: Network, images: jax.Array) -> tuple[jax.Array, ...]:
  """Mean and log-variance of latents of images in [-1, 1], and the latents that FLUX paints."""
  module = network.module()
  return (*module.part("autoencoder").encode(images), module.latents(images))


def decoder(model: verbs.Model, call: str, inputs: Inputs, outputs: Inputs) -> Outputs:
  which = recordings.LOSSES[call]
  given = (inputs[f"{call}.embed"], inputs.get(f"{call}.ref_embed"))
  noise, index = last(inputs[f"{call}.noise"]), inputs[f"{call}.timestep_id"]
  *_, latents = encoded(model.network, last(inputs[f"{call}.image"]))
  sigmas, weights = flow.training(decoders.SHIFT, decoders.LAST)
  rows, size = len(noise), (noise.shape[1], noise.shape[2])
  run = functools.partial(_gradients, model.network, given, latents, noise, which=which)
  (value, (context, velocity)), grads = run(jnp.full((rows,), index, jnp.int32))
  counts = [v.shape[1] for v in given if v is not None]
  ids = decoders.text_ids(counts, size, model.cfg.flux.dtype)
  ids = ids if which == "editor" else np.zeros_like(ids)
  sigma = sigmas[index]
  out = {
    "latents": first(latents),
    "sigma": sigma,
    "timestep": (sigma * np.float32(flow.TRAIN_STEPS))[None],
    "noisy_latents": first(flow.mix(latents, jnp.asarray(noise), jnp.full((rows,), sigma))),
    "target": first(noise - latents),
    "context": np.asarray(context, np.float32),
    "text_ids": np.stack([ids] * rows),
    "guidance": np.full((rows,), model.cfg.guidance, np.float32),
    "prediction": first(velocity),
    "weight": weights[index],
    "loss": np.asarray(value),
  }
  found = {f"{call}.{name}": value for name, value in out.items()}
  rows_of = names.decoder_rows(which, (), model.cfg.flux.guidance)
  return found | gradients(call, rows_of, trees.flatten(grads), outputs)


class _Seen:
  """A decoder that keeps the velocities that it gives."""

  def __init__(self, decoder: decoders.Decoder):
    self._decoder = decoder
    self.velocities: list[jax.Array] = []

  def velocity(self, x: jax.Array, t: jax.Array, condition: Any) -> jax.Array:
    """See `decoders.Decoder`."""
    self.velocities.append(self._decoder.velocity(x, t, condition))
    return self.velocities[-1]


@functools.partial(jax.jit, static_argnames=("which",))
def _gradients(
  network: Network, given: Any, latents: Any, noise: Any, index: Any, *, which: painting.Which
) -> Any:
  """(loss, (context, velocity)) and the gradients of the decoder's parameters."""
  rest = {name: leaf for name, leaf in network.params.items() if name != which}

  def loss(params: Any) -> Any:
    module = Network(network.graphdef, rest | params).module()
    decoder, size = module.part(which), (noise.shape[1], noise.shape[2])
    condition = decoder.condition(module.part("constants"), *given, size, module.cfg.guidance)
    seen = _Seen(decoder)
    each = decoders.errors(seen, condition, latents, noise, index)  # type: ignore[arg-type]
    return jnp.mean(each), (decoder.context(*given, size)[0], seen.velocities[0])

  return jax.value_and_grad(loss, has_aux=True)({which: network.params[which]})
