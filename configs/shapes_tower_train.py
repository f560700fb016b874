"""The miniature's image tower: contrastive with captions, plus reconstruction of its pixels.

    blip3o train --config=configs/shapes_tower_train.py:work=DIR --workdir=DIR/tower

DIR holds the tokenizer (`launch/quickstart.sh --workdir DIR` makes it and runs every stage). The
cost and what it reaches stand in docs/miniature.md.
"""

from ml_collections import ConfigDict

from blip3o_jax import config
from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.shapes.source import Mixture
from blip3o_jax.miniature import sizes
from blip3o_jax.train.metrics import Log
from blip3o_jax.train.optimizer import Optimizer
from blip3o_jax.train.run import Train
from blip3o_jax.train.run import to_config


def get_config(arg: str = "") -> ConfigDict:
  """`arg`: work=DIR, the folder of the miniature; times=N, so many times the steps."""
  options = config.parse_arg(arg, work="work", times=1.0)
  data = Data(
    source="shapes",
    split="world",
    task="contrast",
    records=16000,
    shapes=Mixture(long_captions=0.3),
    buckets=(48,),
    image_size=sizes.SHAPES_IMAGE,
    cache=True,
  )
  train = Train(
    steps=round(350 * options.times),
    batch=64,
    optimizer=Optimizer(name="muon", lr=2e-3, lr_end=1e-5, muon_lr=6e-3, warmup_steps=50),
    log=Log(every=50),
  )
  out = to_config("contrast", sizes.contrast_shapes(), train, data)
  out.tokenizer = options.work
  return out
