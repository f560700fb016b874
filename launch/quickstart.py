"""Trains a miniature BLIP3-o stage by stage, and reports what it draws and understands.

    bash launch/quickstart.sh [--from-scratch] [--workdir DIR] [--debug]

What BLIP3-o trains, slots and DiT, is trained from nothing on the frozen parts that ship with the
package, and reported beside the shipped generator. With `--from-scratch` every part is trained, for
hours: that is how the shipped ones were made. Stages, each a config of configs/ (`--stage NAME`
runs one alone; finished ones are reused; `--debug` rehearses all of them with a few steps, which
learns nothing):

    shipped     checks the shipped parts, takes their tokenizer
    features    the image tower's features of the generator's training set

or, from scratch,

    tokenizer   byte-level BPE of the embedded set's words
    tower       image tower, contrastive           ┐ one half of the cores
    encode      its features of the training sets  │
    autoencoder                                    │
    unet        the pixel decoder on features      ┘
    answers     language model and vision tower    ┐ the other half, at the same time
    backbone    the same, learning to read prompts ┘

and then

    generator   slots and DiT on features            all cores, backbone frozen
    probe       how weak each category is            one half of the cores
    pretrained  drawings before tuning               the other half
    tuned       instruction tuning on the weakest    all cores
    export      the model in the released layout   ┐ one half of the cores
    score       its answers, drawings, pictures    ┘
    compare     the shipped generator's drawings     the other half; not from scratch
    report      report.html, report.json

`--stage curve`, which no phase runs, scores what the runs had reached on the way: curve.json.
"""

import argparse
import json
import os
from pathlib import Path
import runpy
import signal
import subprocess
import sys
import time
from typing import Any

from blip3o_jax import files
from blip3o_jax.miniature import parts as frozen_parts

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = {
  "tower": "shapes_tower_train",
  "answers": "shapes_backbone_train",
  "backbone": "shapes_backbone_train",
  "autoencoder": "shapes_autoencoder_train",
  "unet": "shapes_unet_train",
  "generator": "shapes_generator_pretrain",
  "tuned": "shapes_generator_tune",
}
# Steps of --from-scratch in multiples of those that a config has by itself.
LONG = {"tower": 3.0, "autoencoder": 3.0, "unet": 5.0, "answers": 1.0, "backbone": 3.3}
LONG |= {"generator": 2.5, "tuned": 3.0}
# Stages in one line run after each other, lines of one phase side by side.
Phase = tuple[tuple[str, ...], ...]
GENERATOR: tuple[Phase, ...] = (
  (("generator",),),
  (("probe",), ("pretrained",)),
  (("tuned",),),
)
PHASES: dict[str, tuple[Phase, ...]] = {
  "shipped": (
    (("shipped", "features"),),
    *GENERATOR,
    (("export", "score"), ("compare",)),
    (("report",),),
  ),
  "trained": (
    (("tokenizer",),),
    (("tower", "encode", "autoencoder", "unet"), ("answers", "backbone")),
    *GENERATOR,
    (("export", "score", "report"),),
  ),
}
SECONDS = 15.0  # between lines of progress
# What --debug changes in every config, and the records that the stages' data then have.
DEBUG = {
  "steps": 3,
  "batch": 16,
  "optimizer.warmup_steps": 1,
  "log.every": 1,
  "data.records": 64,
  "eval_data.records": 64,
}
DEBUG_AMOUNTS = dict(words=400, whiten=64, probe=1, asked=2)


