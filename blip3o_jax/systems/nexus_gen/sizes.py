"""The released sizes of the whole system, and those of the miniature of the embedded set."""

import dataclasses

from blip3o_jax.data.text import chat
from blip3o_jax.models import autoencoder
from blip3o_jax.models import decoder_lm
from blip3o_jax.models import flux
from blip3o_jax.models import qwen_vision
from blip3o_jax.systems.nexus_gen import prompts
from blip3o_jax.systems.nexus_gen.model import Config

VOCABULARY = 152064  # rows of the released tables; the tokenizer has fewer ids (spec 2.1)
SHAPES_SIDE = 64  # pixels of the miniature's pictures


def released() -> Config:
  """The released system, V1 and V2 alike, all parts (Nexus-Gen spec 1)."""
  qwen = "qwen2_5_vl_7b"
  return Config(
    backbone=dataclasses.replace(decoder_lm.VARIANTS[qwen], vocab_size=VOCABULARY),
    visual=qwen_vision.VARIANTS[qwen],
    flux=flux.VARIANTS["flux_1_dev"],
    autoencoder=autoencoder.VARIANTS["flux"],
  )


def shapes(
  language: decoder_lm.Config,
  visual: qwen_vision.Config,
  pixels: autoencoder.Config,
  tokenizer: chat.Tokenizer,
) -> Config:
  """The miniature: a vector for each of the 16 cells of a 64-pixel picture, a FLUX of 2.4 M.

  Args:
    language, visual, pixels: of the miniature that it starts from, whose words and cells these are.
    tokenizer: of the ids.
  """
  dim, cells = language.dim, SHAPES_SIDE // visual.patch_size
  return Config(
    backbone=dataclasses.replace(language, remat="dots"),
    visual=dataclasses.replace(visual, remat="dots"),
    flux=flux.Config(
      dim=128,
      heads=4,
      axes=(8, 12, 12),
      double_depth=2,
      single_depth=4,
      context_dim=dim,
      pooled_dim=32,
      in_channels=pixels.latent_channels * flux.PATCH**2,
      sinusoid_dim=64,
      remat="dots",
    ),
    autoencoder=pixels,
    slots=(cells // visual.merge) ** 2,
    target_grid=cells,
    # The vision tower was trained on pictures of this size alone: seen at twice the side, as the
    # release has it, an object would be twice as large as any that it knows.
    reference_grid=cells,
    base_grid=2 * cells,
    null_tokens=16,
    image_token=tokenizer.image_pad,
    boi=tokenizer.vision_start,
    eoi=tokenizer.vision_end,
    form=prompts.Form(max_pixels=SHAPES_SIDE**2),
  )
