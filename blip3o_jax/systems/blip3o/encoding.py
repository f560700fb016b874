"""The frozen network that makes the generator's targets, for a cache of them."""

import dataclasses
from typing import Any

from blip3o_jax import config
from blip3o_jax.data.pipeline import Data
from blip3o_jax.systems.blip3o.model import Config
from blip3o_jax.systems.parts import targets
from blip3o_jax.systems.parts.encoders import Encoder
from blip3o_jax.systems.parts.encoders import Rows


def encoder(cfg: Config) -> Encoder:
  """The encoder of a model, whether it is among its parts or not."""
  if "encoder" not in cfg.parts:
    cfg = dataclasses.replace(cfg, parts=(*cfg.parts, "encoder"))
  network: dict[str, Any]
  if cfg.target == "features":
    side, network = cfg.features.tower.image_size, config.to_dict(cfg.features)
  else:
    side, network = cfg.grid * cfg.latents.factor, config.to_dict(cfg.latents)
  for part in (network, network.get("tower", {})):
    part.pop("remat", None)  # which changes no value

  def rows(data: Data, tokenizer: Any) -> Rows:
    del tokenizer
    if data.image_size != side:
      raise ValueError(f"config.data.image_size: {data.image_size}, but the encoder takes {side}")
    return lambda record: {"images": targets.square(record, data)}

  shape = (cfg.grid, cfg.grid, cfg.channels)
  design = {"target": cfg.target} | network
  return Encoder(cfg, ("encoder",), rows, shape, design)
