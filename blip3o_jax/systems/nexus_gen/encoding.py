"""The frozen networks that tell the decoders what to paint, for a cache of what they say.

generation: `visual` of the picture itself, n vectors, or n that the language model predicts of its
caption (`Config.told`). editing: the n vectors that the language
model predicts, then the r that `visual` gives of the picture that is edited (Nexus-Gen spec 9.2).
"""

import dataclasses
from typing import Any

import numpy as np

from blip3o_jax import config
from blip3o_jax.data.pipeline import Arrays
from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.records import Record
from blip3o_jax.systems.nexus_gen.model import Config
from blip3o_jax.systems.nexus_gen.model import Part
from blip3o_jax.systems.nexus_gen.tasks import transforms
from blip3o_jax.systems.parts.encoders import Encoder
from blip3o_jax.systems.parts.encoders import Rows

LANGUAGE = ("backbone", "vision_head", "slots")


def encoder(cfg: Config) -> Encoder:
  """What a decoder's stage is told by, whether it is among the model's parts or not.

  The stage "language" has nothing to keep: asking for its rows is an error.
  """
  seen, drawn = cfg.stage != "generation" or cfg.told == "seen", cfg.stage == "editing"
  drawn = drawn or not seen
  needed: list[Part] = ["visual"] if seen else []
  if drawn:
    needed.append("language")
  cfg = dataclasses.replace(
    cfg, parts=(*cfg.parts, *(part for part in needed if part not in cfg.parts))
  )
  modules = ("visual",) * seen + LANGUAGE * drawn
  design = (_design(cfg, "visual") if seen else {}) | {"target_grid": cfg.target_grid}
  if not drawn:
    side = cfg.target_grid // cfg.visual.merge
    return Encoder(cfg, modules, _rows(cfg), (side, side, cfg.backbone.dim), design, _friendly)
  design |= _design(cfg, "backbone") | config.to_dict(cfg.form) | {"slots": cfg.slots}
  count = cfg.slots
  if seen:
    design |= {"reference_grid": cfg.reference_grid}
    count += cfg.cells(cfg.reference_grid)
  return Encoder(cfg, modules, _rows(cfg), (1, count, cfg.backbone.dim), design, _read, True)


def _design(cfg: Config, name: str) -> dict[str, Any]:
  """Of a network, what changes a value."""
  network = config.to_dict(getattr(cfg, name))
  network.pop("remat")
  return {name: network}


def _friendly(data: Data) -> dict[str, Any]:
  return {"friendly": data.friendly}


def _read(data: Data) -> dict[str, Any]:
  return _friendly(data) | {"buckets": [data.buckets[-1]]}


def _rows(cfg: Config) -> Any:
  def rows(data: Data, tokenizer: Any) -> Rows:
    if cfg.stage == "language":
      raise ValueError(
        "config.model.stage: 'language' trains on pictures, of which nothing could be kept; "
        "'generation' and 'editing' do"
      )
    data.refuse("swap_captions")  # a cache keeps one
    # Rows of one length: instructions are short.
    data = dataclasses.replace(data, buckets=data.buckets[-1:])
    (made,) = transforms(cfg, data, tokenizer).values()
    rng = np.random.default_rng(0)  # which nothing draws from

    def row(record: Record) -> Arrays:
      told: Arrays = made.told(record, rng)  # type: ignore[attr-defined]
      return told

    return row

  return rows
