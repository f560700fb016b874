"""What a run is before it has arrays: its config, and the setup that follows from it."""

import dataclasses
from typing import Any
from typing import Literal

from etils import epath
import jax
import optax

from blip3o_jax.train.checkpoint import Checkpoint
from blip3o_jax.train.distributed import Mesh
from blip3o_jax.train.metrics import Log
from blip3o_jax.train.optimizer import Optimizer
from blip3o_jax.train.state import Partition
from blip3o_jax.train.state import System
from blip3o_jax.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class Train:
  """Everything of a run but model and data. `0`, `""` and `()` mean off.

  Attributes:
    system: name, for the record of the run; the caller knows what it stands for.
    steps: updates. batch: samples of an update over all devices. accumulate: micro-batches of it.
    seed: of parameters and of all noise.
    trainable: regexes of the whole paths of trained leaves; all others are frozen.
    frozen_dtype: how frozen leaves are stored. cast_params: cast what bfloat16 layers use once a
      step, not in each layer.
    ema_decay: of an average of the trained leaves, which held-out losses and samples then use.
    init_from: directories that fill parameters, the later one wins: released weights, or run
      directories ("#ema" at the end takes the average).
    profile: (first, last) step of a trace that is written to <workdir>/profile.
  """

  system: str = ""
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
  mesh: Mesh = dataclasses.field(default_factory=Mesh)
  checkpoint: Checkpoint = dataclasses.field(default_factory=Checkpoint)
  log: Log = dataclasses.field(default_factory=Log)

  def __post_init__(self) -> None:
    for name in ("steps", "batch", "accumulate"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name} {getattr(self, name)}: expected at least 1")
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
class Setup:
  """What every part of a run needs to know and none changes."""

  cfg: Train
  system: System
  model_cfg: Any
  workdir: epath.Path
  mesh: jax.sharding.Mesh
  part: Partition
  tx: optax.GradientTransformation
  abstract: TrainState
