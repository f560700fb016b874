"""Programs compiled for a plan before: kept as text, with what the compiler said of memory.

JAX writes programs for described devices into its cache and can never read them back, so a plan
keeps what it needs of them. A program is known by the text that goes into the compiler, the
devices, the compiler's options and the versions.
"""

from collections.abc import Mapping
import dataclasses
import datetime
import gzip
import hashlib
import importlib.metadata
import json
import os
from pathlib import Path
import time
from typing import Any
import zlib

import jax

from blip3o_jax import files
from blip3o_jax import runtime

KEPT = 64  # programs; the least recently used go
MEMORY = ("argument", "output", "alias", "temp", "host_argument", "host_output", "host_temp")


@dataclasses.dataclass(frozen=True)
class Compiled:
  """What a plan reads of a compiled program.

  Attributes:
    text: of the compiled program. memory: {name of MEMORY: bytes on one device}.
    seconds: that compiling took. made: when it was compiled before, or "".
  """

  text: str
  memory: dict[str, int]
  seconds: float
  made: str = ""


def folder() -> Path:
  """Where they are kept: `$XDG_CACHE_HOME/blip3o_jax/plans` (`~/.cache` without it)."""
  return runtime.cache(os.environ) / "plans"


def versions() -> dict[str, str]:
  """Of all that decides what a program becomes."""
  out = {"jax": jax.__version__}
  for name in ("jaxlib", "libtpu"):
    try:
      out[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      out[name] = "absent"
  return out


def compiled(
  lowered: Any, where: str, options: Mapping[str, Any], *, again: bool = False
) -> Compiled:
  """A lowered program compiled, or as it was compiled before.

  Args:
    where: names the devices; "here" keeps nothing. options: of the compiler. again: compile it
      even if it was before.
  """
  words = [lowered.as_text(), where, json.dumps(dict(options), sort_keys=True), str(versions())]
  key = hashlib.sha256("\0".join(words).encode()).hexdigest()[:32]
  path = folder() / f"{key}.json.gz"
  if where != "here" and not again and (found := _read(path)):
    return found
  began = time.monotonic()
  done = lowered.compile(compiler_options=dict(options) or None)
  seconds = time.monotonic() - began
  said = done.memory_analysis()
  memory = {name: getattr(said, f"{name}_size_in_bytes", 0) if said else 0 for name in MEMORY}
  out = Compiled(done.as_text(), memory, round(seconds, 1))
  if where != "here":
    _write(path, out)
  return out


def _read(path: Path) -> Compiled | None:
  try:
    found = json.loads(gzip.decompress(path.read_bytes()))
    out = Compiled(**found)
    os.utime(path)
  # Absent, damaged, or of another version.
  except (OSError, EOFError, ValueError, TypeError, zlib.error):
    return None
  return out


def _write(path: Path, value: Compiled) -> None:
  now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
  data = json.dumps(dataclasses.asdict(value) | {"made": now}).encode()
  try:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with files.replacing(path) as partial:
      partial.write_bytes(gzip.compress(data, 6))
    for old in sorted(path.parent.glob("*.json.gz"), key=_used)[:-KEPT]:
      old.unlink(missing_ok=True)
  except OSError:  # a disk that is full or cannot be written: the plan itself is whole
    return


def _used(path: Path) -> float:
  return path.stat().st_mtime if path.exists() else 0.0
