"""What a run was started with: code, packages, devices. A line of starts.jsonl at each start."""

import collections
from collections.abc import Mapping
import functools
import importlib.metadata
import json
import os
from pathlib import Path
import platform
import socket
import subprocess
import time
from typing import Any

from etils import epath
import jax

import blip3o_jax

NAME = "starts.jsonl"
PACKAGES = (
  "jax",
  "jaxlib",
  "libtpu",
  "jax-cuda12-plugin",
  "jax-cuda13-plugin",
  "flax",
  "optax",
  "orbax-checkpoint",
  "numpy",
  "ml-dtypes",
  "pillow",
  "safetensors",
  "tokenizers",
  "transformers",
)  # whose versions decide what a run compiles, reads and writes


def facts(mesh: jax.sharding.Mesh) -> dict[str, Any]:
  """Code, packages and devices of this process, JSON-ready.

  version, commit ("" where the package is no checkout; "-dirty" at its end for changed files),
  python, packages {name: version}, devices {kind: how many in the mesh}, mesh {axis: ways},
  processes.
  """
  kinds = collections.Counter(device.device_kind for device in mesh.devices.flat)
  return {
    "version": blip3o_jax.__version__,
    "commit": commit(),
    "python": platform.python_version(),
    "packages": packages(),
    "devices": dict(kinds),
    "mesh": dict(mesh.shape),
    "processes": jax.process_count(),
  }


@functools.cache
def commit() -> str:
  """The commit of the checkout that this package is used from, or ""."""
  root = Path(blip3o_jax.__file__).parents[1]
  if not (root / ".git").exists():  # a package below somebody's repository is none of it
    return ""
  command = [
    "git",
    "-C",
    str(root),
    "describe",
    "--always",
    "--dirty",
    "--abbrev=40",
    "--exclude=*",
  ]
  try:
    found = subprocess.run(command, capture_output=True, text=True, timeout=30)
  except (OSError, subprocess.TimeoutExpired):  # no git here
    return ""
  return found.stdout.strip() if not found.returncode else ""


@functools.cache
def packages() -> dict[str, str]:
  """{name: version} of those of PACKAGES that are installed."""
  out = {}
  for name in PACKAGES:
    try:
      out[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return out


def write(
  workdir: epath.Path, step: int, found: Mapping[str, Any], configs: Mapping[str, Any]
) -> None:
  """Writes config.json, and adds a line to starts.jsonl, both by process 0.

  The line has time (Unix seconds), host, PID, the step that it went on from, and all of these.
  """
  if jax.process_index():
    return
  (workdir / "config.json").write_text(json.dumps(dict(configs), indent=2) + "\n")
  here = {"time": round(time.time(), 1), "host": socket.gethostname(), "pid": os.getpid()}
  line = here | {"step": step} | dict(found) | {"config": dict(configs)}
  with (workdir / NAME).open("a") as file:
    file.write(json.dumps(line) + "\n")
