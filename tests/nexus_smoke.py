"""The recorded miniature of Nexus-Gen on edits of the embedded set: a config for each stage.

    blip3o train --config=tests/nexus_smoke.py:stage=editing,home=DIR --workdir=DIR

`home` holds the miniature with its null condition (`nexus_files.copy`).
"""

import dataclasses
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from blip3o_jax import config
from blip3o_jax.data.options import Data
from blip3o_jax.data.shapes.source import Mixture
from blip3o_jax.recipes import nexus_gen
from blip3o_jax.systems.nexus_gen import prompts
from blip3o_jax.systems.nexus_gen import released

BATCH, RECORDS = 8, 16
LENGTH = {"language": 336, "editing": 272}


def get_config(arg: str = "") -> ConfigDict:
  """`stage` of `model.Stage`, `home`, and `data=cached` for a decoder on cached features."""
  options = config.parse_arg(arg, stage="language", home="", data="pixels")
  stage, live = options.stage, options.data == "pixels"
  words = "" if stage == "language" else f",data={options.data}"
  out = nexus_gen.get_config(stage, f"model={options.home}{words}")
  cfg, _ = released.read(Path(options.home), "float32")
  parts: tuple[Any, ...] = tuple(out.model.parts)
  form = prompts.Form(max_pixels=252**2)
  cfg = dataclasses.replace(cfg, stage=stage, parts=parts, form=form, reference_grid=18)
  out.model = config.to_config(cfg)
  data = Data(
    source="shapes",
    split="generator",
    records=RECORDS,
    shapes=Mixture(edits=("recolour", "remove")),
    task="messages" if stage == "language" else out.data.task,
    buckets=(LENGTH.get(stage, 64),),
    image_size=32 if stage != "language" else Data.image_size,
    pictures=2 if stage == "language" else 1,
    features=not live,
  )
  out.data = out.eval_data = config.to_config(data)
  out.update(dict(steps=2, batch=BATCH, frozen_dtype="float32"))
  out.optimizer.update(dict(warmup_steps=0, warmup_ratio=0.0, lr=1e-3))
  out.log.update(dict(every=1, eval_every=0, tensorboard=False))
  return out
