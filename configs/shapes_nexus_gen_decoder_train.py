"""The miniature Nexus-Gen's decoders: pictures of captions, and edited pictures.

    blip3o train --config=configs/shapes_nexus_gen_decoder_train.py:decoder=generation,work=DIR \
      --workdir=DIR/generation
    blip3o train --config=configs/shapes_nexus_gen_decoder_train.py:decoder=editing,work=DIR \
      --workdir=DIR/editing

Each needs DIR/start, the run DIR/language (or, as `language=`, a model that has its leaves), and
DIR/told/SET of its `SETS`: the vectors that the language model predicts of captions, or of edits
with those of the reference, and the pictures. With `live` they are computed in every step, which is
also what the cache is made of.

The release trains its generation decoder on vectors of real pictures. Here a caption leaves open
where things stand, so that what is predicted of it is a mean that no picture has: such a decoder
would be shown nothing like it.

No picture that the language model learns to predict shows a pair of colour and shape that is held
out. The editing decoder sees such pairs, as the pixel decoder of the other miniature does: in edits
that take one object away or move one, and so keep how all of them look.

The editing decoder comes last and needs the run DIR/generation too: of its cached form the whole
model is built, all but the decoder frozen, so that the run can be exported.
"""

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from blip3o_jax import config
from blip3o_jax.data import shapes
from blip3o_jax.data.options import Data
from blip3o_jax.data.options import Ingredient
from blip3o_jax.data.shapes.source import Mixture
from blip3o_jax.diffusion import flow
from blip3o_jax.miniature import sizes
from blip3o_jax.systems import nexus_gen
from blip3o_jax.systems.nexus_gen import model as nexus
from blip3o_jax.systems.nexus_gen import start
from blip3o_jax.train.checkpoint import Checkpoint
from blip3o_jax.train.metrics import Log
from blip3o_jax.train.optimizer import Optimizer
from blip3o_jax.train.run import Train
from blip3o_jax.train.run import to_config

# What the start has fitted stays: a step of Muon would move the mean of vectors, many times larger
# than what tells them apart, by more than that.
TRAINED = {
  "generation": "generator/(?!adapter/linear_in/).*",
  "editing": "editor/(?!merger/(norm_in|linear_in)/).*",
}
TASKS = {"generation": "generate", "editing": "edit"}
STEPS = {"generation": 3500, "editing": 6000}
# What each is trained on, and the shares of several.
SETS = {"generation": {"generation": 1.0}, "editing": {"editing": 0.7, "kept": 0.3}}
RECORDS = {"generation": 12_000, "editing": 24_000, "kept": 12_000}
DROP = {"generation": 0.1, "editing": 0.0}  # only drawings are guided
# The release's weights fall to 0 towards all noise, where nothing but what is told says how large
# things are and what stands behind them; what is painted wrongly there, later steps keep.
WEIGHTS: flow.Weights = "shoulder"
LENGTHS = {"generation": 104, "editing": 88}
SCENES = {
  "generation": Mixture(categories=shapes.CATEGORIES, seed=1),
  "editing": Mixture(edits=shapes.EDITS, seed=4),
  "kept": Mixture(edits=("remove", "move"), seed=7),
}
SPLITS = {"kept": "world"}  # of scenes in which every pair is; else "generator"


def get_config(arg: str = "") -> ConfigDict:
  """The config.

  Args:
    arg: decoder=generation or decoder=editing; work=DIR, the folder of the miniature; language=DIR,
      an entry of `init_from` in place of the run; live, as above, and then scenes=SET (that of the
      decoder's name); times=N, so many times the steps, and below 1 the records.

  Raises:
    ValueError: an unknown word, or another decoder.
  """
  options = config.parse_arg(
    arg, decoder="generation", work="work", language="", live=False, scenes="", times=1.0
  )
  config.check_choice(options, "decoder", *STEPS)
  stage: nexus.Stage = options.decoder
  if options.scenes:
    config.check_choice(options, "scenes", *SETS[stage])
  steps = round(STEPS[stage] * options.times)
  home = f"{options.work}/start"
  edits = stage == "editing"
  loss = nexus_gen.Loss(drop=DROP[stage], by_time=WEIGHTS)
  model = dataclasses.replace(start.begun(Path(home), stage), loss=loss)
  sources = [options.language or f"{options.work}/language"]
  if not edits:
    parts: tuple[nexus.Part, ...] = ("visual", "language", "generator", "autoencoder", "constants")
    model = dataclasses.replace(model, parts=parts, told="predicted")
  elif options.live:
    model = dataclasses.replace(model, parts=("visual", "language", "editor", "autoencoder"))
  else:
    sources.append(f"{options.work}/generation#ema")
  data = Data(task=TASKS[stage], image_size=sizes.SHAPES_IMAGE, buckets=(LENGTHS[stage],))
  if options.live:
    scenes = options.scenes or stage
    records = round(RECORDS[scenes] * min(1.0, options.times))
    split = SPLITS.get(scenes, "generator")
    data = dataclasses.replace(
      data, source="shapes", split=split, records=records, shapes=SCENES[scenes]
    )
  else:
    told = [(f"{options.work}/told/{name}", share) for name, share in SETS[stage].items()]
    data = dataclasses.replace(data, features=True, cache=True)
    if len(told) == 1:
      data = dataclasses.replace(data, path=told[0][0])
    else:
      mixed = tuple(Ingredient(path, weight=share) for path, share in told)
      data = dataclasses.replace(data, mixture=mixed)
  every = max(1, steps // 8)
  train = Train(
    steps=steps,
    batch=64,
    trainable=(TRAINED[stage],),
    ema_decay=0.995,
    init_from=(home, *sources),
    optimizer=Optimizer(name="muon", lr=1.5e-3, lr_end=1e-4, muon_lr=5e-3, warmup_steps=50),
    checkpoint=Checkpoint(every_steps=every, keep=1, keep_every=2 * every),
    log=Log(every=10),
  )
  out = to_config("nexus_gen", model, train, data)
  out.tokenizer = home
  return out
