"""The miniature's UNet: latents of a picture from noise, given the picture's features.

    blip3o train --config=configs/shapes_unet_train.py:work=DIR,scale=S --workdir=DIR/unet

Needs DIR/autoencoder (a finished run) and DIR/features/world; S is 1 / std of its latents.
"""

import dataclasses

from ml_collections import ConfigDict

from blip3o_jax import config
from blip3o_jax.data.pipeline import Data
from blip3o_jax.miniature import sizes
from blip3o_jax.systems import pixels
from blip3o_jax.train.metrics import Log
from blip3o_jax.train.optimizer import Optimizer
from blip3o_jax.train.run import Train
from blip3o_jax.train.run import to_config


def get_config(arg: str = "") -> ConfigDict:
  """The config.

  Args:
    arg: work=DIR, the folder of the miniature; scale=S, the latents' scaling factor; times=N, so
      many times the steps.
  """
  options = config.parse_arg(arg, work="work", times=1.0, scale=1.0)
  model = dataclasses.replace(
    sizes.pixels_shapes(options.scale), train="unet", loss=pixels.Loss(feature_noise=0.05)
  )
  data = Data(
    source="shapes",
    split="world",
    task="pixels",
    records=8000,
    image_size=sizes.SHAPES_IMAGE,
    features=True,
    path=f"{options.work}/features/world",
    cache=True,
  )
  train = Train(
    steps=round(880 * options.times),
    batch=24,
    trainable=("unet/.*",),
    ema_decay=0.995,
    init_from=(f"{options.work}/autoencoder",),
    optimizer=Optimizer(
      name="muon",
      lr=2e-3,
      lr_end=1e-5,
      muon_lr=6e-3,
      warmup_steps=50,
      matrices=("unet/.*kernel",),
    ),
    log=Log(every=50),
  )
  return to_config("pixels", model, train, data)
