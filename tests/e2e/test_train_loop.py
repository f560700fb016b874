"""Whole runs of the toy system: resume, bad losses, SIGTERM, and what a run leaves on disk."""

import json
import os
import signal
import threading
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
from blip3o_jax.train import setup
from blip3o_jax.train.run import Train
from blip3o_jax.train.run import parse

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


def _values(weights: str, buckets: tuple[int, ...] = (3,), **fields: Any) -> Any:
  train = config.build(Train, {**FIELDS, "init_from": (weights,), **fields})
  return toy.values(CFG, train, buckets)


def _run(workdir: Any, weights: str, system: Any = None, **fields: Any) -> loop.Finished:
  return loop.start(_values(weights, **fields), {"toy": system or toy.System()}, workdir)


def _acting(weights: str, step: int, act: Any, **fields: Any) -> toy.System:
  """A system that calls `act(row)` for the first record of a step, whichever thread loads it."""
  parsed = parse(_values(weights, **fields), {"toy": toy.System()})
  data = setup.open_data(setup.prepare(parsed, toy.System()), parsed.data)
  name = data.source[data.ids_at(step)[0]].name

  class Row(toy.Row):
    def __call__(self, record: Any, rng: Any) -> Any:
      out = super().__call__(record, rng)
      if record.name == name:
        act(out)
      return out

  class Acting(toy.System):
    def transforms(self, cfg: Any, data: Any, tokenizer: Any) -> Any:
      return {bucket: Row(bucket, cfg.dim) for bucket in data.buckets}

  return Acting()


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
  def spoil(row: Any) -> None:
    row["x"][0, 0], row["mask"] = np.inf, np.float32(1)

  fields = dict(steps=6, checkpoint=dict(every_steps=1), log=dict(every=6))
  match = r"finite at step 3 .*Last checkpoint: step 3 in .*run/checkpoints"
  with pytest.raises(loop.NonFiniteError, match=match):
    _run(tmp_path / "run", weights, _acting(weights, 3, spoil, **fields), **fields)
  assert checkpoint.steps(tmp_path / "run") == [1, 2, 3]


def test_sigterm_saves_once_and_leaves(tmp_path, weights):
  fields = dict(steps=1000, log=dict(every=50))
  sent: list[int] = []

  def terminate(row: Any) -> None:
    if not sent:
      sent.append(1)
      os.kill(os.getpid(), signal.SIGTERM)

  before = signal.getsignal(signal.SIGTERM)
  # The record of step 7 is loaded after the batches that are made before the first step.
  found = _run(tmp_path / "run", weights, _acting(weights, 7, terminate, **fields), **fields)
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
      buckets=(4, 8),
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
  def fail(row: Any) -> None:
    raise ValueError("shard 3 is damaged")

  with pytest.raises(ValueError, match="shard 3 is damaged"):
    _run(tmp_path / "run", weights, _acting(weights, 2, fail))
  assert not [t for t in threading.enumerate() if t.name.startswith(("loader", "prefetch"))]


def test_batch_must_fit_the_mesh(tmp_path, weights):
  with pytest.raises(ValueError, match=r"config\.mesh: replica 2"):
    _run(tmp_path / "run", weights, mesh=dict(replica=2, fsdp=1))
  assert jax.device_count() == 1
