"""What a conversion takes: peak memory and time, beside plain copying and beside torch.

    python tests/benchmarks/conversion.py --source DIR --work DIR [--rounds 3] [--keep]

Four commands, one after the other, in rounds: `cp -r` of DIR; loading and saving each of its files
with safetensors.torch; import of DIR; export of what that gave. Each is a process of its own,
started anew: seconds are those of the clock, cpu_seconds those of the processors. Its anonymous and
shared memory (RssAnon and RssShmem, of all its threads and children) is looked at twenty times a
second; pages of mapped files are not counted. DIR is read once before, so that memory holds its
files. Each command begins after a pause: in it a virtual machine may hand freed memory back to its
host, and whoever wants memory next pays for that, up to a second a gigabyte. So all pay alike.

Prints a table on stderr and one line of JSON: medians over the rounds, and of each command's
seconds over those of the copy and of torch in the same round. Without torch its column is left out.
The work directory needs twice the size of the source.
"""

import argparse
from collections.abc import Mapping
from collections.abc import Sequence
import importlib.util
import json
import os
from pathlib import Path
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
from typing import Any

import jax

from blip3o_jax.convert import source as origins
from blip3o_jax.weights import store

ROOT = Path(__file__).parents[2]
PAUSE = 6.0
FIELDS = ("RssAnon:", "RssShmem:")
TORCH = """
import pathlib, sys
from safetensors import torch
source, target = map(pathlib.Path, sys.argv[1:])
for file in source.rglob("*.safetensors"):
  (target / file.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
  torch.save_file(torch.load_file(file), target / file.relative_to(source))
"""


def resident(pid: int) -> int:
  """Bytes of anonymous and shared memory of a process and its children; 0 when it is gone."""
  try:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
  except OSError:
    return 0
  own = sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(FIELDS))
  return own + sum(resident(int(child)) for child in children)


def measured(command: list[str]) -> dict[str, float]:
  """Runs a command: seconds, seconds of processors, and the peak of its memory."""
  places = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
  env = os.environ | {"PYTHONPATH": os.pathsep.join(places), "JAX_PLATFORMS": "cpu"}
  start, used, peak = time.monotonic(), _used(), 0
  process = subprocess.Popen(command, env=env)
  while process.poll() is None:
    peak = max(peak, resident(process.pid))
    time.sleep(0.05)
  if process.returncode:
    raise SystemExit(f"{' '.join(command)}: exit {process.returncode}")
  seconds = time.monotonic() - start
  return {"seconds": seconds, "cpu_seconds": _used() - used, "peak_bytes": peak}


def _used() -> float:
  """Seconds that processors gave to all commands so far."""
  found = resource.getrusage(resource.RUSAGE_CHILDREN)
  return found.ru_utime + found.ru_stime


def bound(converted: Path, source: Path) -> int:
  """The memory that a conversion may take: 1.5 times the largest tensor or parameter, and 1 GB."""
  arrays = store.Arrays(converted)
  stacked = max(_size(arrays[p]) * arrays.dtype(p).itemsize for p in arrays)
  readers = [part.tensors for part in origins.look(source).parts]
  tensor = max(_size(r[n]) * r.dtype(n).itemsize for r in readers for n in r)
  return int(1.5 * max(stacked, tensor) + 1e9)


def _size(shape: tuple[int, ...]) -> int:
  out = 1
  for n in shape:
    out *= n
  return out


def total(directory: Path) -> int:
  """Bytes of all files."""
  return sum(p.stat().st_size for p in directory.rglob("*") if p.is_file())


def warm(directory: Path) -> None:
  """Reads all files once."""
  for path in directory.rglob("*"):
    if path.is_file():
      with open(path, "rb", buffering=0) as file:
        while file.read(2**24):
          pass


def run(
  source: Path, work: Path, keep: bool, *, rounds: int = 1, pause: float = 0
) -> dict[str, Any]:
  """All measurements, with seconds between; `keep` leaves what the last round converted."""
  tool = [sys.executable, str(ROOT / "tools" / "convert.py")]
  work.mkdir(parents=True, exist_ok=True)
  copy, torch, where, again = (work / n for n in ("copy", "torch", "converted", "exported"))
  commands = {
    "copy": (["cp", "-r", str(source), str(copy)], copy),
    "torch": ([sys.executable, "-c", TORCH, str(source), str(torch)], torch),
    "import": ([*tool, "import", "--source", str(source), "--output", str(where)], where),
    "export": ([*tool, "export", "--source", str(where), "--output", str(again)], again),
  }
  if importlib.util.find_spec("torch") is None:
    del commands["torch"]
  warm(source)
  found: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
  for _ in range(rounds):
    for made in (where, again):  # of the round before
      shutil.rmtree(made, ignore_errors=True)
    for name, (command, made) in commands.items():
      time.sleep(pause)
      found[name].append(measured(command))
      if made in (copy, torch):
        shutil.rmtree(made)
  limit = bound(where, source)
  if not keep:
    shutil.rmtree(where)
    shutil.rmtree(again)
  size = total(source)
  out: dict[str, Any] = {"bytes": size, "bound_bytes": limit, "cpus": len(os.sched_getaffinity(0))}
  out |= {"python": platform.python_version(), "jax": jax.__version__, "rounds": rounds}
  return out | {name: summary(name, found, size) for name in commands}


def summary(
  name: str, found: Mapping[str, Sequence[Mapping[str, float]]], size: int
) -> dict[str, Any]:
  """The figures of a command, from those of all commands in all rounds."""
  mine = found[name]
  seconds, used = (statistics.median(m[key] for m in mine) for key in ("seconds", "cpu_seconds"))
  out: dict[str, Any] = {"seconds": round(seconds, 1), "cpu_seconds": round(used, 1)}
  out |= {"peak_bytes": max(m["peak_bytes"] for m in mine)}
  out |= {"mb_per_second": round(size / seconds / 1e6)}
  for other in ("copy", "torch"):
    if other in found and name != other:
      ratios = [m["seconds"] / o["seconds"] for m, o in zip(mine, found[other], strict=True)]
      out[f"over_{other}"] = round(statistics.median(ratios), 2)
  return out


def lines(found: Mapping[str, Any]) -> list[str]:
  """The figures as a table."""
  columns = ("seconds", "cpu_seconds", "mb_per_second", "over_copy", "over_torch")
  rows = [("", *columns, "peak MB")]
  for name in (n for n in ("copy", "torch", "import", "export") if n in found):
    told = found[name]
    rows.append((name, *(str(told.get(c, "")) for c in columns), f"{told['peak_bytes'] / 1e6:.0f}"))
  return ["  ".join(cell.rjust(13) for cell in row) for row in rows]


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--source", type=Path, required=True)
  parser.add_argument("--work", type=Path, required=True)
  parser.add_argument("--keep", action="store_true", help="leave the converted and the exported")
  parser.add_argument("--rounds", type=int, default=3)
  args = parser.parse_args()
  found = run(args.source, args.work, args.keep, rounds=args.rounds, pause=PAUSE)
  print("\n".join(lines(found)), file=sys.stderr)
  print(json.dumps(found))


if __name__ == "__main__":
  main()
