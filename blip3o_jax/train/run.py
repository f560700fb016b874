"""The config of a run, checked: which system, trained how, on what. Nothing here has arrays.

A config file's ConfigDict holds `system` (its name), `model` (that system's Config), `data` and
`eval_data` (data.pipeline.Data), `tokenizer` (a directory), `samples`, and beside them all fields
of `Train`.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
import re
from typing import Any
from typing import Literal

from ml_collections import ConfigDict

from blip3o_jax import config
from blip3o_jax.data.pipeline import Data
from blip3o_jax.train.checkpoint import Checkpoint
from blip3o_jax.train.distributed import Mesh
from blip3o_jax.train.metrics import Log
from blip3o_jax.train.optimizer import Optimizer
from blip3o_jax.train.processes import Distributed
from blip3o_jax.train.spikes import Spikes
from blip3o_jax.train.watchdog import Watchdog


@dataclasses.dataclass(frozen=True)
class Train:
  """Everything of a run but model and data. `0`, `""` and `()` mean off.

  Attributes:
    steps: updates. batch: samples of an update over all devices. accumulate: micro-batches of it.
    seed: of parameters and of all noise, below 2**64.
    trainable: regexes of the whole paths of trained leaves; all others are frozen.
    frozen_dtype: how frozen leaves are stored. cast_params: cast what bfloat16 layers use once a
      step, not in each layer.
    ema_decay: of an average of the trained leaves, which held-out losses and samples then use.
    init_from: directories that fill parameters, the later one wins: released weights, or run
      directories ("#ema" at the end takes the average).
    profile: (first, last) step of a trace that is written to <workdir>/profile.
  """

  steps: int = 1000
  batch: int = 64
  accumulate: int = 1
  seed: int = 0
  trainable: tuple[str, ...] = (".*",)
  frozen_dtype: Literal["float32", "bfloat16"] = "float32"
  cast_params: bool = True
  ema_decay: float = 0.0
  init_from: tuple[str, ...] = ()
  profile: tuple[int, ...] = ()
  optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
  spikes: Spikes = dataclasses.field(default_factory=Spikes)
  mesh: Mesh = dataclasses.field(default_factory=Mesh)
  distributed: Distributed = dataclasses.field(default_factory=Distributed)
  checkpoint: Checkpoint = dataclasses.field(default_factory=Checkpoint)
  log: Log = dataclasses.field(default_factory=Log)
  watchdog: Watchdog = dataclasses.field(default_factory=Watchdog)

  def __post_init__(self) -> None:
    for name in ("steps", "batch", "accumulate"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name} {getattr(self, name)}: expected at least 1")
    if not 0 <= self.seed < 2**64:
      raise ValueError(f"seed {self.seed}: expected 0 or more, below 2**64")
    ways = self.mesh.replica * max(self.mesh.fsdp, 1)
    if self.batch % (self.accumulate * ways):
      raise ValueError(
        f"batch {self.batch} is not divisible by accumulate x mesh.replica x mesh.fsdp = "
        f"{self.accumulate} x {self.mesh.replica} x {max(self.mesh.fsdp, 1)}"
      )
    if self.optimizer.warmup(self.steps) > self.steps:
      raise ValueError(
        f"optimizer.warmup_steps {self.optimizer.warmup_steps} exceeds steps {self.steps}"
      )
    if not 0 <= self.ema_decay < 1:
      raise ValueError(f"ema_decay {self.ema_decay}: expected 0 (off) to below 1")
    if not self.trainable:
      raise ValueError("trainable: no pattern, so nothing would be trained")
    if self.profile and (len(self.profile) != 2 or not 0 <= self.profile[0] < self.profile[1]):
      raise ValueError(f"profile {self.profile}: expected (first, last) step with first < last")


@dataclasses.dataclass(frozen=True)
class Samples:
  """Pictures drawn while training, every log.samples_every steps, from fixed prompts and seeds.

  Attributes:
    prompts: captions. decoder: a directory in the released layout whose pixel decoder draws, for a
      system that trains none. steps, scale, pixel_steps: of the samplers; 0 takes the settings'.

  Raises:
    ValueError: a number that no sampler takes, a prompt that is empty.
  """

  decoder: str = ""
  prompts: tuple[str, ...] = ()
  steps: int = 0
  scale: float = 0.0
  pixel_steps: int = 0

  def __post_init__(self) -> None:
    if min(self.steps, self.pixel_steps) < 0 or not 0 <= self.scale < math.inf:
      raise ValueError(
        f"samples: steps {self.steps}, scale {self.scale}, pixel_steps {self.pixel_steps}: "
        "expected 0 or more, and finite"
      )
    if not all(prompt.strip() for prompt in self.prompts):
      raise ValueError(f"samples.prompts {self.prompts}: one of them is empty")


@dataclasses.dataclass(frozen=True)
class Run:
  """Everything of a config file.

  Attributes:
    system: its name. model: its Config. data, eval_data: of training, and held out; both have the
      batch of `train`. tokenizer: a directory, or "".

  Raises:
    ValueError: pictures are to be drawn, and nothing says of what.
  """

  system: str
  model: Any
  train: Train
  data: Data
  eval_data: Data
  tokenizer: str = ""
  samples: Samples = dataclasses.field(default_factory=Samples)

  def __post_init__(self) -> None:
    if self.train.log.samples_every and not self.samples.prompts:
      raise ValueError("config.log.samples_every needs config.samples.prompts")


def to_config(
  system: str, model: Any, train: Train, data: Data, eval_data: Data | None = None
) -> ConfigDict:
  """The ConfigDict that a config file returns, with every field present, so that each is a flag."""
  out = ConfigDict({"system": system})
  out.update(config.to_config(train))
  out.model = config.to_config(model)
  out.data = config.to_config(data)
  out.eval_data = config.to_config(eval_data or data)
  out.tokenizer = ""
  out.samples = config.to_config(Samples())
  return out


def parse(values: ConfigDict | Mapping[str, Any], systems: Mapping[str, Any]) -> Run:
  """Checks a config; nothing has been read or compiled yet.

  Args:
    systems: {name: module with a `Config`}, the systems that there are.

  Raises:
    ValueError: an unknown system or field, a wrong type, fields that contradict each other.
  """
  rest = dict(values)
  name = rest.pop("system", "")
  if name not in systems:
    raise ValueError(f"config.system: {name!r} is not one of {', '.join(systems)}")
  model = config.build(systems[name].Config, rest.pop("model", {}), "config.model")
  data = rest.pop("data", {})
  held_out = rest.pop("eval_data", data)
  tokenizer = rest.pop("tokenizer", "")
  samples = config.build(Samples, rest.pop("samples", {}), "config.samples")
  train = config.build(Train, rest)
  first, second = (
    _data(d, f"config.{n}", train.batch) for n, d in (("data", data), ("eval_data", held_out))
  )
  return Run(name, model, train, first, second, tokenizer, samples)


def _data(values: Mapping[str, Any], path: str, batch: int) -> Data:
  """A config of data, with the batch of the run; raises ValueError where it has one of its own."""
  out = config.build(Data, values, path)
  if out.batch not in (Data.batch, batch):
    raise ValueError(f"{path}.batch: {out.batch} is not read; config.batch is the run's, {batch}")
  return dataclasses.replace(out, batch=batch)


def shorten(values: ConfigDict, written: ConfigDict, fixed: Sequence[str]) -> str:
  """Shortens the warm-up of a run that was made shorter than its config file says, by the ratio.

  Args:
    values: the config, which is changed. written: as the file gives it. fixed: the overrides, as
      "--config.field=value"; a warm-up that one of them gives stays.

  Returns:
    what was changed, in words, or "".
  """
  name = "optimizer.warmup_steps"
  if any(re.match(rf"--?config\.{re.escape(name)}(=|$)", word) for word in fixed):
    return ""
  steps, before = values.get("steps"), written.get("steps")
  warm = values.get("optimizer", {}).get("warmup_steps")
  if not all(type(x) is int and x > 0 for x in (steps, before, warm)) or steps >= before:
    return ""
  short = math.ceil(warm * steps / before)
  values.optimizer.warmup_steps = short
  return f"config.{name} {warm} -> {short}, as config.steps is {steps} and not {before}"
