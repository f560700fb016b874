"""Every design of the paper (objective x target space) trains, from a directory of weights."""

import json
from pathlib import Path
import runpy
from typing import Any

import pytest

from blip3o_jax.systems import SYSTEMS
from blip3o_jax.train import loop
from blip3o_jax.train import run

CONFIG = Path(__file__).parents[2] / "configs" / "shapes_objective_smoke.py"


def smoke(arg: str) -> Any:
  return runpy.run_path(str(CONFIG))["get_config"](arg)


@pytest.mark.parametrize(
  ("objective", "target"), [("flow", "features"), ("mse", "features"), ("flow", "latents")]
)
def test_the_loss_falls(objective, target, tmp_path):
  values = smoke(f"objective={objective},target={target}")
  values.steps, values.log.every, values.log.tensorboard = 20, 5, False
  values.optimizer.schedule = "constant"
  values.data.records = values.eval_data.records = 64
  found = loop.start(values, SYSTEMS, tmp_path / "run")
  lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  losses = [json.loads(line)["loss"] for line in lines]
  assert found.step == 20
  assert losses[-1] < 0.6 * losses[0], losses
  record = json.loads((tmp_path / "run" / "config.json").read_text())
  assert (record["model"]["objective"], record["model"]["target"]) == (objective, target)


def test_regression_of_latents_is_no_design():
  with pytest.raises(ValueError, match=r"'mse' with target 'latents' has no diffusion part"):
    smoke("objective=mse,target=latents")


def test_unknown_values_are_named():
  with pytest.raises(ValueError, match=r"config\.model\.objective: 'gan' is not one of"):
    run.parse(smoke("objective=gan"), SYSTEMS)
  with pytest.raises(ValueError, match=r"config\.model\.target: 'tokens' is not one of"):
    run.parse(smoke("target=tokens"), SYSTEMS)
