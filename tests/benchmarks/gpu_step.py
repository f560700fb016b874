"""The step on one GPU beside PyTorch: DiT step, backbone step, guided sampler; outputs equal first.

    python tests/benchmarks/gpu_step.py --json FILE

Three cases. dit: forward, backward and AdamW of the DiT on float32 masters, cast once. backbone:
the frozen language model over a prompt, forward only, then over 64 queries with gradients, then
AdamW on the queries. sampler: 30 guided Euler steps of the DiT. Three sides: this package; PyTorch
as written (transformers' Qwen2.5-VL text model, a DiT with SDPA); the same under torch.compile.
Same random weights through the package's tables, same inputs, batch and dtype, nothing recomputed,
no padding. Each side runs in a process of its own, by turns and in reversed order every other
round. Before anything is timed the outputs, losses of three updates and gradients are compared.

Meant for ten minutes on a GPU of 80 GB or more. Without one it takes the small size on the CPU, and
says so: those ratios tell that it runs, nothing about a GPU.
"""

import argparse
import json
import os
from pathlib import Path
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
SIDES = ("jax", "torch", "compiled")
CASES = ("dit", "backbone", "sampler")
STEPS, GUIDANCE, UPDATES = 30, 3.0, 3
LEARNING_RATE = 1e-4
# Widths of the 4B system; of its 24 and 36 layers a third, so that weights are read in seconds.
SIZES: dict[str, dict[str, Any]] = {
  "gpu": dict(
    dit=dict(in_channels=1792, grid=8, dim=1792, depth=8, heads=28, kv_heads=28, batch=64),
    backbone=dict(dim=2048, depth=12, heads=16, kv_heads=2, head_dim=128, mlp_dim=11008),
    sections=(16, 24, 24),
    condition=2048,
    prompt=160,
    slots=64,
    rows=32,
    samples=16,
    whole={"dit": 24, "backbone": 36},
  ),
  "small": dict(
    dit=dict(in_channels=32, grid=4, dim=64, depth=2, heads=4, kv_heads=4, batch=4),
    backbone=dict(dim=64, depth=2, heads=4, kv_heads=2, head_dim=16, mlp_dim=96),
    sections=(2, 3, 3),
    condition=64,
    prompt=24,
    slots=8,
    rows=4,
    samples=2,
    whole={"dit": 2, "backbone": 2},
  ),
}
# Largest ||found - expected|| / ||expected||, of outputs and losses, and of gradients.
BARS = {"float32": (1e-4, 1e-3), "bfloat16": (0.03, 0.1)}
# Gradients that are compared: the first and last kernels and two of the blocks.
PROBES = (
  "patch_embedder.proj.weight",
  "layers.0.attn1.to_q.weight",
  "layers.1.feed_forward.linear_2.weight",
  "norm_out.linear_2.weight",
)


def has_gpu() -> bool:
  """Whether the driver lists an NVIDIA GPU."""
  try:
    found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
  except FileNotFoundError:
    return False
  return found.returncode == 0 and "GPU" in found.stdout


def sizes(options: argparse.Namespace) -> dict[str, Any]:
  """The numbers of a size, with another depth if asked for."""
  out = json.loads(json.dumps(SIZES[options.size]))
  for network, depth in out["whole"].items():
    if options.layers:
      out[network]["depth"] = min(options.layers, depth)
  return out


def inputs(size: dict[str, Any]) -> dict[str, np.ndarray]:
  """Random inputs of all cases; pictures have their channels last."""
  rng = np.random.default_rng(0)
  dit, slots, dim = size["dit"], size["slots"], size["backbone"]["dim"]

  def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)

  def cells(count: int) -> np.ndarray:
    return normal(count, dit["grid"], dit["grid"], dit["in_channels"])

  rows = size["rows"]
  return {
    "x": cells(dit["batch"]),
    "target": cells(dit["batch"]),
    "t": rng.uniform(1, 1000, dit["batch"]).astype(np.float32),
    "z": normal(dit["batch"], slots, size["condition"]),
    "prompt": normal(rows, size["prompt"], dim),
    "queries": normal(1, slots, dim),
    "weights": normal(rows, slots, dim),
    "noise": cells(size["samples"]),
    "condition": normal(size["samples"], slots, size["condition"]),
  }


