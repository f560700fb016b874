"""Processes with simulated CPU devices: worker scripts of this folder, and the shipped command."""

import json
import os
from pathlib import Path
import subprocess
import sys
from typing import Any

HERE = Path(__file__).parent
SECONDS = 500


def start(worker: str, devices: int, *args: str) -> subprocess.Popen[str]:
  """Starts a script, which sees `devices` CPU devices, the package and the tests' helpers."""
  return _start([worker, *args], devices)


def train(devices: int, *args: str, cache: Path) -> subprocess.Popen[str]:
  """Starts `blip3o train` with `devices` CPU devices and a folder for compiled programs."""
  keep = {
    "JAX_ENABLE_COMPILATION_CACHE": "true",
    "JAX_COMPILATION_CACHE_DIR": str(cache),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  return _start(["-m", "blip3o_jax.cli", "train", *args], devices, **keep)


def _start(args: list[str], devices: int, **more: str) -> subprocess.Popen[str]:
  path = ":".join(map(str, (HERE.parents[1], HERE.parent, HERE)))
  flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
  env = os.environ | {"PYTHONPATH": path, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"} | more
  return subprocess.Popen(
    [sys.executable, *args],
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def output(process: subprocess.Popen[str]) -> str:
  """The last line that a process prints; fails with the end of its errors."""
  out, err = process.communicate(timeout=SECONDS)
  assert process.returncode == 0, err[-4000:]
  return out.splitlines()[-1]


def finish(process: subprocess.Popen[str]) -> Any:
  """What the last line that the script prints says as JSON; fails with the end of its errors."""
  return json.loads(output(process))
