"""How long `blip3o generate` of the shipped miniature takes, beside another checkout's.

    JAX_PLATFORMS=cpu python tests/benchmarks/generate.py --against DIR

Three cases, the two checkouts by turns: the command with nothing compiled, the command with JAX's
compilation cache filled by a run before, and the pictures after the first of one process. Prints
one JSON line: for each case the medians in seconds, of the wall and of all cores, and their ratios.
"""

import argparse
from collections.abc import Callable
import json
import os
from pathlib import Path
import resource
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = Path(__file__).parents[2]
PROMPT = "a red circle left of a blue square"
SECOND = f"""
import argparse, json, statistics, time
import blip3o_jax
if hasattr(blip3o_jax, "load"):
  model = blip3o_jax.load()
else:  # as commit bb61eaf loads
  from blip3o_jax import cli
  model = cli._load(argparse.Namespace(model=None, dtype="float32"))
model.generate([{PROMPT!r}], [0])
times = []
for seed in range(1, 10):
  wall, cpu = time.monotonic(), time.process_time()
  model.generate([{PROMPT!r}], [seed])
  times.append((time.monotonic() - wall, time.process_time() - cpu))
print(json.dumps([statistics.median(column) for column in zip(*times)]))
"""
Times = tuple[float, float]  # of the wall, of all cores


def command(checkout: Path, cache: Path | None) -> Times:
  """One run of the command in a process of its own; `cache` is JAX's, None compiles everything."""
  with tempfile.TemporaryDirectory() as folder:
    wall, before = time.monotonic(), _children()
    _python(
      checkout,
      ["-m", "blip3o_jax.cli", "generate", PROMPT, "--output", f"{folder}/drawn.png"],
      cache,
    )
    return time.monotonic() - wall, _children() - before


def second(checkout: Path) -> Times:
  """A picture after the first of a process: the median of nine."""
  wall, cpu = json.loads(_python(checkout, ["-c", SECOND], None))
  return wall, cpu


def _python(checkout: Path, arguments: list[str], cache: Path | None) -> str:
  environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION_CACHE")}
  environment["PYTHONPATH"] = str(checkout)
  environment["JAX_ENABLE_COMPILATION_CACHE"] = "false" if cache is None else "true"
  if cache is not None:
    environment["JAX_COMPILATION_CACHE_DIR"] = str(cache)
  done = subprocess.run(
    [sys.executable, *arguments], env=environment, cwd=checkout, capture_output=True, text=True
  )
  if done.returncode:
    raise SystemExit(f"{checkout}: {done.stderr[-2000:]}")
  return done.stdout


def _children() -> float:
  """Seconds of all cores that finished processes of this one took."""
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


def compare(measure: Callable[[Path], Times], checkouts: list[Path], runs: int) -> dict[str, float]:
  """Medians of this checkout and the other, measured by turns, and their ratios."""
  found: dict[Path, list[Times]] = {c: [] for c in checkouts}
  for _ in range(runs):
    for checkout in checkouts:
      found[checkout].append(measure(checkout))
  ours, theirs = (
    [statistics.median(column) for column in zip(*found[c], strict=True)] for c in checkouts
  )
  out = {"wall": ours[0], "cpu": ours[1], "wall_other": theirs[0], "cpu_other": theirs[1]}
  out |= {"wall_ratio": ours[0] / theirs[0], "cpu_ratio": ours[1] / theirs[1]}
  return {name: round(value, 3) for name, value in out.items()}


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--against", type=Path, required=True, help="another checkout")
  parser.add_argument("--runs", type=int, default=5)
  options = parser.parse_args()
  checkouts = [ROOT, options.against.resolve()]
  with tempfile.TemporaryDirectory() as folder:
    caches = {c: Path(folder) / str(i) for i, c in enumerate(checkouts)}
    out = {"cold": compare(lambda c: command(c, None), checkouts, options.runs)}
    for checkout in checkouts:
      command(checkout, caches[checkout])
    out["cache"] = compare(lambda c: command(c, caches[c]), checkouts, options.runs)
  out["second"] = compare(second, checkouts, options.runs)
  print(json.dumps(out))
  return 0


if __name__ == "__main__":
  sys.exit(main())
