"""Instruction tuning of the miniature's generator, on prompts worded like the test's categories.

    blip3o train --config=configs/shapes_generator_tune.py:work=DIR --workdir=DIR/tuned

Starts from DIR/generator; needs DIR/features/tune. No test prompt is among the prompts. The
quickstart names a category the more often the more of it pretraining leaves wrong:
`categories=position+two_object+position`.
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

DEFAULT = "two_object+counting+colors+position+color_attribution+single_object"


def get_config(arg: str = "") -> ConfigDict:
  """The config.

  Args:
    arg: work=DIR, the folder of the miniature; categories=A+B, which to train on, in turn; times=N,
      so many times the steps.
  """
  options = config.parse_arg(arg, work="work", times=1.0, categories=DEFAULT)
  steps = round(600 * options.times)
  kept = max(1, steps // 2)  # steps between checkpoints of the curve of scores over minutes
  tokenizer = Tokenizer.load(options.work, blip3o.SPECIAL)
  model = dataclasses.replace(
    sizes.blip3o_shapes(tokenizer.image_pad),
    parts=("denoiser",),
    # What pretraining leaves wrong is how many there are and how they stand: settled at high noise.
    loss=blip3o.Loss(draws=2, times=dataclasses.replace(sizes.SHAPES_TIMES, mean=1.2)),
  )
  data = Data(
    source="shapes",
    split="generator",
    task="generate",
    records=16000,
    shapes=Mixture(categories=tuple(options.categories.split("+")), seed=1),
    buckets=(48,),
    features=True,
    path=f"{options.work}/features/tune",
    cache=True,
  )
  train = Train(
    steps=steps,
    batch=64,
    trainable=("slots/.*", "denoiser/.*"),
    ema_decay=0.995,
    init_from=(f"{options.work}/generator#ema",),
    optimizer=Optimizer(name="muon", lr=1e-3, lr_end=1e-5, muon_lr=3e-3, warmup_steps=20),
    checkpoint=Checkpoint(every_steps=kept, keep=1, keep_every=kept),
    log=Log(every=10),
  )
  out = to_config("blip3o", model, train, data)
  out.tokenizer = options.work
  return out
