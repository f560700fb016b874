"""The quickstart's stages: their order, their configs, and what each finished one leaves.

A working folder's done/NAME.json says that a stage has finished, and what it found; calls/NAME.txt
has the seconds of its calls. `launch/quickstart.py` runs each stage as a process and says what they
are. Imports no jax before a stage runs.
"""

import json
from pathlib import Path
import runpy
import time
from typing import Any

from blip3o_jax import files
from blip3o_jax.miniature import parts as frozen_parts

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
# What --debug changes in every config, and the records that the stages' data then have.
DEBUG = {
  "steps": 3,
  "batch": 16,
  "optimizer.warmup_steps": 1,
  "log.every": 1,
  "data.records": 64,
  "eval_data.records": 64,
}
DEBUG_AMOUNTS = dict(words=400, whiten=64, probe=1, asked=2, alike=2)


def one_stage(name: str, work: Path, configs: Path, *, debug: bool = False) -> None:
  """Runs a stage in this process and leaves done/NAME.json with the seconds of all its calls.

  Args:
    name: of the stage. work: the working folder. configs: the folder of the stages' config files.
    debug: whether it is a rehearsal of a few steps.

  Raises:
    ValueError: no stage of that name. FileNotFoundError: one that it rests on has not finished.
  """
  kind = frozen_parts.read(work).kind
  if name not in (*stages(*PHASES), "curve"):
    raise ValueError(f"stage {name!r}: expected one of {', '.join([*stages(kind), 'curve'])}")
  start = time.monotonic()
  try:
    facts = _run(name, work, configs, debug)
  finally:  # an interrupted stage goes on in a later call
    seconds = spend(work, name, time.monotonic() - start)
  done = work / "done" / f"{name}.json"
  done.parent.mkdir(exist_ok=True)
  files.write_text(done, json.dumps({"seconds": seconds, **facts}))


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


def finish(work: Path, total: float) -> dict[str, Any]:
  """Adds the seconds of all stages and of all calls to report.json; returns what it holds."""
  stages = (work / "done").glob("*.json")
  seconds = {path.stem: json.loads(path.read_text())["seconds"] for path in stages}
  report = json.loads((work / "report.json").read_text())
  report["seconds"] = {**seconds, "total": total}
  files.write_text(work / "report.json", json.dumps(report, indent=2))
  return report


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


def _run(name: str, work: Path, configs: Path, debug: bool) -> dict[str, Any]:
  """What a stage found, or its last metrics."""
  from blip3o_jax.miniature import curve
  from blip3o_jax.miniature import encoding
  from blip3o_jax.miniature import report
  from blip3o_jax.miniature import stages

  amounts = stages.Amounts(**DEBUG_AMOUNTS) if debug else stages.ALL
  facts: dict[str, Any] = {}

  def config(stage: str, **arguments: Any) -> Any:
    return _config(configs / f"{CONFIGS[stage]}.py", stage, work, debug, **arguments)

  match name:
    case "shipped":
      facts = stages.take_shipped(work)
    case "features":
      encoding.cache_features(work, config("generator").data)
    case "encode":
      data = [config(stage).data for stage in ("unet", "generator")]
      facts = encoding.encode(work, data, amounts.whiten)
    case "probe":
      facts = stages.probe(work, amounts)
      weakest = "+".join(facts["weakest"])
      encoding.cache_features(work, config("tuned", categories=weakest).data)
    case "unet":
      scale = read_done(work, "autoencoder")["scale"]
      facts = stages.train(config(name, scale=scale), work, name)
    case "tuned":
      weakest = "+".join(read_done(work, "probe")["weakest"])
      facts = stages.train(config(name, categories=weakest), work, name)
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
      facts = stages.train(config(name), work, name)
  return facts


def _config(file: Path, name: str, work: Path, debug: bool, **arguments: Any) -> Any:
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
  cfg = runpy.run_path(str(file))["get_config"](words)
  if debug:
    cfg.update_from_flattened_dict(DEBUG)
  return cfg


def read_done(work: Path, stage: str) -> dict[str, Any]:
  """The facts that a finished stage left.

  Raises:
    FileNotFoundError: it has not finished.
  """
  path = work / "done" / f"{stage}.json"
  if not path.exists():
    raise FileNotFoundError(f"{path}: absent; stage {stage} has not finished")
  return json.loads(path.read_text())
