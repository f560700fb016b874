"""The programs of BLIP3-o, from prompt to pixels and to words; see `parts.stages`."""

import dataclasses

import numpy as np

from blip3o_jax.diffusion import eps
from blip3o_jax.diffusion import flow
from blip3o_jax.models import autoencoder
from blip3o_jax.models import unet
from blip3o_jax.systems.blip3o import model
from blip3o_jax.systems.blip3o import released
from blip3o_jax.systems.blip3o import sampling
from blip3o_jax.systems.blip3o import speaking
from blip3o_jax.systems.blip3o import verbs
from blip3o_jax.systems.parts import decoding
from blip3o_jax.systems.parts import memory
from blip3o_jax.systems.parts import painter
from blip3o_jax.systems.parts import painter_files
from blip3o_jax.systems.parts import stages as parts
from blip3o_jax.systems.parts.network import Network
from blip3o_jax.systems.parts.stages import Stage
from blip3o_jax.systems.parts.stages import array


def stages(cfg: model.Config, ask: parts.Ask) -> list[Stage]:
  """What `generate`, `reconstruct` and `chat` run; a model without a pixel decoder paints nothing.

  Raises:
    FileNotFoundError, ValueError: files of the pixel decoder that are absent or wrong.
  """
  cfg = released.whole(cfg, ask.dtype)
  how = dict(dtype=ask.dtype, int8=verbs.QUANTISED)
  network = memory.outline(model, cfg, ask.memory, **how)  # type: ignore[arg-type]
  side = cfg.features.tower.image_size
  images = array(ask.batch, side, side, 3, dtype=np.float32)
  return [
    *_features(network, cfg, ask),
    *_pixels(cfg, ask),
    Stage("image encoder", verbs._targets, (network, images)),
    *_chat(network, cfg, ask),
  ]


def _features(network: Network, cfg: model.Config, ask: parts.Ask) -> list[Stage]:
  prompt, name = parts.rows(ask), "language model: condition"
  if cfg.objective == "mse":
    return [Stage(name, sampling._regressed, (network, prompt))]
  read = Stage(name, sampling.condition, (network, prompt))
  begin = Stage("", sampling._begin, (network, read.gives(), parts.seeds(ask), True))
  steps, scale = (np.int32(0), np.int32(1)), np.float32(3)
  given = (network, *begin.gives(), flow.table(2), steps, scale, "euler")
  return [read, Stage("denoiser: steps", sampling._advance, given)]


def _pixels(cfg: model.Config, ask: parts.Ask) -> list[Stage]:
  if (found := _painter(cfg, ask)) is None:
    return []
  network = memory.outline(
    painter,
    dataclasses.replace(found, unet=dataclasses.replace(found.unet, dtype=ask.dtype)),
    ask.memory,
    dtype=ask.dtype,
    keep=("autoencoder",),
  )
  table, grid = eps.table(found.schedule, 2), (cfg.grid, cfg.grid, cfg.channels)
  features, null = (array(n, *grid, dtype=np.float32) for n in (ask.batch, 1))
  given = (network, features, parts.seeds(ask), null, table.start)
  condition, state = Stage("", painter._start, given).gives()
  factor, step = np.float32(3), np.int32(1)
  steps = (network, condition, factor, state, table, step, step)
  return [
    Stage("UNet: steps", painter._loop, steps),
    Stage("autoencoder: pixels", painter._pixels, (network, state.x)),
  ]


def _painter(cfg: model.Config, ask: parts.Ask) -> painter.Config | None:
  """Of the directory's pixel decoder, or the released one where it takes these features."""
  if ask.directory is not None:
    home = verbs._decoder_of(ask.directory)
    return None if home is None else painter_files.read_config(home, feature_grid=cfg.grid)
  network = unet.VARIANTS["emu2_gen"]
  if cfg.channels != network.context_dim:
    return None
  return painter.Config(network, autoencoder.VARIANTS["sdxl"], feature_grid=cfg.grid)


def _chat(network: Network, cfg: model.Config, ask: parts.Ask) -> list[Stage]:
  rules = decoding.rules(ask.batch, parts.LENGTH, cfg.backbone.vocab_size, (0,))
  begin = Stage("chat: prompt", speaking.begin, (network, parts.asked(ask), rules, None))
  answers = begin.gives()
  cache = parts.size(answers.state.cache)
  last = np.int32(parts.LENGTH)
  more = Stage("chat: words", speaking.more, (network, answers, rules, None, last), cache=cache)
  return [dataclasses.replace(begin, cache=cache), more]
