"""Each network on a mesh of all three axes: output and gradients are those of one device.

Convolutions are the exception: XLA gives wrong gradients there, so the pixel decoder refuses such
a mesh. When `test_convolutions_are_still_wrong` fails, JAX has mended it and the refusal can go.
"""

import json
import os
from pathlib import Path
import subprocess
import sys

import networks_worker
import pytest

from blip3o_jax import experiment
from blip3o_jax.train.distributed import Mesh
from blip3o_jax.train.stage import Train

ROOT = Path(__file__).parents[2]


def errors(*names: str) -> dict[str, float]:
  """Largest relative error of each network, measured by a process of 8 simulated devices."""
  flags = "--xla_force_host_platform_device_count=8"
  env = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(
    [sys.executable, networks_worker.__file__, *names],
    env=env,
    capture_output=True,
    text=True,
    timeout=800,
  )
  assert done.returncode == 0, done.stderr[-4000:]
  return json.loads(done.stdout.splitlines()[-1])


def test_transformers_on_three_axes_are_those_of_one_device():
  names = ("decoder_lm", "qwen_vision", "next_dit", "eva_vit")
  found = errors(*names)
  assert set(found) == set(names)
  assert max(found.values()) < 1e-4, found


def test_convolutions_are_still_wrong():
  assert errors("autoencoder")["autoencoder"] > 0.1


def test_the_pixel_decoder_refuses_three_axes():
  for mesh in (Mesh(replica=2, fsdp=2, tensor=2), Mesh(replica=2, fsdp=0, tensor=2)):
    with pytest.raises(ValueError, match="replica 2 x fsdp 2 x tensor 2 gives wrong gradients"):
      experiment.check_mesh(Train(system="pixels", mesh=mesh), 8)
    experiment.check_mesh(Train(system="blip3o", mesh=mesh), 8)
  experiment.check_mesh(Train(system="pixels", mesh=Mesh(replica=2, fsdp=4, tensor=1)), 8)