def child(side: str, phase: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
  """One side in a process of its own; what it printed last.

  Raises:
    SystemExit: it failed; with the end of what it said.
  """
  environment = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)]),
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
    "JAX_PLATFORMS": "cuda" if options.gpu and side == "jax" and phase != "weights" else "cpu",
  }
  command = [sys.executable, __file__, "--side", side, "--phase", phase, "--work", str(folder)]
  command += ["--size", options.size, "--dtype", options.dtype, "--layers", str(options.layers)]
  command += ["--runs", str(options.runs), "--cases", *options.cases]
  command += ["--gpu"] if options.gpu else []
  done = subprocess.run(command, env=environment, capture_output=True, text=True)
  if done.returncode:
    raise SystemExit(f"{side}, {phase}: {done.stderr[-3000:]}")
  return dict(json.loads(done.stdout.splitlines()[-1]))


def answer(options: argparse.Namespace) -> None:
  """What a child does: prints one JSON line."""
  if options.side == "jax":
    import gpu_step_jax as module
  else:
    import gpu_step_torch as module  # type: ignore[no-redef]

  size, work = sizes(options), options.work
  if options.phase == "weights":
    module.write(size, work)
    print(json.dumps({}))
    return
  side = module.Side(size, work, options.dtype, compiled=options.side == "compiled")
  if options.gpu and side.device() == "cpu":
    raise SystemExit("it sees no GPU here, although nvidia-smi lists one: a build for CPUs?")
  seconds: dict[str, list[float]] = {}
  for case in options.cases:
    if options.phase == "check":
      np.savez(work / f"{options.side}_{case}.npz", **side.outputs(case))
      continue
    call = side.prepared(case)
    for _ in range(3):
      call()
    seconds[case] = []
    for _ in range(options.runs):
      began = time.perf_counter()
      call()
      seconds[case].append(time.perf_counter() - began)
  print(json.dumps({"seconds": seconds, "versions": side.versions(), "device": side.device()}))


def distance(found: np.ndarray, expected: np.ndarray) -> float:
  """||found - expected|| / ||expected||; infinite if anything is not a number."""
  if found.shape != expected.shape:
    raise SystemExit(f"shapes {found.shape} and {expected.shape} do not match")
  if not (np.isfinite(found).all() and np.isfinite(expected).all()):
    return float("inf")
  a, b = found.astype(np.float64), expected.astype(np.float64)
  return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def compare(
  side: str, case: str, mine: dict[str, np.ndarray], theirs: dict[str, np.ndarray], dtype: str
) -> float:
  """The largest distance of two sides' outputs.

  Raises:
    SystemExit: other names, or one that is farther than its bar; names side, case and output.
  """
  if set(mine) != set(theirs):
    raise SystemExit(f"{case}: jax has {sorted(mine)}, {side} {sorted(theirs)}")
  worst = 0.0
  for name in mine:
    found, bar = distance(mine[name], theirs[name]), BARS[dtype][name.startswith("gradient")]
    if found > bar:
      raise SystemExit(
        f"{case}: {name} of jax and {side} differ by {found:.2g} of its norm, more than {bar:g}: "
        "nothing is timed"
      )
    worst = max(worst, found)
  return worst


