"""Recorded inputs through the system: arrays of a recording in, arrays in PyTorch's layouts out.

Everything goes through the functions that drawing, answering and training use. Answers of
the language model are in `replay_language`, losses in `replay_training`, the decoders here.
"""

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
from PIL import Image

from blip3o_jax import layers
from blip3o_jax.data import images as pictures
from blip3o_jax.diffusion import flow
from blip3o_jax.layers import Dtype
from blip3o_jax.models import flux
from blip3o_jax.systems.nexus_gen import decoders
from blip3o_jax.systems.nexus_gen import model as networks
from blip3o_jax.systems.nexus_gen import painting
from blip3o_jax.systems.nexus_gen import recordings
from blip3o_jax.systems.nexus_gen import replay_language
from blip3o_jax.systems.nexus_gen import replay_training
from blip3o_jax.systems.nexus_gen import verbs
from blip3o_jax.systems.nexus_gen.replay_language import Inputs
from blip3o_jax.systems.nexus_gen.replay_language import Outputs
from blip3o_jax.systems.parts.network import Network
from blip3o_jax.systems.parts.recorded import Errors
from blip3o_jax.systems.parts.recorded import first
from blip3o_jax.systems.parts.recorded import last

SIZE_512 = (64, 64)  # latent cells of the released 512 pixels


def replay(
  directory: Path, dtype: Dtype, recording: Inputs
) -> Callable[[str, Inputs, Inputs], Outputs]:
  """Loads the model of a directory; see `run` for the calls.

  The null condition is the recorded one, where there is one.

  Raises:
    FileNotFoundError, ValueError: what is wrong with the model.
  """
  model = verbs.load(directory, dtype=dtype)
  pooled, context = (recording.get(name) for name in recordings.CONSTANTS)
  if pooled is not None:
    # Calls without guidance are recorded without a context, and read none.
    blank = np.zeros((1, model.cfg.null_tokens, model.cfg.flux.context_dim), np.float32)
    model = with_null(model, pooled[0], (blank if context is None else context)[0])
  return functools.partial(run, model)


def with_null(model: verbs.Model, pooled: np.ndarray, context: np.ndarray) -> verbs.Model:
  """The model with another null condition: pooled float[P], context float[S, C]."""
  has = {*model.cfg.parts, "constants"}
  parts = tuple(part for part in networks.PARTS if part in has)
  cfg = dataclasses.replace(model.cfg, parts=parts, null_tokens=len(context))
  graphdef, _ = nnx.split(layers.abstract(lambda rngs: networks.build(cfg, rngs)))
  null = {"pooled": jnp.asarray(pooled), "context": jnp.asarray(context)}
  network = Network(graphdef, model.network.params | {"constants": null})
  parts_of = (cfg, model.settings, network, model.tokenizer, model.choice, model.home)
  return verbs.Model(*parts_of)


def run(model: verbs.Model, call: str, inputs: Inputs, outputs: Inputs) -> Outputs:
  """Runs one call of `recordings.recorded`.

  Args:
    model: loaded. call: its name. inputs: {name: array}, all that the call needs.
    outputs: {name: recorded array} of those wanted; tokens in bfloat16, and pictures, read them.

  Returns:
    {name: array} with at least the outputs wanted, float32 or int, in PyTorch's layouts, or
    `Errors`: of pictures, and of tokens in bfloat16.

  Raises:
    ValueError: inputs that contradict each other, or a part that the model has not.
  """
  kinds: tuple[tuple[Mapping[str, Any], Callable[..., Outputs]], ...] = (
    (recordings.DITS, _dit),
    (recordings.LOOPS, _loop),
    (recordings.LOSSES, replay_training.decoder),
  )
  known: dict[str, Callable[..., Outputs]] = {
    "adapter": _adapter, "merger": _merger, "sampler": _sampler, "vae": _vae, "ids_512": _ids,
    "pre": _pictures,
  }  # fmt: skip
  trained = {"train": replay_training.train, "v1": replay_training.first_version}
  for names, function in kinds:
    if call in names:
      return function(model, call, inputs, outputs)
  if call in known:
    return known[call](model, inputs)
  if call in trained:
    return trained[call](model, inputs, outputs)
  return replay_language.run(model, call, inputs, outputs)


# Decoders ----------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("which", "size"))
def _context(network: Network, given: Any, *, which: painting.Which, size: Any) -> jax.Array:
  return network.module().part(which).context(*given, size)[0]


