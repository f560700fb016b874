"""Sizes of the miniature of the embedded data set: its systems, number by number.

The miniature recomputes all but matmuls in the backward pass: on a CPU the residual chain that
would be kept costs more than computing it again (docs/miniature.md).
"""

import dataclasses

from blip3o_jax.diffusion import eps
from blip3o_jax.diffusion import flow
from blip3o_jax.models import autoencoder
from blip3o_jax.models import clip_text
from blip3o_jax.models import decoder_lm
from blip3o_jax.models import eva_vit
from blip3o_jax.models import next_dit
from blip3o_jax.models import qwen_vision
from blip3o_jax.models import unet
from blip3o_jax.systems import blip3o
from blip3o_jax.systems import contrast
from blip3o_jax.systems import pixels
from blip3o_jax.systems.parts import features

# At most so many ids has the tokenizer of the miniature: every word of its texts is one or two.
SHAPES_VOCAB = 512
SHAPES_IMAGE = 64

# Where things stand is settled while little but noise is seen: there the generator learns most.
SHAPES_TIMES = flow.Law(kind="logit_normal", mean=0.8)

_SHAPES_TOWER = eva_vit.Config(
  image_size=SHAPES_IMAGE, patch_size=8, dim=128, depth=3, heads=4, mlp_dim=512, remat="dots"
)
_SHAPES_WHITEN = 16
_SHAPES_PLACES = 6  # three harmonics tell four rows, and four columns, apart
_SHAPES_INIT = 128**-0.5


def blip3o_shapes(image_token: int = 0) -> blip3o.Config:
  """The miniature: 64-pixel pictures, 16 features of 16 whitened channels, 16 slots."""
  return blip3o.Config(
    backbone=decoder_lm.Config(
      vocab_size=SHAPES_VOCAB,
      dim=128,
      depth=4,
      heads=4,
      kv_heads=2,
      head_dim=32,
      mlp_dim=384,
      # Slow channels find a word wherever it stands. Rows turn with the fastest channel and columns
      # with the next: that is all that tells the language model where in a picture a token lies.
      rope_theta=1e4,
      mrope_section=(0, 1, 15),
      init_std=_SHAPES_INIT,
      tie_embeddings=True,
      remat="dots",
    ),
    visual=qwen_vision.Config(
      dim=96,
      depth=3,
      heads=4,
      mlp_dim=256,
      out_dim=128,
      patch_size=8,
      # Each merged token sees its own cell alone. A tower that sees more tells where a single
      # object is by what its neighbours see of it, which does not carry over to several.
      window_size=16,
      full_layers=(),
      init_std=_SHAPES_INIT,
      remat="dots",
    ),
    denoiser=next_dit.Config(
      in_channels=_SHAPES_WHITEN,
      grid=4,
      condition_dim=128,
      dim=128,
      depth=6,
      heads=4,
      kv_heads=4,
      multiple_of=32,
      gate_init=1.0,
      remat="dots",
    ),
    features=features.Config(_SHAPES_TOWER, pool=2, whiten=_SHAPES_WHITEN),
    latents=_shapes_autoencoder(),
    slots=16,
    slots_std=_SHAPES_INIT,
    image_token=image_token,
  )


def contrast_shapes() -> contrast.Config:
  """The miniature's tower with its text side, before whitening."""
  return contrast.Config(
    features=features.Config(_SHAPES_TOWER, pool=2),
    text=clip_text.Config(
      vocab_size=SHAPES_VOCAB, length=48, dim=96, depth=2, heads=4, mlp_dim=256, remat="dots"
    ),
  )


def _shapes_autoencoder() -> autoencoder.Config:
  return autoencoder.Config(
    latent_channels=8,
    channels=(80,),
    depth=2,
    groups=16,
    patch_size=8,
    mid_attention=False,
    scaling_factor=1.0,
  )


def pixels_shapes(scaling_factor: float = 1.0) -> pixels.Config:
  """The miniature's pixel decoder: 8 x 8 x 8 latents."""
  return pixels.Config(
    unet=unet.Config(
      in_channels=8,
      out_channels=8,
      channels=(48, 96),
      heads=(2, 4),
      depths=(1, 1),
      mid_depth=1,
      resnets=1,
      context_dim=_SHAPES_WHITEN + _SHAPES_PLACES,
      time_ids_dim=32,
      groups=16,
    ),
    autoencoder=dataclasses.replace(_shapes_autoencoder(), scaling_factor=scaling_factor),
    schedule=eps.Schedule(),
    grid=8,
    feature_grid=4,
    places=_SHAPES_PLACES,
  )
