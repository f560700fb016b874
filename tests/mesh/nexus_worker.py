"""Trains each stage of Nexus-Gen in a process of its own; prints losses as one JSON line.

Run by test_nexus_mesh.py with as many CPU devices as the process was started with.
"""

import json
import pathlib
import sys
from typing import Any

import jax
import nexus_smoke

from blip3o_jax.systems import SYSTEMS
from blip3o_jax.systems.nexus_gen import model
from blip3o_jax.train import loop

STAGES: tuple[model.Stage, ...] = ("language", "generation", "editing")


def train(folder: str, home: str, mesh: dict[str, Any]) -> dict[str, Any]:
  """Two steps of each stage on a mesh: {stage: {losses, norms}, devices}."""
  out: dict[str, Any] = {"devices": jax.device_count()}
  for stage in STAGES:
    values = nexus_smoke.get_config(f"stage={stage},home={home}")
    values.mesh.update(mesh)
    workdir = pathlib.Path(folder) / stage
    loop.start(values, SYSTEMS, str(workdir))
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    out[stage] = {name: [row[name] for row in rows] for name in ("loss", "grad_norm")}
  return out


if __name__ == "__main__":
  sys.stdout.write(json.dumps(train(**json.loads(sys.argv[1]))) + "\n")
