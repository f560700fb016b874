"""Objective and target space, each trained for a minute: does every design of the paper train?

    blip3o train --config=configs/shapes_objective_smoke.py:objective=mse --workdir=DIR

objective=flow|mse, target=features|latents (spec 6.1); model=DIR is a directory in the released
layout, by default the repository's own of random weights. Its language model, EVA tower and
autoencoder stay frozen, the generator is new: so nothing is learnt but how to start, and no picture
comes of it. Pictures are the embedded shapes.

Cost: 60 steps of 16; 31 s (mse) to 93 s (latents) on two cores that other work kept busy. Expected
loss, mean of the first and of the last ten steps, seed 0, default directory: flow on features 6.3
and 1.4, mse on features 8.1 and 1.3, flow on latents 0.96 and 0.07.
"""

import dataclasses
import json
from pathlib import Path

from ml_collections import ConfigDict

from blip3o_jax import config
from blip3o_jax.data.pipeline import Data
from blip3o_jax.systems import blip3o
from blip3o_jax.systems.blip3o import released
from blip3o_jax.systems.parts import diffusers_files
from blip3o_jax.train.checkpoint import Checkpoint
from blip3o_jax.train.metrics import Log
from blip3o_jax.train.optimizer import Optimizer
from blip3o_jax.train.run import Train
from blip3o_jax.train.run import to_config

TINY = Path(__file__).parents[1] / "tests" / "data" / "tiny-blip3o"
GRID = 8  # cells a side of the latents, two to a token


def get_config(arg: str = "") -> ConfigDict:
  """`arg`: objective, target and model, as above."""
  options = config.parse_arg(arg, objective="flow", target="features", model=str(TINY))
  model, _ = released.read(options.model, "float32")
  model = dataclasses.replace(model, parts=("denoiser", "encoder"), loss=blip3o.Loss(draws=2))
  side = model.features.tower.image_size
  if options.target == "latents":
    values = json.loads((diffusers_files.home(options.model) / "vae/config.json").read_text())
    latents = diffusers_files.vae_config(values)
    denoiser = dataclasses.replace(
      model.denoiser, in_channels=latents.latent_channels, grid=GRID, patch_size=2
    )
    side = GRID * latents.factor
    model = dataclasses.replace(model, target="latents", latents=latents, denoiser=denoiser)
  model = dataclasses.replace(model, objective=options.objective, target=options.target)
  data = Data(
    source="shapes",
    split="generator",
    task="generate",
    records=256,
    buckets=(160,),
    image_size=side,
    cache=True,
  )
  train = Train(
    steps=60,
    batch=16,
    trainable=("slots/.*", "denoiser/.*" if options.objective == "flow" else "regressor/.*"),
    init_from=(f"{options.model}#only=backbone+encoder",),
    optimizer=Optimizer(lr=3e-3, warmup_steps=5),
    checkpoint=Checkpoint(every_steps=0),
    log=Log(every=10),
  )
  out = to_config("blip3o", model, train, data)
  out.tokenizer = options.model
  return out
