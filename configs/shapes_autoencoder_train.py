"""The miniature's autoencoder: 64-pixel pictures to 8 x 8 x 8 latents.

blip3o train --config=configs/shapes_autoencoder_train.py:work=DIR --workdir=DIR/autoencoder
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
  """`arg`: work=DIR, as in the other stages; times=N, so many times the steps."""
  options = config.parse_arg(arg, work="work", times=1.0)
  model = dataclasses.replace(
    sizes.pixels_shapes(), train="autoencoder", loss=pixels.Loss(l1=0.0, mse=1.0, kl=1e-6)
  )
  data = Data(
    source="shapes",
    split="world",
    task="pixels",
    records=8000,
    image_size=sizes.SHAPES_IMAGE,
    cache=True,
  )
  train = Train(
    steps=round(500 * options.times),
    batch=32,
    trainable=("autoencoder/.*",),
    optimizer=Optimizer(
      name="muon",
      lr=2e-3,
      lr_end=1e-5,
      muon_lr=1e-2,
      warmup_steps=30,
      # Convolutions too: Muon reaches in 200 steps what Adam does not in 700.
      matrices=("autoencoder/.*kernel",),
    ),
    log=Log(every=50),
  )
  return to_config("pixels", model, train, data)
