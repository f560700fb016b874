"""Trains the tiny released-layout model in a process of its own; prints losses as one JSON line.

Run by test_blip3o_mesh.py with as many CPU devices as the process was started with.
"""

import json
import pathlib
import runpy
import sys
from typing import Any

import jax
import numpy as np

from blip3o_jax.data.shapes import source
from blip3o_jax.plan import estimate
from blip3o_jax.plan import report
from blip3o_jax.plan import topology
from blip3o_jax.systems import SYSTEMS
from blip3o_jax.train import loop
from blip3o_jax.train.run import parse
from blip3o_jax.train.setup import prepare

RECORDS = 64
CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "shapes_objective_smoke.py"


def cached(folder: pathlib.Path) -> str:
  """Writes random features of the records, as an encoding stage would; the tiny EVA tower's own
  MLP has 127 channels, which no mesh divides."""
  features = np.random.default_rng(0).normal(size=(RECORDS, 2, 2, 48)).astype(np.float32)
  np.save(folder / source.FEATURES, features)
  return str(folder)


def train(workdir: str, features: str, mesh: dict[str, int]) -> dict[str, Any]:
  """Three steps on a mesh: {losses, norms, devices, shard: of a trained kernel}."""
  values = runpy.run_path(str(CONFIG))["get_config"]("")
  values.steps, values.log.every, values.log.tensorboard = 3, 1, False
  values.data.records, values.data.path, values.data.features = RECORDS, features, True
  values.model.parts = ("denoiser",)
  values.mesh.update(mesh)
  values.optimizer.warmup_steps = 0
  found: Any = loop.start(values, SYSTEMS, workdir)
  lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  kernel = found.module.denoiser.caption_projection.linear_1.kernel[...]
  return {
    "losses": [row["loss"] for row in rows],
    "norms": [row["grad_norm"] for row in rows],
    "tflops": [row["model_tflops_per_second_per_device"] for row in rows],
    "devices": jax.device_count(),
    "said": said(values),
    "shard": list(kernel.addressable_shards[0].data.shape),
  }


def said(values: Any) -> str:
  """What lies whole on each device and why: by the run, then by the plan."""
  run = parse(values, SYSTEMS)
  setup = prepare(run, SYSTEMS[run.system])
  asked = estimate.Asked(topology.resolve(f"h100:{jax.device_count()}"), max(run.data.buckets), 1)
  return "; ".join([*setup.placed, *report.lines(estimate.analytic(setup, asked))])


if __name__ == "__main__":
  plan = json.loads(sys.argv[1])
  sys.stdout.write(json.dumps([train(**each) for each in plan]) + "\n")