def main() -> int:
  """Runs all phases, or one stage."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--workdir",
    type=Path,
    help="default work/quickstart, work/from-scratch or, with --debug, work/debug-...",
  )
  parser.add_argument(
    "--from-scratch", action="store_true", help="train every part, which takes hours"
  )
  parser.add_argument("--stage", help="run this stage only, in this process")
  parser.add_argument("--debug", action="store_true", help="a rehearsal of some minutes")
  options = parser.parse_args()
  name = "from-scratch" if options.from_scratch else "quickstart"
  work = (options.workdir or Path("work") / ("debug-" * options.debug + name)).absolute()
  kind: frozen_parts.Kind = "trained" if options.from_scratch else "shipped"
  work.mkdir(parents=True, exist_ok=True)
  try:
    frozen_parts.choose(work, kind)
  except (ValueError, OSError) as error:
    print(f"quickstart: {error}", file=sys.stderr)
    return 1
  if options.stage:
    return one_stage(options.stage, work, debug=options.debug)
  signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end; the next call goes on from here"))
  start = time.monotonic()
  words = ["--debug"] * options.debug + ["--from-scratch"] * options.from_scratch
  try:
    for phase in PHASES[kind]:
      if not run_phase(phase, work, words):
        return 1
  finally:  # all calls together: one that finds everything finished adds next to nothing
    now = time.monotonic() - start
    total = spend(work, "total", now)
  seconds = {p.stem: json.loads(p.read_text())["seconds"] for p in (work / "done").glob("*.json")}
  report = json.loads((work / "report.json").read_text())
  report["seconds"] = {**seconds, "total": total}
  files.write_text(work / "report.json", json.dumps(report, indent=2))
  print(f"finished in {now / 60:.1f} minutes")
  print(summary(report))
  print(f"report: {work / 'report.html'}\nnumbers: {work / 'report.json'}")
  print(f'draw more: .venv/bin/blip3o generate "a red circle" --model {work / "model"}')
  return 0


def summary(report: dict[str, Any]) -> str:
  """The scores in a line, and in another those of the shipped generator where it was drawn."""
  understood, drawn, rebuilt = (
    report[n] for n in ("understanding", "generation", "reconstruction")
  )
  lines = [
    f"understanding {understood['accuracy']:.2f}, {drawings(drawn)}, reconstruction "
    f"{rebuilt['psnr']:.1f} dB, {rebuilt['scorer_accuracy']['rate']:.2f} right"
  ]
  if "shipped" in report:
    lines.append(f"the shipped generator: {drawings(report['shipped']['generation'])}")
  return "\n".join(lines)


def drawings(drawn: dict[str, Any]) -> str:
  """The shares of right drawings in a few words."""
  return (
    f"generation {drawn['overall']['rate']:.2f} (single object "
    f"{drawn['single_object']['rate']:.2f}, unseen combinations "
    f"{drawn['unseen_combinations']['rate']:.2f})"
  )


# ---- lanes: stages as processes, one after the other, lanes side by side --------------------


def run_phase(phase: Phase, work: Path, options: list[str]) -> bool:
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
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
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


# ---- stages ---------------------------------------------------------------------------------


def one_stage(name: str, work: Path, *, debug: bool = False) -> int:
  """Runs a stage in this process and leaves done/NAME.json with the seconds of all its calls."""
  from absl import logging

  kind = frozen_parts.read(work).kind
  if name not in (*stages(*PHASES), "curve"):
    raise SystemExit(f"stage {name!r}: expected one of {', '.join([*stages(kind), 'curve'])}")
  logging.set_verbosity(logging.INFO)
  logging.use_absl_handler()
  start = time.monotonic()
  try:
    facts = run_stage(name, work, debug)
  finally:  # an interrupted stage goes on in a later call
    seconds = spend(work, name, time.monotonic() - start)
  done = work / "done" / f"{name}.json"
  done.parent.mkdir(exist_ok=True)
  files.write_text(done, json.dumps({"seconds": seconds, **facts}))
  return 0


def stages(*kinds: str) -> list[str]:
  """The stages of runs of these kinds, in their order."""
  return [s for kind in kinds for phase in PHASES[kind] for lane in phase for s in lane]


def spend(work: Path, name: str, seconds: float) -> float:
  """Adds a call's seconds to those of a stage, or of all calls together; returns the sum."""
  path = work / "calls" / f"{name}.txt"
  path.parent.mkdir(exist_ok=True)
  calls = path.read_text().split() if path.exists() else []
  calls.append(f"{seconds:.1f}")
  files.write_text(path, " ".join(calls))
  return sum(map(float, calls))


def run_stage(name: str, work: Path, debug: bool) -> dict[str, Any]:
  """What a stage found, or its last metrics."""
  from blip3o_jax.miniature import curve
  from blip3o_jax.miniature import report
  from blip3o_jax.miniature import stages

  amounts = stages.Amounts(**DEBUG_AMOUNTS) if debug else stages.ALL
  facts: dict[str, Any] = {}
  match name:
    case "shipped":
      facts = stages.take_shipped(work)
    case "features":
      stages.cache_features(work, stage_config("generator", work, debug).data)
    case "encode":
      data = [stage_config(stage, work, debug).data for stage in ("unet", "generator")]
      facts = stages.encode(work, data, amounts)
    case "probe":
      facts = stages.probe(work, amounts)
      weakest = "+".join(facts["weakest"])
      stages.cache_features(work, stage_config("tuned", work, debug, categories=weakest).data)
    case "unet":
      scale = read_done(work, "autoencoder")["scale"]
      facts = stages.train(stage_config(name, work, debug, scale=scale), work, name)
    case "tuned":
      weakest = "+".join(read_done(work, "probe")["weakest"])
      facts = stages.train(stage_config(name, work, debug, categories=weakest), work, name)
    case "tokenizer":
      facts = stages.train_tokenizer(work, amounts)
    case "export":
      facts = stages.export_model(work)
    case "score":
      facts = report.score(work, amounts)
    case "pretrained":
      facts = report.draw_pretrained(work, amounts)
    case "compare":
      facts = report.compare(work, amounts)
    case "report":
      facts = report.write(work)
    case "curve":
      facts = curve.write(work, amounts)
    case _:
      facts = stages.train(stage_config(name, work, debug), work, name)
  return facts


def stage_config(name: str, work: Path, debug: bool, **arguments: Any) -> Any:
  """The config of a training stage, or the few steps of it that --debug takes."""
  parts = frozen_parts.read(work)
  arguments = {"work": work, **arguments}
  if name == "answers":
    arguments["first"] = True
  if parts.kind == "trained":
    arguments["times"] = LONG[name]
  elif name == "generator":
    arguments["backbone"] = parts.backbone
  words = ",".join(f"{key}={value}" for key, value in arguments.items())
  path = ROOT / "configs" / f"{CONFIGS[name]}.py"
  cfg = runpy.run_path(str(path))["get_config"](words)
  if debug:
    cfg.update_from_flattened_dict(DEBUG)
  return cfg


def read_done(work: Path, stage: str) -> dict[str, Any]:
  """The facts that a finished stage left."""
  path = work / "done" / f"{stage}.json"
  if not path.exists():
    raise SystemExit(f"stage {stage} has not finished in {work}")
  return json.loads(path.read_text())


if __name__ == "__main__":
  sys.exit(main())
