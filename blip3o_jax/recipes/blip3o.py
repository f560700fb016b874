"""The released stages of BLIP3-o as configs: pretraining and instruction tuning, 4B and 8B.

Both forms of a stage have the optimisation of spec 6.3 and 6.4. `reference` has it computed as
published: pixels through the frozen EVA tower in every step, pictures read as the release does, one
prompt length, gradients through the whole prompt, everything recomputed. The default computes the
same loss for less: cached features, three prompt lengths, gradients at the slots alone, and only
what is cheap recomputed unless asked.
"""

import dataclasses
from typing import Literal
from typing import get_args

from ml_collections import ConfigDict

from blip3o_jax import config
from blip3o_jax.data.pipeline import Data
from blip3o_jax.quantized import Quantize
from blip3o_jax.remat import Remat
from blip3o_jax.systems import blip3o
from blip3o_jax.systems.blip3o import sizes as released_sizes
from blip3o_jax.train.checkpoint import Checkpoint
from blip3o_jax.train.metrics import Log
from blip3o_jax.train.optimizer import Optimizer
from blip3o_jax.train.run import Train
from blip3o_jax.train.run import to_config

Size = Literal["4b", "8b"]
Stage = Literal["pretrain", "sft"]
STEPS: dict[Stage, int] = {"pretrain": 150_000, "sft": 10_000}
LR_END: dict[Stage, float] = {"pretrain": 1e-5, "sft": 0.0}
# Of the training records, kept apart for the held-out loss; instruction tuning has only 60 k.
HOLDOUT: dict[Stage, float] = {"pretrain": 0.001, "sft": 0.05}
BATCH = 512
LONGEST = 448  # the release's 512 positions less 64 slots


def get_config(size: Size, stage: Stage, arg: str) -> ConfigDict:
  """The config of a stage.

  Args:
    arg: words and settings after the config's name, separated by commas. `reference`: as published.
      `debug`: 20 steps of batch 32, each reported. `memory=large`: the backward pass
      recomputes all but what linear layers give; `memory=small`: every layer. `quantize=int8`:
      the frozen language model is stored and multiplied so, in the forward pass; with
      `quantize=int8_backward` the slots' gradient is as well (docs/performance.md has the errors).
      `data=cached` or `data=pixels`: what the tars hold. `tars=DIR`: the records. `qwen=DIR`:
      frozen weights and tokenizer, a directory in the released BLIP3-o layout; its generator is not
      read. `init=DIR`: what instruction tuning starts from, a run's working directory or released
      BLIP3-o weights. `tokenizer=DIR`: if not in qwen.

  Raises:
    ValueError: an unknown word, or a value that is not one of those above.
  """
  options = config.parse_arg(
    arg,
    reference=False,
    debug=False,
    memory="large",
    quantize="none",
    data="",
    tars="",
    qwen="",
    init="",
    tokenizer="",
  )
  config.check_choice(options, "data", "", "cached", "pixels")
  kind = options.data or ("pixels" if options.reference else "cached")
  if options.init and stage == "pretrain":
    raise ValueError("config argument init=: pretraining starts from qwen= with a new generator")
  if options.qwen and stage == "sft" and not options.init:
    raise ValueError(
      "config argument init=: instruction tuning starts from a trained generator, a run's working "
      "directory or released BLIP3-o weights; of qwen= alone it would be random"
    )
  config.check_choice(options, "memory", "large", "small")
  config.check_choice(options, "quantize", *get_args(Quantize))
  pixels = kind == "pixels"
  data = _data(stage, options, pixels)
  train = _train(stage, options, pixels)
  held_out = dataclasses.replace(data, split="test", shuffle=False)
  out = to_config("blip3o", _model(size, options, pixels), train, data, held_out)
  out.tokenizer = options.tokenizer or options.qwen or options.init
  return out


def _model(size: Size, options: ConfigDict, pixels: bool) -> blip3o.Config:
  model = released_sizes.released(size)
  remat: Remat = "full" if options.reference or options.memory == "small" else "dots"
  return dataclasses.replace(
    model,
    parts=("denoiser", "encoder") if pixels else ("denoiser",),
    prompt_gradient="full" if options.reference else "stop",
    prompt_form="training" if options.reference else "inference",
    backbone=dataclasses.replace(model.backbone, remat=remat, quantize=options.quantize),
    denoiser=dataclasses.replace(model.denoiser, remat=remat),
  )


def _data(stage: Stage, options: ConfigDict, pixels: bool) -> Data:
  reference = options.reference
  return Data(
    source="files",
    path=options.tars,
    holdout=0.0 if reference else HOLDOUT[stage],
    task="generate",
    buckets=(LONGEST,) if reference else (64, 128, 160, 192, 256, LONGEST),
    features=not pixels,
    friendly=not reference,
    seed=42,
    threads=16,
  )


def _train(stage: Stage, options: ConfigDict, pixels: bool) -> Train:
  frozen = "backbone+encoder" if pixels else "backbone"
  sources = [f"{options.qwen}#only={frozen}"] if options.qwen else []
  sources += [options.init] if options.init else []
  reference, debug = options.reference, options.debug
  return Train(
    steps=20 if debug else STEPS[stage],
    batch=32 if debug else BATCH,
    seed=42,
    trainable=("slots/.*", "denoiser/.*"),
    frozen_dtype="bfloat16",
    init_from=tuple(sources),
    optimizer=Optimizer(
      lr=1e-4,
      lr_end=LR_END[stage],
      warmup_ratio=0.003,
      b1=0.9,
      b2=0.999,
      eps=1e-8,
      weight_decay=0.0,
      clip=1.0,
    ),
    checkpoint=Checkpoint(every_steps=1000, keep=1 if reference else 3),
    log=Log(
      every=1 if debug else 10 if reference else 50,
      eval_every=0 if reference or debug else 1000,
    ),
  )