def _adapter(model: verbs.Model, inputs: Inputs) -> Outputs:
  given = (inputs["gen.image_vectors"], None)
  found = _context(model.network, given, which="generator", size=SIZE_512)
  return {"adapter.output": np.asarray(found, np.float32)}


def _merger(model: verbs.Model, inputs: Inputs) -> Outputs:
  target, reference = inputs["edit.image_vectors"], inputs["merger.reference_embeds"]
  run = functools.partial(_context, model.network, which="editor", size=SIZE_512)
  counts = [target.shape[1], reference.shape[1]]
  return {
    "merger.position_ids": decoders.merger_positions(counts, model.cfg.base_grid)[:, None],
    "merger.output": np.asarray(run((target, reference)), np.float32),
    "merger.output_target_only": np.asarray(run((target, None)), np.float32),
  }


@functools.partial(jax.jit, static_argnames=("which",))
def _velocity(
  network: Network, x: jax.Array, t: jax.Array, condition: flux.Condition, *, which: painting.Which
) -> tuple[jax.Array, jax.Array]:
  decoder = network.module().part(which)
  return decoder.dit.conditioning(t, condition), decoder.velocity(x, t, condition)


def _dit(model: verbs.Model, call: str, inputs: Inputs, outputs: Inputs) -> Outputs:
  del outputs
  which = recordings.DITS[call]
  x, t, guidance, context, pooled, text_ids, image_ids = (
    inputs[f"{call}.{name}"]
    for name in (
      *("latents", "timestep", "guidance", "context", "pooled", "text_ids", "image_ids"),
    )
  )
  dit = model.network.module().part(which).dit
  # Outside of a trace, so that the angles of places are exact, as they are in the shipped way.
  condition = dit.prepare(jnp.asarray(context), jnp.asarray(pooled), guidance, text_ids, image_ids)
  conditioning, found = _velocity(model.network, last(x), t, condition, which=which)
  unit = np.float32(flux.GUIDANCE_UNIT)
  return {
    f"{call}.time_sinusoid": np.asarray(flux.sinusoid(dit.cfg, jnp.asarray(t))),
    f"{call}.guidance_sinusoid": np.asarray(flux.sinusoid(dit.cfg, jnp.asarray(guidance * unit))),
    f"{call}.conditioning": np.asarray(conditioning, np.float32),
    f"{call}.velocity": first(found),
  }


def _sampler(model: verbs.Model, inputs: Inputs) -> Outputs:
  del inputs
  out: Outputs = {}
  for steps in recordings.STEPS:
    sigmas, timesteps = flow.schedule(steps, False, decoders.SHIFT, decoders.LAST)
    out |= {f"sampler.{steps}.sigmas": sigmas, f"sampler.{steps}.timesteps": timesteps}
  sigmas, weights = flow.training(decoders.SHIFT, decoders.LAST)
  frequencies = layers.sinusoid_frequencies(model.cfg.flux.sinusoid_dim)
  return out | {
    "sampler.train.sigmas": sigmas,
    "sampler.train.timesteps": sigmas * np.float32(flow.TRAIN_STEPS),
    "sampler.train.weights": weights,
    "sampler.sinusoid_frequencies": frequencies,
  }


def _ids(model: verbs.Model, inputs: Inputs) -> Outputs:
  del inputs
  counts = [model.cfg.slots, model.cfg.cells(model.cfg.reference_grid)]
  kinds: dict[str, Dtype] = {"text_ids": "float32", "text_ids_bfloat16": "bfloat16"}
  return {
    f"ids_512.{name}": decoders.text_ids(counts, SIZE_512, dtype)[None]
    for name, dtype in kinds.items()
  }


@functools.partial(jax.jit, static_argnames=("which",))
def _sampled(
  network: Network, given: Any, noise: Any, steps: Any, scale: Any, *, which: painting.Which
) -> jax.Array:
  module = network.module()
  found = module.part(which), module.part("constants")
  return painting.sample(*found, given, noise, steps, scale, module.cfg.guidance)


@jax.jit
def _shown(network: Network, latents: jax.Array) -> tuple[jax.Array, jax.Array]:
  """What the autoencoder makes of scaled latents, as it is and as a picture in [0, 1]."""
  module = network.module().part("autoencoder")
  cfg = module.cfg
  decoded = module.decode(latents / cfg.scaling_factor + cfg.shift_factor)
  return decoded, module.pixels(latents)