def check(folder: Path, options: argparse.Namespace) -> dict[str, dict[str, float]]:
  """Runs every side once and compares with jax: {case: {side: largest distance}}."""
  for side in options.sides:
    child(side, "check", folder, options)
  out: dict[str, dict[str, float]] = {}
  for case in options.cases:
    found = {s: dict(np.load(folder / f"{s}_{case}.npz")) for s in options.sides}
    out[case] = {
      side: compare(side, case, found["jax"], found[side], options.dtype)
      for side in options.sides
      if side != "jax"
    }
  return out


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
  """Times all sides by turns: {"medians": {case: {side: seconds}}, versions and devices}."""
  seconds: dict[str, dict[str, list[float]]] = {c: {s: [] for s in options.sides} for c in CASES}
  versions, devices = {}, {}
  for turn in range(options.rounds):
    for side in options.sides if turn % 2 == 0 else options.sides[::-1]:
      said = child(side, "time", folder, options)
      versions |= said["versions"]
      devices["jax" if side == "jax" else "torch"] = said["device"]
      for case, values in said["seconds"].items():
        seconds[case][side] += values
  medians = {
    case: {side: statistics.median(values) for side, values in seconds[case].items()}
    for case in options.cases
  }
  return {"medians": medians, "versions": versions, "devices": devices}


def table(facts: dict[str, Any]) -> str:
  """Medians in ms and how many times as long as this package each other side takes."""
  sides = list(next(iter(facts["medians"].values())))
  others = [side for side in sides if side != "jax"]
  head = ["case", *(f"{s}, ms" for s in sides), *(f"{s} / jax" for s in others), "largest distance"]
  lines = [head, ["---"] * len(head)]
  for case, found in facts["medians"].items():
    near = max(facts["distances"][case].values(), default=0.0)
    lines.append(
      [
        case,
        *(f"{1e3 * found[s]:.3g}" for s in sides),
        *(f"{found[s] / found['jax']:.2f}" for s in others),
        f"{near:.1e}",
      ]
    )
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def described(options: argparse.Namespace) -> str:
  """What is run, in words."""
  size = sizes(options)
  where = "on a GPU" if options.gpu else "on the CPU: no GPU here, so the small size tells nothing"
  if not options.gpu and options.size == "gpu":
    where = "on the CPU, at the size of a GPU"
  depths = ", ".join(
    f"{size[n]['depth']} of {d} layers of the {n}" for n, d in size["whole"].items()
  )
  return (
    f"size {options.size} {where}; {options.dtype}; {depths}; batch {size['dit']['batch']} (dit), "
    f"{size['rows']} prompts of {size['prompt']} (backbone), {size['samples']} pictures (sampler); "
    f"medians of {options.runs * options.rounds} after warm-up, {options.rounds} rounds by turns"
  )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--size", choices=("auto", *SIZES), default="auto", help="auto: by the GPU")
  parser.add_argument("--dtype", choices=("auto", *BARS), default="auto", help="float32 on a CPU")
  parser.add_argument(
    "--layers", type=int, default=0, help="of DiT and language model (0: the size's)"
  )
  parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
  parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
  parser.add_argument("--runs", type=int, default=10, help="timed calls of a process")
  parser.add_argument("--rounds", type=int, default=2, help="processes of each side")
  parser.add_argument("--json", type=Path, metavar="FILE", help="write the facts there")
  parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
  parser.add_argument("--phase", choices=("weights", "check", "time"), help=argparse.SUPPRESS)
  parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
  parser.add_argument("--gpu", action="store_true", help=argparse.SUPPRESS)
  options = parser.parse_args(arguments)
  options.gpu = options.gpu or (options.side is None and has_gpu())
  if options.size == "auto":
    options.size = "gpu" if options.gpu else "small"
  if options.dtype == "auto":
    options.dtype = "bfloat16" if options.gpu else "float32"
  if "jax" not in options.sides:
    parser.error("--sides: jax is what the others are compared with")
  if min(options.runs, options.rounds) < 1 or options.layers < 0:
    parser.error("--runs and --rounds are at least 1, --layers at least 0")
  return options


def main() -> int:
  options = parse()
  if options.side:
    answer(options)
    return 0
  print(described(options), flush=True)
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    child("jax", "weights", folder, options)
    distances = check(folder, options)
    facts = {"what": described(options), "distances": distances} | measure(folder, options)
  print(json.dumps(facts["versions"] | {"devices": facts["devices"]}))
  print(table(facts))
  if options.json:
    options.json.write_text(json.dumps(facts, indent=2))
  return 0


if __name__ == "__main__":
  sys.exit(main())
