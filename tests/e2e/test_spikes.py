"""`blip3o train` with batches that spike: skipped, counted, resumed; too many in a row end it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest
import toy

from blip3o_jax import cli
from blip3o_jax import systems
from blip3o_jax import trees
from blip3o_jax.train import checkpoint
from blip3o_jax.train import setup
from blip3o_jax.train import starts
from blip3o_jax.train.run import Train
from blip3o_jax.train.run import parse

CONFIG = """
import toy
from blip3o_jax.train.run import Train

def get_config(arg=""):
  return toy.values(toy.Config(depth=1, noise=0.1), Train(batch=4))
"""
FIELDS = (
  "--config.batch=4",
  "--config.ema_decay=0.9",
  "--config.optimizer.schedule=constant",
  "--config.log.every=2",
  "--config.log.tensorboard=False",
  "--config.checkpoint.keep=9",
)
ON = ("--config.spikes.grad_norm=20", "--config.spikes.after=3", "--config.spikes.stop=3")


def _system(*spikes: int) -> toy.System:
  """The toy, where every row of these batches (counted from 0) is a thousand times as large."""
  run = parse(toy.values(toy.Config(depth=1), Train(batch=4)), {"toy": toy.System()})
  data = setup.open_data(setup.prepare(run, toy.System()), run.data)
  names = {data.source[i].name for step in spikes for i in data.ids_at(step)}

  class Row(toy.Row):
    def __call__(self, record: Any, rng: Any) -> Any:
      out = super().__call__(record, rng)
      big = 1000 if record.name in names else 1
      return out | {"x": out["x"] * np.float32(big), "mask": np.float32(1)}

  class Spiking(toy.System):
    def transforms(self, cfg: Any, data: Any, tokenizer: Any) -> Any:
      return {bucket: Row(bucket, cfg.dim) for bucket in data.buckets}

  return Spiking()


@pytest.fixture
def train(tmp_path, monkeypatch):
  """train(workdir, steps, *fields): the exit status; batches 5, 9, 10 and 11 of 16 spike."""
  (tmp_path / "config.py").write_text(CONFIG)
  monkeypatch.setitem(systems.SYSTEMS, "toy", _system(5, 9, 10, 11))

  def one(name: str, steps: int, *fields: str) -> int:
    args = (f"--config={tmp_path}/config.py", f"--workdir={tmp_path / name}")
    return cli.main(["train", *args, f"--config.steps={steps}", *FIELDS, *fields])

  return one


def _skipped(run: Path) -> dict[int, float]:
  lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
  return {x["step"]: x["skipped"] for x in lines if "skipped" in x}


def _stored(run: Path, item: str, step: int) -> dict[str, bytes]:
  path = checkpoint.folder(run) / str(step) / item
  tree = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(path)
  return {p: np.asarray(v).tobytes() for p, v in trees.flatten(tree).items()}


def test_spikes_are_skipped_and_three_in_a_row_end_the_run(tmp_path, train, capsys):
  """Bit for bit as without a stop between them, in the midst of the second row too."""
  for steps in (10, 11):
    assert train("parts", steps, *ON) == 0
  assert train("whole", 11, *ON, "--config.checkpoint.every_steps=9") == 0
  assert _skipped(tmp_path / "parts")[11] == _skipped(tmp_path / "whole")[11] == 3
  assert _skipped(tmp_path / "whole")[4] == 0
  assert _skipped(tmp_path / "whole")[8] == 1
  for item in ("params", "opt", "ema", "spikes"):
    assert _stored(tmp_path / "parts", item, 11) == _stored(tmp_path / "whole", item, 11), item
  # Two updates in a row were skipped: the parameters are those of step 9, before them.
  for item in ("params", "opt", "ema"):
    assert _stored(tmp_path / "whole", item, 9) == _stored(tmp_path / "whole", item, 11), item
  capsys.readouterr()
  assert train("whole", 16, *ON) == 1
  said = capsys.readouterr().err.splitlines()[-1]
  assert "3 updates in a row were skipped up to step 12" in said
  assert "Last checkpoint: step 11 in" in said
  assert checkpoint.steps(tmp_path / "whole") == [9, 11]
  # Somebody who has looked at them may go on.
  assert train("whole", 16, *ON, "--config.spikes.stop=4") == 0
  assert _skipped(tmp_path / "whole")[16] == 4


def test_a_run_that_skipped_nothing_may_begin_to(tmp_path, train):
  assert train("run", 4) == 0
  assert not _skipped(tmp_path / "run")
  assert train("run", 10, *ON) == 0  # nothing is remembered, so the first three are let through
  assert _skipped(tmp_path / "run") == {6: 0, 8: 0, 10: 1}
  assert train("run", 12) == 0  # and cease to
  assert _skipped(tmp_path / "run") == {6: 0, 8: 0, 10: 1}


def test_what_changed_since_the_last_start_is_said(tmp_path, train, caplog, monkeypatch):
  assert train("run", 2) == 0
  caplog.clear()
  more = ("--config.samples.scale=2.0", "--config.eval_data.seed=5", "--config.optimizer.lr=3e-4")
  assert train("run", 3, *more) == 0
  for line in (
    "samples.scale 0.0 -> 2.0",
    "eval_data.seed 0 -> 5",
    "optimizer.lr 0.0001 -> 0.0003",
  ):
    assert f"config changed since the run began: {line}" in caplog.text
  assert "changed since step" not in caplog.text  # the same code, packages, devices and mesh
  # A package that was not there before.
  monkeypatch.setattr(starts, "PACKAGES", (*starts.PACKAGES, "pytest"))
  monkeypatch.setattr(starts, "packages", starts.packages.__wrapped__)
  assert train("run", 4) == 0
  line = f"changed since step 3 was saved: packages.pytest absent -> {pytest.__version__}"
  assert line in caplog.text
  made = [json.loads(x) for x in (tmp_path / "run" / starts.NAME).read_text().splitlines()]
  assert [x["step"] for x in made] == [0, 2, 3]
  assert [x["config"]["samples"]["scale"] for x in made] == [0.0, 2.0, 0.0]
