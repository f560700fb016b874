"""The stages of Nexus-Gen as configs: the language model, the generation and the editing decoder.

Both forms of a stage have the optimisation of Nexus-Gen spec 9.3 (V2). `reference` has it computed
as published: pictures read as the release does, rows of one length, one time for all of a batch,
everything recomputed. The default computes the same losses for less: rows of several lengths, a
time for each picture, and only what is cheap recomputed unless asked.

Where the release's script leaves a value to its framework, it is that framework's: AdamW's second
beta .95 and weight decay .1 of the first stage, no clipping in the others. Steps are those of the
published corpus (26.3 M conversations, twice) and of the decoders' 1000 times 64,000 pictures.
"""

import dataclasses
from typing import Any
from typing import Literal
from typing import get_args

from ml_collections import ConfigDict

from blip3o_jax import config
from blip3o_jax.data.options import Data
from blip3o_jax.data.sources.reading import Reading
from blip3o_jax.remat import Remat
from blip3o_jax.systems.nexus_gen import model
from blip3o_jax.systems.nexus_gen import prompts
from blip3o_jax.systems.nexus_gen import sizes
from blip3o_jax.train.checkpoint import Checkpoint
from blip3o_jax.train.distributed import Mesh
from blip3o_jax.train.metrics import Log
from blip3o_jax.train.optimizer import Optimizer
from blip3o_jax.train.run import Train
from blip3o_jax.train.run import to_config

BATCH = 128
STEPS: dict[model.Stage, int] = {
  "language": 410_938,
  "generation": 500_000,
  "editing": 500_000,
}
TASKS: dict[model.Stage, str] = {
  "language": "messages",
  "generation": "generate",
  "editing": "edit",
}
TRAINED: dict[model.Stage, tuple[str, ...]] = {
  "language": ("backbone/.*", "vision_head/.*", "slots/.*"),
  "generation": ("generator/.*",),
  "editing": ("editor/.*",),
}
HOLDOUT = 0.001
LONGEST = 4096
LENGTHS = (256, 512, 1024, 2048, LONGEST)
EDIT = 640  # of the row that asks for an edit: 335 places, 81 slots, template and instruction


def get_config(stage: model.Stage, arg: str) -> ConfigDict:
  """The config of a stage.

  Args:
    arg: words and settings after the config's name, separated by commas. `reference`: as published.
      `debug`: 20 steps of batch 32, each reported. `memory=large`: the backward pass recomputes all
      but what linear layers give; `memory=small`: every layer. `records=DIR`: the data;
      `images=DIR`: the folder of the pictures that its lists name. `language=zh`: Chinese templates
      around captions and instructions. `model=DIR`: weights and tokenizer, a Nexus-Gen in the
      released layout or converted, a run, or for the first stage a plain Qwen2.5-VL. `flux=DIR`: a
      FLUX.1 transformer that a decoder starts from instead. `tokenizer=DIR`: if not in model.
      Of the decoders, `data=cached` (default) or `data=pixels`: whether `records` is what
      `blip3o encode` made, or what tells the decoder is computed in every step.

  Raises:
    ValueError: an unknown word, or a value that is not one of those above.
  """
  options = config.parse_arg(
    arg,
    reference=False,
    debug=False,
    memory="large",
    data="",
    records="",
    images="",
    language="en",
    model="",
    flux="",
    tokenizer="",
  )
  config.check_choice(options, "memory", "large", "small")
  config.check_choice(options, "language", *get_args(prompts.Language))
  config.check_choice(options, "data", "", "cached", "pixels")
  if stage == "language":
    for name in ("data", "flux"):
      if options[name]:
        raise ValueError(f"config argument {name}=: of the decoders, which this stage has none of")
  data = _data(stage, options)
  held_out = dataclasses.replace(data, split="test", shuffle=False)
  out = to_config("nexus_gen", _model(stage, options), _train(stage, options), data, held_out)
  out.tokenizer = options.tokenizer or options.model
  return out


def _cached(stage: model.Stage, options: ConfigDict) -> bool:
  return stage != "language" and options.data != "pixels"


def _model(stage: model.Stage, options: ConfigDict) -> model.Config:
  whole = sizes.released()
  remat: Remat = "full" if options.reference or options.memory == "small" else "dots"
  told: tuple[model.Part, ...] = ("visual", "language") if stage != "generation" else ("visual",)
  paints: tuple[model.Part, ...] = (model.TRAINS[stage], "autoencoder", "constants")
  live = (*told, *paints) if stage != "language" else told
  times: Literal["batch", "sample"] = "batch" if options.reference else "sample"
  return dataclasses.replace(
    whole,
    stage=stage,
    parts=paints if _cached(stage, options) else live,
    form=prompts.Form(language=options.language),
    loss=dataclasses.replace(whole.loss, times=times),
    backbone=dataclasses.replace(whole.backbone, remat=remat),
    flux=dataclasses.replace(whole.flux, remat=remat),
  )


def _data(stage: model.Stage, options: ConfigDict) -> Data:
  reference = options.reference
  lengths = (LONGEST,) if reference else LENGTHS
  decoder: dict[str, Any] = dict(buckets=(EDIT,), image_size=model.PIXELS)
  talks: dict[str, Any] = dict(buckets=lengths, pictures=4 if reference else 2)
  return Data(
    source="files",
    path=options.records,
    reading=Reading(images=options.images, whole=stage == "language"),
    holdout=0.0 if reference else HOLDOUT,
    task=TASKS[stage],
    features=_cached(stage, options),
    friendly=not reference,
    seed=42,
    threads=16,
    **(talks if stage == "language" else decoder),
  )


def _train(stage: model.Stage, options: ConfigDict) -> Train:
  reference, debug = options.reference, options.debug
  return Train(
    steps=20 if debug else STEPS[stage],
    batch=32 if debug else BATCH,
    seed=42,
    trainable=TRAINED[stage],
    frozen_dtype="bfloat16",
    init_from=tuple(filter(None, (options.model, options.flux))),
    optimizer=_optimizer(stage, debug),
    mesh=Mesh(),
    checkpoint=Checkpoint(every_steps=1000, keep=1 if reference else 3),
    log=Log(
      every=1 if debug else 10 if reference else 50,
      eval_every=0 if reference or debug else 1000,
    ),
  )


def _optimizer(stage: model.Stage, debug: bool) -> Optimizer:
  if stage == "language":
    return Optimizer(lr=1e-5, warmup_ratio=0.05, b2=0.95, weight_decay=0.1, clip=1.0)
  warm = 5 if debug else 100
  return Optimizer(
    lr=1e-5, schedule="constant", warmup_steps=warm, b2=0.999, weight_decay=0.01, clip=0.0
  )
