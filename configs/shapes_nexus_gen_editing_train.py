"""The miniature Nexus-Gen's editing decoder: edited pictures, beside the picture that is edited.

    blip3o train --config=configs/shapes_nexus_gen_editing_train.py:work=DIR --workdir=DIR/editing

Needs DIR/start, the runs DIR/language and DIR/generation, and DIR/told/editing: the vectors that
the language model predicts of edits and those of the reference, with the pictures. With `live` they
are computed in every step, which is also what the cache is made of. The whole model is built, so
that the run can be exported: all but the decoder is frozen.
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
      and below 1 the edits.
  """
  options = config.parse_arg(arg, work="work", live=False, times=1.0)
  edits = round(32_000 * min(1.0, options.times))
  steps = round(6000 * options.times)
  home = f"{options.work}/start"
  model = dataclasses.replace(start.begun(Path(home), "editing"), loss=nexus_gen.Loss(drop=0.1))
  common = Data(task="edit", image_size=sizes.SHAPES_IMAGE, buckets=(88,), cache=True)
  data = (
    dataclasses.replace(
      common,
      source="shapes",
      split="generator",
      records=edits,
      cache=False,
      shapes=Mixture(edits=shapes.EDITS, seed=4),
    )
    if options.live
    else dataclasses.replace(common, path=f"{options.work}/told/editing", features=True)
  )
  sources = ["language"] if options.live else ["language", "generation#ema"]
  if options.live:
    model = dataclasses.replace(model, parts=("visual", "language", "editor", "autoencoder"))
  train = Train(
    steps=steps,
    batch=64,
    trainable=("editor/.*",),
    ema_decay=0.995,
    init_from=(home, *(f"{options.work}/{source}" for source in sources)),
    optimizer=Optimizer(name="muon", lr=1.5e-3, lr_end=1e-4, muon_lr=5e-3, warmup_steps=50),
    checkpoint=Checkpoint(every_steps=max(1, steps // 8), keep=1, keep_every=max(1, steps // 4)),
    log=Log(every=10),
  )
  out = to_config("nexus_gen", model, train, data)
  out.tokenizer = home
  return out
