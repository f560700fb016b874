"""Worker scripts of this folder as processes with simulated CPU devices."""

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
  path = ":".join(map(str, (HERE.parents[1], HERE.parent, HERE)))
  flags = f"--xla_force_host_platform_device_count={devices}"
  env = os.environ | {"PYTHONPATH": path, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
  command = [sys.executable, worker, *args]
  return subprocess.Popen(
    command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )


def finish(process: subprocess.Popen[str]) -> Any:
  """What the last line that the script prints says as JSON; fails with the end of its errors."""
  out, err = process.communicate(timeout=SECONDS)
  assert process.returncode == 0, err[-4000:]
  return json.loads(out.splitlines()[-1])
