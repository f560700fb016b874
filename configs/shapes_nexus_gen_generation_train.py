"""The miniature Nexus-Gen's generation decoder: pictures of vectors that are predicted of captions.

    blip3o train --config=configs/shapes_nexus_gen_generation_train.py:work=DIR \
      --workdir=DIR/generation

Needs DIR/start, the run DIR/language, and DIR/told/generation: the vectors that the language model
predicts of captions, with the pictures. With `live` they are computed in every step, which is also
what the cache is made of.

The release trains this decoder on vectors of real pictures. Here a caption leaves open where things
stand, so that what is predicted of it is a mean that no picture has: such a decoder would be shown
nothing like it.
"""

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from blip3o_jax import config
from blip3o_jax.data import shapes
from blip3o_jax.data.options import Data
from blip3o_jax.data.shapes.source import Mixture
from blip3o_jax.miniature import sizes
from blip3o_jax.systems import nexus_gen
from blip3o_jax.systems.nexus_gen import start
from blip3o_jax.train.checkpoint import Checkpoint
from blip3o_jax.train.metrics import Log
from blip3o_jax.train.optimizer import Optimizer
from blip3o_jax.train.run import Train
from blip3o_jax.train.run import to_config


def get_config(arg: str = "") -> ConfigDict:
  """The config.

  Args:
    arg: work=DIR, the folder of the miniature; live, as above; times=N, so many times the steps,
      and below 1 the captions.
  """
  options = config.parse_arg(arg, work="work", live=False, times=1.0)
  captions = round(24_000 * min(1.0, options.times))
  steps = round(5000 * options.times)
  home = f"{options.work}/start"
  model = dataclasses.replace(
    start.begun(Path(home), "generation"),
    parts=("visual", "language", "generator", "autoencoder", "constants"),
    told="predicted",
    loss=nexus_gen.Loss(drop=0.1),
  )
  common = Data(task="generate", image_size=sizes.SHAPES_IMAGE, buckets=(104,), cache=True)
  data = (
    dataclasses.replace(
      common,
      source="shapes",
      split="generator",
      records=captions,
      cache=False,
      shapes=Mixture(categories=shapes.CATEGORIES, seed=1),
    )
    if options.live
    else dataclasses.replace(common, path=f"{options.work}/told/generation", features=True)
  )
  train = Train(
    steps=steps,
    batch=64,
    trainable=("generator/.*",),
    ema_decay=0.995,
    init_from=(home, f"{options.work}/language"),
    optimizer=Optimizer(name="muon", lr=1.5e-3, lr_end=1e-4, muon_lr=5e-3, warmup_steps=50),
    checkpoint=Checkpoint(every_steps=max(1, steps // 8), keep=1, keep_every=max(1, steps // 4)),
    log=Log(every=10),
  )
  out = to_config("nexus_gen", model, train, data)
  out.tokenizer = home
  return out
