"""The programs of Nexus-Gen, from prompt to pixels and to words; see `parts.stages`."""

import dataclasses
from typing import Any

import numpy as np

from blip3o_jax.systems.nexus_gen import model
from blip3o_jax.systems.nexus_gen import painting
from blip3o_jax.systems.nexus_gen import released
from blip3o_jax.systems.nexus_gen import speaking
from blip3o_jax.systems.nexus_gen import verbs
from blip3o_jax.systems.parts import memory
from blip3o_jax.systems.parts import stages as parts
from blip3o_jax.systems.parts.network import Network
from blip3o_jax.systems.parts.stages import Stage
from blip3o_jax.systems.parts.stages import array


def stages(cfg: model.Config, ask: parts.Ask) -> list[Stage]:
  """What `generate`, `edit`, `reconstruct` and `chat` run, at the released size of pictures.

  A directory has the parts that its files hold, a config all.
  """
  has = model.PARTS if ask.directory is None else cfg.parts
  cfg = dataclasses.replace(released.computing(cfg, ask.dtype), parts=has)
  network = memory.outline(
    model,  # type: ignore[arg-type]
    cfg,
    ask.memory,
    dtype=ask.dtype,
    keep=verbs.FLOAT,
    int8=verbs.QUANTISED,
  )
  places = array(ask.batch, 3, ask.bucket)
  rows = {**parts.rows(ask), "labels": array(ask.batch, ask.bucket), "positions": places}
  side = cfg.side(cfg.target_grid)
  images = array(ask.batch, side, side, 3, dtype=np.uint8)
  found = [Stage("language model: vectors", speaking.predict, (network, rows))]
  for which in painting.NAMES:
    if {which, "autoencoder", "constants"} <= set(has):
      found += _pixels(network, cfg, ask, which)
  if "visual" in has:
    found.append(Stage("image encoder", verbs._seen, (network, images)))
  return [*found, *_chat(network, cfg, ask)]


def _pixels(
  network: Network, cfg: model.Config, ask: parts.Ask, which: painting.Which
) -> list[Stage]:
  dim, cells = cfg.backbone.dim, painting._cells(network, which, painting.SIZE)
  vectors = array(ask.batch, cfg.slots, dim, dtype=np.float32)
  edits, guided = which == "editor", painting.SCALES[which] != 1
  count = cfg.cells(cfg.reference_grid)
  reference = array(ask.batch, count, dim, dtype=np.float32) if edits else None
  told: dict[str, Any] = dict(decoder=which, size=cells, guided=guided)
  given = (network, (vectors, reference), parts.seeds(ask))
  condition, state = Stage("", painting._start, given, told).gives()
  scale, step = np.float32(3) if guided else None, np.int32(1)
  steps = (network, condition, scale, state, painting.table(2), step, step)
  found = [Stage(f"{painting.NAMES[which]}: steps", painting._loop, steps, {"decoder": which})]
  if not edits:  # the same of both
    tokens = (network, state.x)
    found.append(Stage("autoencoder: pixels", painting._pixels, tokens, {"size": cells}))
  return found


def _chat(network: Network, cfg: model.Config, ask: parts.Ask) -> list[Stage]:
  room = parts.LENGTH + cfg.slots + 2
  begin = Stage("chat: prompt", speaking.start, (network, parts.asked(ask), room))
  state = begin.gives()
  rules = speaking.rules(cfg, ask.batch, parts.LENGTH, cfg.backbone.vocab_size, (0,))
  answers = Stage("", speaking.first, (network, state, rules, None)).gives()
  cache, last = parts.size(state.cache), np.int32(parts.LENGTH)
  more = Stage("chat: words", speaking.more, (network, answers, rules, None, last), cache=cache)
  return [dataclasses.replace(begin, cache=cache), more]
