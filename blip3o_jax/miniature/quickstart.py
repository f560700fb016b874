"""The quickstart's stages: how one is run by its plan, and what each finished one leaves.

A working folder's done/NAME.json says that a stage has finished, and what it found; calls/NAME.txt
has the seconds of its calls. `launch/quickstart.py` runs each stage as a process; `plans` says what
they are. Imports no jax before a stage runs.
"""

from collections.abc import Mapping
import json
from pathlib import Path
import runpy
import time
from typing import Any

from blip3o_jax import files
from blip3o_jax.miniature import parts as frozen_parts
from blip3o_jax.miniature import plans
from blip3o_jax.miniature.plans import Plan


def one_stage(
  name: str,
  work: Path,
  configs: Path,
  plan: Plan | None = None,
  *,
  debug: bool = False,
  times: float = 1.0,
) -> None:
  """Runs a stage in this process and leaves done/NAME.json with the seconds of all its calls.

  Args:
    name: of the stage. work: the working folder. configs: the folder of the stages' config files.
    plan: of the system; without one that of BLIP3-o.
    debug: whether it is a rehearsal of a few steps. times: so many times the steps of a run.

  Raises:
    ValueError: no stage of that name. FileNotFoundError: one that it rests on has not finished.
  """
  plan = plan or plans.read(configs)
  kind = frozen_parts.read(work).kind
  if name not in (*plan.stages(*plan.phases), *plan.alone):
    known = ", ".join([*plan.stages(kind), *plan.alone])
    raise ValueError(f"stage {name!r}: expected one of {known}")
  start = time.monotonic()
  try:
    facts = _run(name, plan, _call(work, configs, plan, debug, times))
  finally:  # an interrupted stage goes on in a later call
    seconds = spend(work, name, time.monotonic() - start)
  done = work / "done" / f"{name}.json"
  done.parent.mkdir(exist_ok=True)
  files.write_text(done, json.dumps({"seconds": seconds, **facts}))


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


def drawings(drawn: Mapping[str, Any]) -> str:
  """The shares of right drawings in a few words."""
  return (
    f"generation {drawn['overall']['rate']:.2f} (single object "
    f"{drawn['single_object']['rate']:.2f}, unseen combinations "
    f"{drawn['unseen_combinations']['rate']:.2f})"
  )


def read_done(work: Path, stage: str) -> dict[str, Any]:
  """The facts that a finished stage left.

  Raises:
    FileNotFoundError: it has not finished.
  """
  path = work / "done" / f"{stage}.json"
  if not path.exists():
    raise FileNotFoundError(f"{path}: absent; stage {stage} has not finished")
  return json.loads(path.read_text())


def _call(work: Path, configs: Path, plan: Plan, debug: bool, times: float) -> plans.Call:
  """What a stage works with."""

  def config(stage: str, **more: Any) -> Any:
    arguments = {"work": work, **plan.arguments(stage, work), **more}
    if times != 1:
      arguments["times"] = times * arguments.get("times", 1.0)
    words = ",".join(f"{key}={value}" for key, value in arguments.items())
    cfg = runpy.run_path(str(configs / f"{plan.configs[stage]}.py"))["get_config"](words)
    if debug:
      cfg.update_from_flattened_dict(plans.DEBUG)
    return cfg

  return plans.Call(work, plans.REHEARSED if debug else plans.ALL, config)


def _run(name: str, plan: Plan, call: plans.Call) -> dict[str, Any]:
  """What a stage found, or its last metrics."""
  if name in plan.made:
    return plan.made[name](call)
  from blip3o_jax.miniature import stages

  return stages.train(call.config(name), call.work, name)
