"""The miniature Nexus-Gen's language model: answers, and vectors of captions and of edits.

    blip3o train --config=configs/shapes_nexus_gen_language_train.py:work=DIR \
      --workdir=DIR/language

DIR/start is what it begins with; `bash launch/quickstart.sh --system nexus_gen` makes it. The
vision tower stays frozen: what is predicted are its vectors.

An instruction stands before the picture that it is about (`prompts.Form.pictures`), and each place
of the picture names what it becomes (`Mixture.places`). Without either, 6000 steps learn the
changes and not which of several objects is changed, and 10,000 more of edits of two to four objects
half of that (docs/miniature.md).
"""

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from blip3o_jax import config
from blip3o_jax.data import shapes
from blip3o_jax.data.options import Data
from blip3o_jax.data.options import Ingredient
from blip3o_jax.data.shapes.source import Mixture
from blip3o_jax.miniature import sizes
from blip3o_jax.systems import nexus_gen
from blip3o_jax.systems.nexus_gen import start
from blip3o_jax.train.checkpoint import Checkpoint
from blip3o_jax.train.metrics import Log
from blip3o_jax.train.optimizer import Optimizer
from blip3o_jax.train.run import Train
from blip3o_jax.train.run import to_config

BATCH = 32
STEPS = 10_000
# What a record of the mixture is, and its share. Some rows are edits of a picture of one object: to
# make a thing red is learned there, where nothing is to be chosen.
SHARES = {"draw": 0.06, "tune": 0.08, "talk": 0.14, "one": 0.14, "two": 0.29, "edit": 0.29}
# Of two objects: to add one there is nothing to choose.
CHOICES = ("recolour", "replace", "remove", "recolour", "replace", "move")
# Vectors of this tower have a variance of 126 a channel where those of the release have about 1:
# this weight makes of a guess of their mean what the release's makes of one there.
IMAGE = 0.05
# Of the words of an edit most are the 16 that its places name, and most of those say that nothing
# stands there: of the release's weight, 3, little would be left for which object changes.
TEXT = 10.0


def get_config(arg: str = "") -> ConfigDict:
  """The config.

  Args:
    arg: work=DIR, the folder of the miniature; times=N, so many times the steps.
  """
  options = config.parse_arg(arg, work="work", times=1.0)
  steps = round(STEPS * options.times)
  home = f"{options.work}/start"
  model = dataclasses.replace(
    start.begun(Path(home), "language"),
    parts=("visual", "language"),
    loss=nexus_gen.Loss(text=TEXT, image=IMAGE),
  )
  alone = tuple(kind for kind in shapes.EDITS if kind != "remove")
  scenes = {
    "draw": Mixture(),
    "tune": Mixture(categories=shapes.CATEGORIES, seed=1),
    "talk": Mixture(questions=True, turns=3, descriptions=0.1, text_questions=0.1),
    "one": Mixture(edits=alone, most=1, places=1.0, seed=5),
    "two": Mixture(edits=CHOICES, most=2, places=1.0, seed=6),
    "edit": Mixture(edits=shapes.EDITS, places=1.0, seed=3),
  }
  data = Data(
    source="shapes",
    split="generator",
    task="messages",
    pictures=2,
    records=200_000,
    image_size=sizes.SHAPES_IMAGE,
    buckets=(104,),  # of one length: with several, each record's would be counted first
    mixture=tuple(
      Ingredient(
        name=name, weight=weight, split="world" if name == "talk" else "", shapes=scenes[name]
      )
      for name, weight in SHARES.items()
    ),
  )
  every = max(1, steps // 8)
  train = Train(
    steps=steps,
    batch=BATCH,
    accumulate=4,  # what 8 rows keep stays in a core's cache
    trainable=("backbone/.*", "vision_head/.*", "slots/.*"),
    init_from=(home,),
    optimizer=Optimizer(name="muon", lr=2e-3, lr_end=1e-5, muon_lr=4e-3, warmup_steps=50),
    checkpoint=Checkpoint(every_steps=every, keep=1, keep_every=2 * every),
    log=Log(every=10),
  )
  out = to_config("nexus_gen", model, train, data)
  out.tokenizer = home
  return out
