"""The released sizes of the whole system."""

import dataclasses

from blip3o_jax.models import autoencoder
from blip3o_jax.models import decoder_lm
from blip3o_jax.models import eva_vit
from blip3o_jax.models import next_dit
from blip3o_jax.models import qwen_vision
from blip3o_jax.systems.blip3o.model import Config
from blip3o_jax.systems.parts import features


def released(size: str) -> Config:
  """The released system, "4b" or "8b", all parts (spec 0, 1.1, 2.1, 3.1)."""
  qwen = f"qwen2_5_vl_{ {'4b': '3b', '8b': '7b'}[size] }"
  return Config(
    backbone=decoder_lm.VARIANTS[qwen],
    visual=qwen_vision.VARIANTS[qwen],
    denoiser=dataclasses.replace(next_dit.VARIANTS[f"blip3o_{size}"], remat="full"),
    features=features.Config(eva_vit.VARIANTS["eva_clip_e14plus"]),
    latents=autoencoder.VARIANTS["sdxl"],
  )
