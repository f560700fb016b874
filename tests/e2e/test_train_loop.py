"""Whole runs of the toy system: resume, bad losses, SIGTERM, and what a run leaves on disk."""

import json
import os
import signal
from typing import Any

from absl import logging
import jax
import numpy as np
import pytest
import toy

from blip3o_jax import config
from blip3o_jax import trees
from blip3o_jax.train import checkpoint
from blip3o_jax.train import loop
from blip3o_jax.train.setup import Train

CFG = toy.Config(depth=1, noise=0.1)
FIELDS: dict[str, Any] = dict(
  steps=4,
  batch=8,
  accumulate=2,
  ema_decay=0.9,
  trainable=toy.TRAINED,
  optimizer=dict(lr=1e-2, schedule="constant"),
  log=dict(every=2, eval_every=2, eval_batches=2, samples_every=2),
)


def _run(workdir: Any, weights: str, data: Any = None, **fields: Any) -> loop.Finished:
  cfg = config.build(Train, {**FIELDS, "init_from": (weights,), **fields})

  def sample(module: Any, step: int) -> np.ndarray:
    return np.full((3, 4, 4, 3), step, np.uint8)

  held_out = toy.Data(8, seed=1)
  return loop.run(cfg, toy.System(), CFG, data or toy.Data(8), held_out, workdir, sample=sample)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: Any) -> str:
  return toy.released(tmp_path_factory.mktemp("weights"), CFG, "encoder")


def _stored(workdir: Any, item: str, step: int) -> dict[str, bytes]:
  import orbax.checkpoint as ocp

  path = checkpoint.folder(workdir) / str(step) / item
  tree = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(path)
  return {p: np.asarray(v).tobytes() for p, v in trees.flatten(tree).items()}


def _lines(workdir: Any) -> list[dict[str, Any]]:
  return [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_two_steps_then_four_equal_four(tmp_path, weights):
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  a = _run(whole, weights)
  first = _run(parts, weights, steps=2)
  assert (first.step, first.interrupted, checkpoint.steps(parts)) == (2, False, [2])
  b = _run(parts, weights)
  assert (a.step, b.step) == (4, 4)
  for item in ("params", "opt", "ema"):
    assert _stored(whole, item, 4) == _stored(parts, item, 4), item
  x, y = _lines(whole), _lines(parts)
  assert [line["step"] for line in x] == [line["step"] for line in y] == [2, 2, 4, 4]
  for one, two in zip(x, y, strict=True):
    assert one.get("loss") == two.get("loss")
    assert one.get("eval/loss") == two.get("eval/loss")
  assert {"loss", "grad_norm", "param_norm", "lr", "mse", "loss_by_time"} <= set(x[0])
  assert {"images_per_second", "model_tflops_per_second_per_device"} <= set(x[0])
  assert len(x[0]["loss_by_time"]) == toy.BINS
  assert (parts / "samples/step_00000004.png").exists()
  resolved = json.loads((parts / "config.json").read_text())
  assert resolved["train"]["optimizer"]["lr"] == 1e-2
  assert resolved["model"]["noise"] == 0.1
  assert checkpoint.read_record(parts)["sources"][0]["path"] == weights
  again = _run(parts, weights)  # nothing left to do
  assert again.step == 4


def test_non_finite_loss_stops_and_saves_nothing(tmp_path, weights):
  class Bad(toy.Data):
    def batch_at(self, step: int) -> Any:
      batch = super().batch_at(step)
      if step == 3:
        batch["x"][0, 0, 0] = np.inf
      return batch

  every = dict(every_steps=1)
  match = r"finite at step 3 .*Last good checkpoint: step 3 in .*run/checkpoints"
  with pytest.raises(loop.NonFiniteError, match=match):
    _run(tmp_path / "run", weights, Bad(8), steps=6, checkpoint=every, log=dict(every=6))
  assert checkpoint.steps(tmp_path / "run") == [1, 2, 3]


def test_sigterm_saves_once_and_leaves(tmp_path, weights):
  class Terminating(toy.Data):
    def batch_at(self, step: int) -> Any:
      if step == 8:  # well after the batches that are made before the first step
        os.kill(os.getpid(), signal.SIGTERM)
      return super().batch_at(step)

  before = signal.getsignal(signal.SIGTERM)
  found = _run(tmp_path / "run", weights, Terminating(8), steps=1000, log=dict(every=50))
  assert found.interrupted
  assert found.step < 1000
  assert checkpoint.steps(tmp_path / "run") == [found.step]
  assert signal.getsignal(signal.SIGTERM) is before


def test_shapes_compile_once_each_and_time_policy(tmp_path, weights, caplog):
  logging.set_verbosity(logging.INFO)
  try:
    found = _run(
      tmp_path / "run",
      weights,
      toy.Data(8, buckets=True),
      steps=6,
      accumulate=1,
      checkpoint=dict(every_steps=0, every_minutes=1e-9),
      log=dict(every=2),
      profile=(4, 5),
    )
  finally:
    logging.set_verbosity(logging.WARNING)
  compiled = [r.getMessage() for r in caplog.records if "compiled the step" in r.getMessage()]
  assert len(compiled) == 2
  assert found.step == 6
  assert checkpoint.steps(tmp_path / "run") == [2, 4, 6]
  assert not any("orbax" in r.pathname for r in caplog.records if r.levelname == "INFO")
  assert list((tmp_path / "run/profile").rglob("*.pb"))


def test_errors_of_the_data_reach_the_caller(tmp_path, weights):
  class Broken(toy.Data):
    def batch_at(self, step: int) -> Any:
      raise ValueError("shard 3 is damaged")

  with pytest.raises(ValueError, match="shard 3 is damaged"):
    _run(tmp_path / "run", weights, Broken(8))


def test_batch_must_fit_the_mesh(tmp_path, weights):
  with pytest.raises(ValueError, match=r"config\.mesh: replica 2"):
    _run(tmp_path / "run", weights, mesh=dict(replica=2, fsdp=1))
  assert jax.device_count() == 1
