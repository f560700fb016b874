"""The miniature's generator: slots and DiT, flow matching on the tower's features, backbone frozen.

    blip3o train --config=configs/shapes_generator_pretrain.py:work=DIR --workdir=DIR/generator

Needs DIR/backbone (a finished run) and DIR/features (cached features of the training scenes).
"""

import dataclasses

from ml_collections import ConfigDict

from blip3o_jax import config
from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.shapes.source import Mixture
from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.miniature import sizes
from blip3o_jax.systems import blip3o
from blip3o_jax.train.checkpoint import Checkpoint
from blip3o_jax.train.metrics import Log
from blip3o_jax.train.optimizer import Optimizer
from blip3o_jax.train.run import Train
from blip3o_jax.train.run import to_config


def get_config(arg: str = "") -> ConfigDict:
  """The config.

  Args:
    arg: work=DIR, the folder of the miniature; backbone=DIR, the trained language model, by default
      the run DIR/backbone; times=N, so many times the steps.
  """
  options = config.parse_arg(arg, work="work", backbone="", times=1.0)
  steps = round(840 * options.times)
  kept = max(1, steps // 3)  # steps between checkpoints of the curve of scores over minutes
  tokenizer = Tokenizer.load(options.work, blip3o.SPECIAL)
  model = dataclasses.replace(
    sizes.blip3o_shapes(tokenizer.image_pad),
    parts=("denoiser",),
    loss=blip3o.Loss(draws=2, times=sizes.SHAPES_TIMES),
  )
  data = Data(
    source="shapes",
    split="generator",
    task="generate",
    records=48000,
    shapes=Mixture(long_captions=0.25, variants=3),
    buckets=(48, 80),
    features=True,
    path=f"{options.work}/features/generator",
    cache=True,
  )
  train = Train(
    steps=steps,
    batch=64,
    trainable=("slots/.*", "denoiser/.*"),
    ema_decay=0.995,
    init_from=(options.backbone or f"{options.work}/backbone",),
    optimizer=Optimizer(name="muon", lr=1.5e-3, lr_end=3e-4, muon_lr=5e-3, warmup_steps=100),
    checkpoint=Checkpoint(every_steps=kept, keep=1, keep_every=kept),
    log=Log(every=10),
  )
  out = to_config("blip3o", model, train, data)
  out.tokenizer = options.work
  return out
