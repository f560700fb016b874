"""Scripts that load the TPU compiler, in processes of their own: the tests stay on the CPU."""

import importlib.util
import json
import os
from pathlib import Path
import subprocess
import sys
from typing import Any

import pytest


def printed(script: Path) -> Any:
  """The JSON of its last line; skips where there is no libtpu."""
  if (found := importlib.util.find_spec("libtpu")) is None:
    pytest.skip("libtpu is not installed: bash launch/test.sh --setup")
  env = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LIBRARY_PATH": str(Path(str(found.origin)).with_name("libtpu.so")),
    "PYTHONPATH": str(Path(__file__).parents[1]),
  }
  run = subprocess.run(
    [sys.executable, script], env=env, capture_output=True, text=True, timeout=300
  )
  assert run.returncode == 0, run.stderr[-4000:]
  return json.loads(run.stdout.splitlines()[-1])
