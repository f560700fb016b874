"""The frozen network that makes the generator's targets, for a cache of them."""

import dataclasses
from typing import Any

from blip3o_jax import config
from blip3o_jax.systems.blip3o.model import Config
from blip3o_jax.systems.parts import targets
from blip3o_jax.systems.parts.encoders import Encoder


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
  shape = (cfg.grid, cfg.grid, cfg.channels)
  design = {"target": cfg.target} | network
  return Encoder(cfg, "encoder", targets.square, side, shape, design)