def _loop(model: verbs.Model, call: str, inputs: Inputs, outputs: Inputs) -> Outputs:
  loop = recordings.LOOPS[call]
  vectors, *reference = (inputs[name] for name in loop.given)
  given = (vectors, reference[0] if reference else None)
  noise, visited = last(inputs[f"{call}.noise"]), painting.table(loop.steps)
  size = (noise.shape[1], noise.shape[2])
  scale = None if loop.scale == 1 else np.float32(loop.scale)
  found = [noise]
  for count in range(1, loop.steps + 1):  # each from the start, of one program
    steps = visited._replace(steps=np.int32(count))
    found.append(_sampled(model.network, given, noise, steps, scale, which=loop.decoder))
  sigmas, timesteps = flow.schedule(loop.steps, False, decoders.SHIFT, decoders.LAST)
  decoded, image = map(np.asarray, _shown(model.network, found[-1]))
  counts = [v.shape[1] for v in given if v is not None]
  ids = decoders.text_ids(counts, size, model.cfg.flux.dtype)
  out = {
    "text_ids": (ids if loop.decoder == "editor" else np.zeros_like(ids))[None],
    "image_ids": flux.image_ids(*size)[None],
    "sigmas": sigmas,
    "timesteps": timesteps,
    "latents": first(np.concatenate(found)),
    "decoded": first(decoded),
  }
  recorded = outputs.get(f"{call}.image_u8")
  if recorded is not None:
    out["image_u8"] = _bytes(image[0], recorded)
  return {f"{call}.{name}": value for name, value in out.items()}


def _bytes(image: np.ndarray, recorded: np.ndarray) -> Any:
  """Of each byte how far ours lies outside the recorded one, 0 where they are equal."""
  found = painting.bytes_of(image)
  if found.shape != recorded.shape or found.dtype != recorded.dtype:
    return found
  value, low = image.astype(np.float64) * 255, recorded.astype(np.float64)
  outside = np.maximum(low - value, value - low - 1)
  return Errors(np.where(found == recorded, 0, np.maximum(outside, 0)) / 255)


def _vae(model: verbs.Model, inputs: Inputs) -> Outputs:
  mean, logvar, latents = replay_training.encoded(model.network, last(inputs["vae.image"]))
  decoded, _ = _shown(model.network, last(inputs["vae.decode_latent"]))
  return {
    "vae.moments": first(np.concatenate([mean, logvar], -1)),
    "vae.latent": first(latents),
    "vae.decoded": first(decoded),
  }


# Pictures ----------------------------------------------------------------------------------------


def _pictures(model: verbs.Model, inputs: Inputs) -> Outputs:
  cfg, made = model.cfg, {n: inputs[f"pre.{n}"] for n in recordings.MADE if f"pre.{n}" in inputs}
  if recordings.PHOTO in inputs:
    photo = Image.fromarray(recordings.photo_of(inputs[recordings.PHOTO]))
    small, large = cfg.side(cfg.target_grid), cfg.side(cfg.reference_grid)
    most = int(inputs["pre.input_max_pixels"])
    square = functools.partial(pictures.square, photo)
    made = {
      "target_u8": square(small, squash=True),
      "reference_bilinear_u8": square(large, squash=True, resample="bilinear"),
      "reference_bicubic_u8": square(large, squash=True),
      "input_u8": pictures.qwen_pixels(
        photo, factor=cfg.visual.patch_size * cfg.visual.merge, max_pixels=most
      ),
      "generation_condition_u8": square(small, resample="bilinear", nearest=True),
      "decoder_target_u8": square(model.settings.size, resample="bilinear", nearest=True),
    }

  def patches(name: str) -> tuple[np.ndarray, np.ndarray]:
    pixels = pictures.normalise(made[name])
    grid = [[1, *(side // cfg.visual.patch_size for side in pixels.shape[:2])]]
    vision = dataclasses.asdict(cfg.visual)
    sizes = {n: vision[n] for n in ("patch_size", "merge", "temporal_patch_size")}
    return pictures.patchify(pixels, **sizes), np.array(grid)

  target, grid = patches("target_u8")
  reference, large_grid = patches("reference_bilinear_u8")
  return {
    **{f"pre.{name}": value for name, value in made.items()},
    "pre.target_pixel_values": target,
    "pre.target_grid_thw": grid,
    "pre.reference_pixel_rows": reference[inputs["pre.reference_rows"]],
    "pre.reference_grid_thw": large_grid,
  }
