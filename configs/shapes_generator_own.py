"""Fine-tunes the shipped miniature's generator on captioned pictures of one's own.

    blip3o train --config=configs/shapes_generator_own.py:path=DIR --workdir=runs/own

`path` is what `blip3o check` reads: tars, parquet, ArrayRecord, a list with a folder of pictures.
Pictures become 64 x 64. Some 15 % of them are held out, and their loss is logged. model=DIR is
another directory in the released layout; steps=N; cached=true where `blip3o encode` made `path`;
caption=FIELD; prompts=A+B, captions with spaces as _, are drawn every 200 steps.

Slots and DiT are trained, everything else stays frozen, so that the model answers as before. Words
that the language model never saw reach the generator as the tokens of their letters: it learns to
tell apart the captions that it is trained on, and knows nothing of others (docs/own_pictures.md).
"""

import dataclasses

from ml_collections import ConfigDict

from blip3o_jax import config
from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.sources.reading import Reading
from blip3o_jax.miniature import shipped
from blip3o_jax.miniature import sizes
from blip3o_jax.systems import blip3o
from blip3o_jax.systems.blip3o import released
from blip3o_jax.train.checkpoint import Checkpoint
from blip3o_jax.train.metrics import Log
from blip3o_jax.train.optimizer import Optimizer
from blip3o_jax.train.run import Samples
from blip3o_jax.train.run import Train
from blip3o_jax.train.run import to_config


def get_config(arg: str = "") -> ConfigDict:
  """`arg`: path, model, steps, cached, caption and prompts, as above."""
  options = config.parse_arg(
    arg, path="", model="", steps=1000, cached=False, prompts="", caption=""
  )
  home = options.model or str(shipped.directory())
  model, settings = released.read(home, "float32")
  parts: tuple[blip3o.Part, ...] = ("denoiser",) if options.cached else ("denoiser", "encoder")
  loss = blip3o.Loss(draws=4, times=sizes.SHAPES_TIMES)
  model = dataclasses.replace(model, parts=parts, loss=loss)
  data = Data(
    path=options.path,
    reading=Reading(caption=options.caption),
    holdout=0.15,
    task="generate",
    buckets=(48, 80, 128),
    image_size=model.features.tower.image_size,
    features=options.cached,
    cache=True,
  )
  prompts = tuple(text.replace("_", " ") for text in options.prompts.split("+") if text)
  train = Train(
    steps=options.steps,
    batch=16,
    trainable=("slots/.*", "denoiser/.*"),
    ema_decay=0.98,
    init_from=(home,),
    optimizer=Optimizer(
      name="muon", lr=1e-3, lr_end=1e-4, muon_lr=3e-3, warmup_steps=min(20, options.steps)
    ),
    checkpoint=Checkpoint(every_steps=500, keep=1),
    log=Log(every=20, eval_every=100, eval_batches=1, samples_every=200 if prompts else 0),
  )
  out = to_config("blip3o", model, train, data, dataclasses.replace(data, split="test"))
  out.tokenizer = home
  samples = Samples(
    decoder=home,
    prompts=prompts,
    steps=settings.steps,
    scale=settings.scale,
    pixel_steps=settings.pixel_steps,
  )
  out.samples = config.to_config(samples)
  return out
