"""The miniature Nexus-Gen's language model: answers, and vectors of captions and of edits.

    blip3o train --config=configs/shapes_nexus_gen_language_train.py:work=DIR \
      --workdir=DIR/language
    blip3o train --config=configs/shapes_nexus_gen_language_train.py:choosing,work=DIR \
      --workdir=DIR/choosing

DIR/start is what it begins with; `bash launch/quickstart.sh --system nexus_gen` makes it. The
vision tower stays frozen: what is predicted are its vectors.

The second run goes on from the first. Of that, edits of one object come right, and of several the
wrong one is changed: most of the rows of the second are edits of pictures of several.
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
STEPS = {"language": 6000, "choosing": 10_000}
# What a record of the mixture is, and its share. A quarter of the first run's rows are edits of a
# picture of one object: to make a thing red is learned there, where nothing is to be chosen, and
# hardly elsewhere.
SHARES = {
  "language": {"draw": 0.06, "tune": 0.08, "talk": 0.14, "one": 0.26, "two": 0.2, "edit": 0.26},
  "choosing": {"draw": 0.04, "tune": 0.1, "talk": 0.12, "one": 0.06, "two": 0.34, "edit": 0.34},
}
# Of two objects: to add one there is nothing to choose.
CHOICES = ("recolour", "replace", "remove", "recolour", "replace", "move")
# Vectors of this tower have a variance of 126 a channel where those of the release have about 1:
# this weight makes of a guess of their mean what the release's makes of one there.
IMAGE = 0.05


def get_config(arg: str = "") -> ConfigDict:
  """The config.

  Args:
    arg: work=DIR, the folder of the miniature; choosing, the second run; times=N, so many times the
      steps.
  """
  options = config.parse_arg(arg, work="work", choosing=False, times=1.0)
  run = "choosing" if options.choosing else "language"
  steps = round(STEPS[run] * options.times)
  home = f"{options.work}/start"
  model = dataclasses.replace(
    start.begun(Path(home), "language"),
    parts=("visual", "language"),
    loss=nexus_gen.Loss(text=3.0, image=IMAGE),
  )
  alone = tuple(kind for kind in shapes.EDITS if kind != "remove")
  two = CHOICES if options.choosing else shapes.EDITS
  more = 10 * options.choosing  # other scenes than the first run's
  scenes = {
    "draw": Mixture(seed=more),
    "tune": Mixture(categories=shapes.CATEGORIES, seed=1 + more),
    "talk": Mixture(questions=True, turns=3, descriptions=0.1, text_questions=0.1, seed=more),
    "one": Mixture(edits=alone, most=1, seed=5 + more),
    "two": Mixture(edits=two, most=2, seed=6 + more),
    "edit": Mixture(edits=shapes.EDITS, seed=3 + more),
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
      for name, weight in SHARES[run].items()
    ),
  )
  every = max(1, steps // 8)
  rate = 3e-3 if options.choosing else 4e-3
  train = Train(
    steps=steps,
    batch=BATCH,
    accumulate=2,  # what 16 rows keep stays in a core's cache
    trainable=("backbone/.*", "vision_head/.*", "slots/.*"),
    init_from=(home, f"{options.work}/language") if options.choosing else (home,),
    optimizer=Optimizer(name="muon", lr=rate / 2, lr_end=1e-5, muon_lr=rate, warmup_steps=50),
    checkpoint=Checkpoint(every_steps=every, keep=1, keep_every=2 * every),
    log=Log(every=10),
  )
  out = to_config("nexus_gen", model, train, data)
  out.tokenizer = home
  return out
