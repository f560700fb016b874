"""What a conversion takes: peak memory, time, and MB/s against plain copying of the same files.

    python tests/benchmarks/conversion.py --source DIR --work DIR [--keep]

Imports DIR and exports the result, each in a process of its own, whose anonymous and shared memory
(RssAnon and RssShmem, of all its threads and children) is looked at twenty times a second; pages
of mapped files are not counted. Prints one line of JSON. The work directory needs twice the size of
the source, and the copy is removed before the export is made.
"""

import argparse
import json
import os
from pathlib import Path
import platform
import shutil
import subprocess
import sys
import time
from typing import Any

import jax

from blip3o_jax.convert import source as origins
from blip3o_jax.weights import store

ROOT = Path(__file__).parents[2]
FIELDS = ("RssAnon:", "RssShmem:")


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
  """Runs a command: seconds, and the peak of its memory."""
  env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
  start, peak = time.monotonic(), 0
  process = subprocess.Popen(command, env=env)
  while process.poll() is None:
    peak = max(peak, resident(process.pid))
    time.sleep(0.05)
  if process.returncode:
    raise SystemExit(f"{' '.join(command)}: exit {process.returncode}")
  return {"seconds": round(time.monotonic() - start, 1), "peak_bytes": peak}


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


def run(source: Path, work: Path, keep: bool) -> dict[str, Any]:
  """All three measurements."""
  tool = [sys.executable, str(ROOT / "tools" / "convert.py")]
  work.mkdir(parents=True, exist_ok=True)
  size = total(source)
  copy = measured(["cp", "-r", str(source), str(work / "copy")])
  shutil.rmtree(work / "copy")
  where = work / "converted"
  brought = measured([*tool, "import", "--source", str(source), "--output", str(where)])
  limit = bound(where, source)
  given = measured([*tool, "export", "--source", str(where), "--output", str(work / "exported")])
  if not keep:
    shutil.rmtree(where)
    shutil.rmtree(work / "exported")
  out: dict[str, Any] = {"bytes": size, "bound_bytes": limit, "cpus": len(os.sched_getaffinity(0))}
  out |= {"python": platform.python_version(), "jax": jax.__version__}
  for name, found in (("copy", copy), ("import", brought), ("export", given)):
    out[name] = found | {"mb_per_second": round(size / found["seconds"] / 1e6)}
  return out


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--source", type=Path, required=True)
  parser.add_argument("--work", type=Path, required=True)
  parser.add_argument("--keep", action="store_true", help="leave the converted and the exported")
  args = parser.parse_args()
  print(json.dumps(run(args.source, args.work, args.keep)))


if __name__ == "__main__":
  main()
