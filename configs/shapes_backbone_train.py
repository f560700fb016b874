"""The miniature's language model and vision tower: captions, questions about text and pictures.

    blip3o train --config=configs/shapes_backbone_train.py:work=DIR --workdir=DIR/backbone

Understanding first; afterwards both are frozen. DIR holds the tokenizer. In two runs: `first`, into
DIR/answers, learns to choose the object that is asked for; the other starts from it, and learns to
read all of a prompt, to see all objects of a picture, and where each of its tokens lies. The other
way round it never learns to choose.
"""

import dataclasses

from ml_collections import ConfigDict

from blip3o_jax import config
from blip3o_jax.data import shapes
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

BATCH = 64


def get_config(arg: str = "") -> ConfigDict:
  """`arg`: work=DIR, the folder of the miniature; first; times=N, so many times the steps."""
  options = config.parse_arg(arg, work="work", first=False, times=1.0)
  steps = round(840 * options.times)
  kept = max(1, steps // 8)  # steps between checkpoints of the curve of scores over minutes
  tokenizer = Tokenizer.load(options.work, blip3o.SPECIAL)
  model = dataclasses.replace(
    sizes.blip3o_shapes(tokenizer.image_pad),
    parts=("visual", "head"),
    loss=blip3o.Loss(image=0.0, text=1.0),
    prompt_gradient="full",
  )
  data = Data(
    source="shapes",
    split="world",
    task="understand",
    records=steps * BATCH,
    # Several questions a picture: the vision tower's work serves all of them. Read in order, each
    # row once: first the tower has to tell shapes apart, then the language model has to find the
    # object that is asked for. The second run asks nothing about captions: to choose in a text is
    # not learned beside the rest, and kept it from reading. Two objects again before four.
    shapes=Mixture(
      questions=True,
      descriptions=0.05,
      text_questions=0.35,
      turns=4,
      growing=(80 * BATCH, 280 * BATCH),
    )
    if options.first
    else Mixture(
      questions=True,
      descriptions=0.02,
      text_questions=0.0,
      reading=0.2,
      seeing=0.15,
      places=0.5,
      turns=4,
      growing=(0, 400 * BATCH, 200 * BATCH),
      kinds=(*shapes.KINDS, "where", "where"),
      seed=2,
    ),
    shuffle=False,
    buckets=(104,),
    image_size=sizes.SHAPES_IMAGE,
  )
  train = Train(
    steps=steps,
    batch=BATCH,
    accumulate=4,  # what 16 rows keep stays in a core's cache: 1.12 times the steps
    trainable=("backbone/.*", "visual/.*"),
    init_from=() if options.first else (f"{options.work}/answers",),
    optimizer=Optimizer(name="muon", lr=2e-3, lr_end=1e-5, muon_lr=6e-3, warmup_steps=50),
    checkpoint=Checkpoint(every_steps=kept, keep=1, keep_every=kept),
    log=Log(every=10),
  )
  out = to_config("blip3o", model, train, data)
  out.tokenizer = options.work
  return out
