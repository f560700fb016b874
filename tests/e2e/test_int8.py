"""`blip3o train` with the frozen language model in int8: trains, goes on bit for bit."""

import json
from pathlib import Path
from typing import Any

import checkpoints
import jax
import numpy as np
import pytest

from blip3o_jax import cli
from blip3o_jax.systems.blip3o import verbs
from blip3o_jax.train import checkpoint
from blip3o_jax.weights.safetensors import Tensors

CONFIG = str(Path(__file__).parents[2] / "configs" / "shapes_objective_smoke.py")
INT8 = "--config.model.backbone.quantize=int8"
SMALL = (
  f"--config.init_from=({str(checkpoints.TINY)!r},)",
  "--config.batch=8",
  "--config.data.records=64",
  "--config.data.cache=False",
  "--config.log.every=1",
  "--config.log.tensorboard=False",
  "--config.optimizer.schedule=constant",  # of a rate that does not know how many steps there are
  "--config.optimizer.warmup_steps=0",
)


def train(run: Path, steps: int, *more: str, status: int = 0) -> list[float]:
  """The losses of a run's steps so far."""
  args = [f"--config={CONFIG}", f"--workdir={run}", f"--config.steps={steps}", *SMALL, *more]
  assert cli.main(["train", *args]) == status
  if status:
    return []
  lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
  return [line["loss"] for line in lines if "loss" in line]


def leaves(run: Path) -> dict[str, Any]:
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  wanted = {
    path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)
    for path, leaf in checkpoint.stored(run).items()
  }
  return {p: np.asarray(v) for p, v in checkpoint.restore_params(run, wanted).items()}


@pytest.mark.slow
def test_a_run_in_int8_trains_and_goes_on_bit_for_bit(tmp_path, caplog):
  losses = train(tmp_path / "whole", 4, INT8)
  (said,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("int8: ")]
  assert said.startswith(
    "int8: 7 kernels of frozen layers are stored and multiplied in it, but the matrix units of cpu"
  )
  assert len(losses) == 4
  assert np.isfinite(losses).all()
  assert train(tmp_path / "parts", 2, INT8) == losses[:2]
  assert train(tmp_path / "parts", 4, INT8) == losses
  one, other = leaves(tmp_path / "whole"), leaves(tmp_path / "parts")
  assert set(one) == set(other)
  for path, value in one.items():
    np.testing.assert_array_equal(value, other[path], err_msg=path)
  assert not any(path.startswith("backbone/") for path in one)

  # It draws in int8 too; what it becomes has the float weights that it started from.
  model = verbs.load(tmp_path / "whole")
  assert model.cfg.backbone.quantize == "int8"
  kinds = {str(leaf.dtype) for leaf in jax.tree.leaves(model.system.params["backbone"])}
  assert kinds == {"int8", "float32"}
  out = tmp_path / "out"
  source = ["--source", str(tmp_path / "whole"), "--output", str(out)]
  assert cli.main(["convert", "export", *source]) == 0
  name = "model.layers.1.mlp.up_proj.weight"
  before, after = Tensors(checkpoints.TINY, "model"), Tensors(out, "model")
  np.testing.assert_array_equal(before.read(name), after.read(name))


@pytest.mark.parametrize(
  ("more", "message"),
  [
    (
      "--config.trainable=('slots/.*','denoiser/.*','backbone/layers/mlp/up_proj/.*')",
      "config.trainable: backbone/layers/mlp/up_proj/kernel and 1 more cannot be trained, stored",
    ),
    ("--config.model.backbone.quantize=fp8", "quantize: 'fp8' is not one of"),
  ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(more, message, tmp_path, capsys):
  train(tmp_path / "deep" / "run", 4, INT8, more, status=1)
  (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("blip3o train: ")]
  assert message in line
  assert not (tmp_path / "deep").exists()
