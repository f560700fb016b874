"""Makes the shipped miniature of a finished run of all parts: its files, its card, its sums.

Takes the model, the report and the runs' records of a folder that `bash launch/quickstart.sh
--from-scratch` has finished. `tools/ship.py` calls it.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import json
from pathlib import Path
import shutil
from typing import Any

from blip3o_jax import __version__
from blip3o_jax.convert import exporter
from blip3o_jax.convert import manifest
from blip3o_jax.miniature import parts as frozen_parts
from blip3o_jax.miniature import shipped
from blip3o_jax.miniature.plans import Plan

HALF = "float16"


def system_of(work: Path) -> str:
  """The system whose miniature a working folder holds.

  Raises:
    FileNotFoundError, ValueError: a folder without the record of it.
  """
  return _read(work / frozen_parts.RECORD).get("system", shipped.DEFAULT)


def ship(work: Path, output: Path, picture: Path | None, plan: Plan) -> int:
  """Writes `output` whole or not at all; returns its bytes.

  Args:
    work: of a finished run of all parts. picture: where the report's picture is copied to, if
      anywhere. plan: of the folder's system.

  Raises:
    FileNotFoundError, ValueError: a folder that lacks something, a model that is not the one that
      was scored or not in half precision, more than `shipped.BUDGET` bytes.
    FileExistsError: an output that is neither empty nor such a folder.
  """
  card = make_card(work, plan)
  if output.exists() and any(output.iterdir()) and not (output / shipped.CARD).exists():
    raise FileExistsError(f"{output}: exists, is not empty and holds no {shipped.CARD}")
  partial = output.with_name(f".{output.name}.partial")
  shutil.rmtree(partial, ignore_errors=True)
  # What an export knows of licences; here the page says it.
  shutil.copytree(work / "model", partial, ignore=shutil.ignore_patterns(exporter.LICENCES))
  (partial / shipped.CARD).write_text(json.dumps(card, indent=1) + "\n")
  (partial / shipped.PROSE).write_text(prose(card, plan))
  lines = [f"{digest}  {name}" for name, digest in shipped.sums(partial).items()]
  (partial / shipped.SUMS).write_text("\n".join(lines) + "\n")
  size = shipped.size(partial)
  if size > shipped.BUDGET:
    shutil.rmtree(partial)
    raise ValueError(f"{work}: {size} bytes with the card, more than {shipped.BUDGET}")
  if output.exists():
    shutil.rmtree(output)
  partial.rename(output)
  if picture is not None:
    picture.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(work / plan.ships.picture, picture)
  return size


def make_card(work: Path, plan: Plan) -> dict[str, Any]:
  """What card.json holds: how the model of a working folder was made and what it scored.

  Raises:
    FileNotFoundError, ValueError: a folder that lacks something, by name.
  """
  kind = _read(work / frozen_parts.RECORD)["parts"]
  if kind != "trained":
    raise ValueError(f"{work}: its frozen parts are {kind}; expected a run with --from-scratch")
  report = _read(work / "report.json")
  if not (work / plan.ships.picture).is_file():
    raise FileNotFoundError(f"{work / plan.ships.picture}: absent; the stage score writes it")
  for key in (*plan.ships.scores, "seconds", "model"):
    if key not in report:
      raise ValueError(f"{work / 'report.json'}: no {key!r}; let the quickstart finish")
  found = shipped.sums(work / "model")
  if found != report["model"]:
    raise ValueError(f"{work / 'model'}: is not the model that report.json scored; score it again")
  runs = {stage: _read(work / stage / "config.json")["train"] for stage in plan.configs}
  seeds = {int(run["seed"]) for run in runs.values()}
  if len(seeds) > 1:
    raise ValueError(f"{work}: stages of several seeds, {sorted(seeds)}; a card names one")
  exported = _read(work / "done" / "export.json")
  named = "" if plan.system == shipped.DEFAULT else f" --system {plan.system}"
  return {
    "system": plan.system,
    "commands": [
      f"bash launch/quickstart.sh{named} --from-scratch --workdir DIR",
      ".venv/bin/python tools/ship.py --workdir DIR",
    ],
    "seed": seeds.pop(),
    "versions": {"blip3o_jax": __version__, **exported["versions"]},
    "cores": exported["cores"],
    "runs": {
      name: {"steps": _made(work / name), "of": run["steps"], "batch": run["batch"]}
      for name, run in runs.items()
    },
    "seconds": report["seconds"],
    "scores": {name: report[name] for name in plan.ships.scores},
    "parts": parts(work / "model"),
    "sha256": {name: digest for name, digest in found.items() if name != exporter.LICENCES},
  }


def _made(run: Path) -> int:
  """Steps that a run made; fewer than its config says where it was stopped."""
  lines = (run / "metrics.jsonl").read_text().splitlines()
  return int(json.loads(lines[-1])["step"])


def parts(model: Path) -> dict[str, dict[str, int]]:
  """{component: {"parameters", "bytes"}} of a model's folder; its tokenizer has bytes alone.

  Raises:
    ValueError: a component that is not in half precision.
  """
  out: dict[str, dict[str, int]] = {
    "tokenizer": {"parameters": 0, "bytes": sum(f.stat().st_size for f in model.glob("tok*.json"))}
  }
  for name, facts in manifest.describe(model)["components"].items():
    if odd := sorted(set(facts["dtypes"]) - {HALF}):
      raise ValueError(f"{model}: {name} is {odd[0]}, not {HALF}; export the model again")
    out[name] = {key: facts[key] for key in ("parameters", "bytes")}
  return out


def _read(path: Path) -> dict[str, Any]:
  """A JSON object of the working folder.

  Raises:
    FileNotFoundError: absent, with what writes it. ValueError: not JSON.
  """
  if not path.is_file():
    raise FileNotFoundError(f"{path}: absent; `launch/quickstart.sh --from-scratch` has to finish")
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f"{path}: not valid JSON: {error}") from None


# ---- the card as prose ----------------------------------------------------------------------


def prose(card: Mapping[str, Any], plan: Plan) -> str:
  """README.md of the folder."""
  versions = ", ".join(f"{name} {number}" for name, number in card["versions"].items())
  sections = [
    "---\nlicense: apache-2.0\n---",
    f"# {plan.ships.title}\n\n{plan.ships.text}\nLicence: that of the package, Apache-2.0. "
    "`tools/ship.py` wrote this page; `card.json`\nhas the same for programs.",
    "## Made by\n\n"
    + "".join(f"    {line}\n" for line in card["commands"])
    + f"\nSeed {card['seed']}, {card['cores']} CPU cores; {versions}.",
    "## Parts\n\n"
    + _table(
      ("part", "parameters", "bytes"),
      [(name, v["parameters"] or "", v["bytes"]) for name, v in card["parts"].items()],
    ),
    f"## Seconds\n\nSteps that a run made, of those planned. {_called(card)}\n\n"
    + _table(("stage", "steps", "of", "batch", "seconds"), _stages(card)),
    *(f"## {head}\n\n" + _rates(card["scores"][n]) for n, head in plan.ships.tables.items()),
    *plan.ships.more(card["scores"]),
    "## Files\n\n" + _table(("file", "sha256"), list(card["sha256"].items())),
  ]
  return "\n\n".join(part.rstrip("\n") for part in sections) + "\n"


def _called(card: Mapping[str, Any]) -> str:
  """What the seconds are of."""
  if not round(card["seconds"].get("total", 0)):
    return "Each stage was called alone."
  return "The total is that of whole calls:\nstages that were called alone are not in it."


def _stages(card: Mapping[str, Any]) -> list[tuple[Any, ...]]:
  runs = card["runs"]
  return [
    (name, *(runs[name].values() if name in runs else ("", "", "")), round(value))
    for name, value in card["seconds"].items()
    if name != "total" or round(value)
  ]


def _rates(group: Mapping[str, Any]) -> str:
  rows = [
    (name, f"{v['rate']:.2f}", f"{v['low']:.2f} to {v['high']:.2f}", v["count"])
    for name, v in group.items()
    if isinstance(v, dict) and "rate" in v
  ]
  return _table(("", "right", "95 %", "of"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)
