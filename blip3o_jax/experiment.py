"""A run's config file to a run: system, data and loop brought together.

A config file's ConfigDict holds `system` (a key of SYSTEMS), `model` (that system's Config), `data`
and `eval_data` (data.pipeline.Data), `tokenizer` (a directory), `samples`, and beside them all
fields of train.stage.Train.
"""

from collections.abc import Mapping
import dataclasses
from pathlib import Path
from typing import Any

from absl import logging
import jax
from ml_collections import ConfigDict
import numpy as np

from blip3o_jax import config
from blip3o_jax import sharding
from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.pipeline import Pipeline
from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.models import qwen_vision
from blip3o_jax.systems import blip3o
from blip3o_jax.systems import contrast
from blip3o_jax.systems import pixels
from blip3o_jax.systems.blip3o import released
from blip3o_jax.systems.blip3o import tasks
from blip3o_jax.systems.blip3o import verbs
from blip3o_jax.systems.parts import loading
from blip3o_jax.train import loop
from blip3o_jax.train.setup import Train

SYSTEMS: dict[str, Any] = {"blip3o": blip3o, "contrast": contrast, "pixels": pixels}


@dataclasses.dataclass(frozen=True)
class Samples:
  """Pictures drawn while training, every log.samples_every steps, from fixed prompts and seeds.

  Attributes:
    decoder: a directory in the released layout whose pixel decoder draws; "" is off.
    prompts: captions. steps, scale, pixel_steps: of the samplers; 0 takes the settings'.
  """

  decoder: str = ""
  prompts: tuple[str, ...] = ()
  steps: int = 0
  scale: float = 0.0
  pixel_steps: int = 0


@dataclasses.dataclass(frozen=True)
class Experiment:
  """Everything of a config file, checked."""

  model: Any
  train: Train
  data: Data
  eval_data: Data
  tokenizer: str
  samples: Samples


def to_config(
  system: str, model: Any, train: Train, data: Data, eval_data: Data | None = None
) -> ConfigDict:
  """The ConfigDict that a config file returns, with every field present, so that each is a flag."""
  out = config.to_config(dataclasses.replace(train, system=system))
  out.model = config.to_config(model)
  out.data = config.to_config(data)
  out.eval_data = config.to_config(eval_data or data)
  out.tokenizer = ""
  out.samples = config.to_config(Samples())
  return out


def parse(values: ConfigDict | Mapping[str, Any]) -> Experiment:
  """Checks a config; nothing has been read or compiled yet.

  Raises:
    ValueError: an unknown system or field, a wrong type, fields that contradict each other.
  """
  rest = dict(values)
  name = rest.get("system", "")
  if name not in SYSTEMS:
    raise ValueError(f"config.system: {name!r} is not one of {', '.join(SYSTEMS)}")
  model = config.build(SYSTEMS[name].Config, rest.pop("model", {}), "config.model")
  data = rest.pop("data", {})
  held_out = rest.pop("eval_data", data)
  tokenizer = rest.pop("tokenizer", "")
  samples = config.build(Samples, rest.pop("samples", {}), "config.samples")
  train = config.build(Train, rest)
  batches = [
    dataclasses.replace(config.build(Data, d, f"config.{n}"), batch=train.batch)
    for n, d in (("data", data), ("eval_data", held_out))
  ]
  return Experiment(model, train, batches[0], batches[1], tokenizer, samples)


def make_data(experiment: Experiment, cfg: Data) -> Pipeline:
  """The pipeline of this process for `cfg`.

  Raises:
    FileNotFoundError, ValueError: data or tokenizer that is absent or does not fit.
  """
  if cfg.source == "tars" and not cfg.path:
    raise ValueError("config.data.path: expected a folder of tars (docs/data.md)")
  source = tasks.open_source(cfg)
  tokenizer: Any = None
  if cfg.task != "pixels":
    if not experiment.tokenizer:
      raise ValueError(f"config.tokenizer: task {cfg.task!r} needs a directory with tokenizer.json")
    tokenizer = Tokenizer.load(experiment.tokenizer)
  layout: dict[str, np.ndarray] = {}
  if cfg.task == "understand" and cfg.image_size:
    vision = experiment.model.visual
    side = cfg.image_size // vision.patch_size
    places = qwen_vision.layout([(side, side)], side * side, vision)
    layout = {f"patch_{f.name}": getattr(places, f.name)[0] for f in dataclasses.fields(places)}
  rows = range(jax.process_index(), cfg.batch, jax.process_count())
  return tasks.build(source, cfg, tokenizer, rows=rows, layout=layout)


def check_mesh(train: Train, devices: int) -> None:
  """Refuses a mesh on which gradients are known to be wrong.

  XLA of JAX 0.10 and 0.12 gives wrong gradients of convolutions on a mesh that uses all three axes;
  the transformers are right there (tests/mesh/test_networks_mesh.py).

  Raises:
    ValueError: such a mesh for the pixel decoder.
  """
  mesh = train.mesh
  fsdp = sharding.fsdp_ways(mesh.replica, mesh.fsdp, mesh.tensor, devices)
  if train.system == "pixels" and min(mesh.replica, fsdp, mesh.tensor) > 1:
    raise ValueError(
      f"config.mesh: replica {mesh.replica} x fsdp {fsdp} x tensor {mesh.tensor} gives wrong "
      f"gradients of convolutions in this JAX; set one of the three to 1 for the pixel decoder"
    )


def run(values: ConfigDict | Mapping[str, Any], workdir: str | Path) -> loop.Finished:
  """Runs a config in `workdir`, or goes on with it; see `train.loop.run`."""
  experiment = parse(values)
  check_mesh(experiment.train, jax.device_count())
  train = experiment.train
  system = SYSTEMS[train.system]
  data = make_data(experiment, experiment.data)
  held_out = make_data(experiment, experiment.eval_data) if train.log.eval_every else None
  logging.info("data: %d records, %d steps an epoch", len(data.source), data.steps_per_epoch)
  if hasattr(system, "check"):
    system.check(experiment.model, train.trainable)
  sample = make_sampler(experiment) if train.log.samples_every else None
  return loop.run(train, system, experiment.model, data, held_out, workdir, sample=sample)


def make_sampler(experiment: Experiment) -> loop.Sample:
  """(module, step) -> uint8[n, H, W, 3]: the fixed prompts, drawn by the module in training.

  Raises:
    ValueError: log.samples_every without samples.decoder and samples.prompts.
  """
  samples = experiment.samples
  if not samples.decoder or not samples.prompts:
    raise ValueError(
      "config.log.samples_every needs config.samples.decoder and config.samples.prompts"
    )
  cfg = experiment.model
  decoder = verbs.load_decoder(Path(samples.decoder), cfg.grid, cfg.backbone.dtype)
  settings = released.read_settings(Path(samples.decoder))
  tokenizer = Tokenizer.load(experiment.tokenizer)

  def draw(module: Any, step: int) -> np.ndarray:
    del step  # the same noise each time shows what training changes
    model = verbs.Model(cfg, settings, loading.Network.of(module), decoder, tokenizer)
    return model.generate(
      samples.prompts,
      range(len(samples.prompts)),
      steps=samples.steps,
      scale=samples.scale,
      pixel_steps=samples.pixel_steps,
    )

  return draw
