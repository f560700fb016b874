"""Trains a miniature stage by stage, and reports what it can do.

    bash launch/quickstart.sh [--system NAME] [--from-scratch] [--workdir DIR] [--debug]

The stages of a system stand in configs/shapes_NAME_plan.py, with what each of them is; each that
trains has a config there. `--stage NAME` runs one alone; finished ones are reused; `--debug`
rehearses all of them with a few steps, which learns nothing. With `--from-scratch` parts that ship
with the package are trained, too, where a system's plan says how. `--times 0.1` makes every run a
tenth as long; one that finished goes on in a longer call once its DIR/done/NAME.json is deleted.
"""

import argparse
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

from absl import logging

from blip3o_jax import cli
from blip3o_jax import runtime
from blip3o_jax.miniature import parts as frozen_parts
from blip3o_jax.miniature import plans
from blip3o_jax.miniature import quickstart

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 15.0  # between lines of progress


def main() -> int:
  """Runs all phases, or one stage."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--system", default=plans.DEFAULT, help="default %(default)s")
  parser.add_argument(
    "--workdir",
    type=Path,
    help="default work/quickstart or work/from-scratch (of another system work/SYSTEM or "
    "work/SYSTEM-from-scratch), with --debug work/debug-...",
  )
  parser.add_argument(
    "--from-scratch", action="store_true", help="train every part, which takes hours"
  )
  parser.add_argument(
    "--times", type=float, default=1.0, help="so many times the steps of every run"
  )
  parser.add_argument("--stage", help="run this stage only, in this process")
  parser.add_argument("--debug", action="store_true", help="a rehearsal of some minutes")
  options = parser.parse_args()
  if options.system == plans.DEFAULT:
    name = "from-scratch" if options.from_scratch else "quickstart"
  else:  # a folder holds one system
    name = options.system + "-from-scratch" * options.from_scratch
  work = (options.workdir or Path("work") / ("debug-" * options.debug + name)).absolute()
  kind: frozen_parts.Kind = "trained" if options.from_scratch else "shipped"
  runtime.prepare()  # for the stages, too
  call = one_stage if options.stage else every_phase

  def run() -> int:
    plan = plans.read(ROOT / "configs", options.system)
    if kind not in plan.phases:
      raise ValueError(
        f"--system {options.system} is trained {frozen_parts.CALLS[next(iter(plan.phases))]} only"
      )
    work.mkdir(parents=True, exist_ok=True)
    frozen_parts.choose(work, kind, plan.system, plan.rests[kind])
    return call(options, work, plan)

  return cli.guarded("quickstart", run)


def one_stage(options: argparse.Namespace, work: Path, plan: plans.Plan) -> int:
  """Runs a stage in this process."""
  logging.set_verbosity(logging.INFO)
  logging.use_absl_handler()
  quickstart.one_stage(
    options.stage, work, ROOT / "configs", plan, debug=options.debug, times=options.times
  )
  return 0


def every_phase(options: argparse.Namespace, work: Path, plan: plans.Plan) -> int:
  """Runs all phases, and says what came of them."""
  signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end; the next call goes on from here"))
  start = time.monotonic()
  words = ["--debug"] * options.debug + ["--from-scratch"] * options.from_scratch
  words += ["--system", plan.system, "--times", str(options.times)]
  try:
    for phase in plan.phases["trained" if options.from_scratch else "shipped"]:
      if not run_phase(phase, work, words):
        return 1
  finally:  # all calls together: one that finds everything finished adds next to nothing
    now = time.monotonic() - start
    total = quickstart.spend(work, "total", now)
  report = quickstart.finish(work, total)
  print(f"finished in {now / 60:.1f} minutes")
  print(plan.summary(report))
  print(f"report: {work / 'report.html'}\nnumbers: {work / 'report.json'}")
  print(f'draw more: blip3o generate "a red circle" --model {work / "model"}')
  return 0


# ---- lanes: stages as processes, one after the other, lanes side by side --------------------


def run_phase(phase: plans.Phase, work: Path, options: list[str]) -> bool:
  """Runs the lanes of a phase in parallel; False, after printing why, when a stage failed."""
  cores = sorted(os.sched_getaffinity(0))
  share = max(1, len(cores) // len(phase))
  lanes = [
    Lane(stages, work, cores[i * share : (i + 1) * share] or cores, options)
    for i, stages in enumerate(phase)
  ]
  shown = time.monotonic()
  try:
    while [lane for lane in lanes if lane.alive()]:  # every lane is looked at
      if any(lane.failed for lane in lanes):  # no other lane can save the run
        break
      time.sleep(0.2)
      if time.monotonic() - shown >= SECONDS:
        shown = time.monotonic()
        print("  ".join(filter(None, (lane.progress() for lane in lanes))), flush=True)
  finally:  # also when this process is told to end
    for lane in lanes:
      lane.stop()
  failed = next((lane.failed for lane in lanes if lane.failed), "")
  if failed:
    log = work / "logs" / f"{failed}.log"
    print(f"stage {failed} failed; the end of {log}:", file=sys.stderr)
    print("\n".join(log.read_text().splitlines()[-25:]), file=sys.stderr)
  return not failed


class Lane:
  """Stages that run one after the other as processes on their share of the cores."""

  def __init__(self, stages: tuple[str, ...], work: Path, cores: list[int], options: list[str]):
    self.left, self.work, self.cores, self.options = list(stages), work, cores, options
    self.process: subprocess.Popen[bytes] | None = None
    self.stage = self.failed = ""
    self.began = 0.0

  def alive(self) -> bool:
    """Starts the next stage when one ended; False when all have, or one failed."""
    if self.process is not None:
      status = self.process.poll()
      if status is None:
        return True
      self.process = None
      if status:
        self.failed = self.stage
        return False
      print(f"{self.stage} done in {time.monotonic() - self.began:.0f} s", flush=True)
    if not self.left or self.failed:
      return False
    self.stage = self.left.pop(0)
    if (self.work / "done" / f"{self.stage}.json").exists():
      print(f"{self.stage} was finished before", flush=True)
      return self.alive()
    self._start()
    return True

  def _start(self) -> None:
    self.began = time.monotonic()
    log = self.work / "logs" / f"{self.stage}.log"
    log.parent.mkdir(exist_ok=True)
    # One simulated device a core: each takes its share of the batch.
    flags = f"--xla_force_host_platform_device_count={len(self.cores)}"
    # And one waits for another however long other work has its core: 40 s would end the run.
    flags += " --xla_cpu_collective_call_terminate_timeout_seconds=86400"
    if "--debug" in self.options:  # most of a rehearsal is the compiler
      flags += " --xla_backend_optimization_level=0"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
    environment["BLIP3O_TRACEBACK"] = "1"  # the log of a stage has the whole of what went wrong
    # Large pages for large arrays, where glibc knows of it: 1.12 times the language model's steps.
    environment.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    command = [sys.executable, __file__, "--workdir", str(self.work), "--stage", self.stage]
    command += self.options
    with log.open("wb") as handle:
      self.process = subprocess.Popen(
        command, stdout=handle, stderr=subprocess.STDOUT, env=environment
      )
    os.sched_setaffinity(self.process.pid, self.cores)

  def progress(self) -> str:
    """What the stage's metrics say: "tower 150/500, 2:10 left"."""
    if self.process is None:
      return ""
    path = self.work / self.stage / "metrics.jsonl"
    elapsed = time.monotonic() - self.began
    if not path.exists() or not path.read_text().strip():
      return f"{self.stage} {elapsed:.0f} s"
    step = json.loads(path.read_text().splitlines()[-1])["step"]
    config = json.loads((self.work / self.stage / "config.json").read_text())
    steps = config["train"]["steps"]
    left = int(elapsed / max(step, 1) * (steps - step))
    return f"{self.stage} {step}/{steps}, about {left // 60}:{left % 60:02d} left"

  def stop(self) -> None:
    """Ends a running stage, which saves first."""
    if self.process is not None:
      self.process.terminate()
      self.process.wait()


if __name__ == "__main__":
  sys.exit(main())
