"""Makes the shipped miniature of a finished run of all parts: its files, its card, its sums.

Takes the model, the report and the runs' records of a folder that `bash launch/quickstart.sh
--from-scratch` has finished. `tools/ship.py` calls it.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import json
from pathlib import Path
import re
import shutil
from typing import Any

import numpy as np

from blip3o_jax import __version__
from blip3o_jax import trees
from blip3o_jax.miniature import parts as frozen_parts
from blip3o_jax.miniature import shipped
from blip3o_jax.systems.blip3o import rows as names
from blip3o_jax.weights import table
from blip3o_jax.weights.safetensors import Tensors

STAGES = ("tower", "autoencoder", "unet", "answers", "backbone", "generator", "tuned")
# Top-level module of the system -> the part as the card calls it.
PARTS = {
  "encoder": "image tower",
  "backbone": "backbone",
  "visual": "vision tower",
  "slots": "queries and DiT",
  "denoiser": "queries and DiT",
}
DECODER = {"unet": "pixel decoder: UNet", "vae": "pixel decoder: autoencoder"}
SCORES = ("understanding", "generation", "reconstruction", "scorer")
TABLES = {"generation": "Drawings of test prompts", "understanding": "Answers to test questions"}


def ship(work: Path, output: Path, picture: Path | None) -> int:
  """Writes `output` whole or not at all; returns its bytes.

  `picture` is where the report's drawings are copied to, if anywhere.

  Raises:
    FileNotFoundError, ValueError: a folder that lacks something, a model that is not the one that
      was scored or not in half precision, more than `shipped.BUDGET` bytes.
    FileExistsError: an output that is neither empty nor such a folder.
  """
  card = make_card(work)
  if output.exists() and any(output.iterdir()) and not (output / shipped.CARD).exists():
    raise FileExistsError(f"{output}: exists, is not empty and holds no {shipped.CARD}")
  partial = output.with_name(f".{output.name}.partial")
  shutil.rmtree(partial, ignore_errors=True)
  shutil.copytree(work / "model", partial)
  (partial / shipped.CARD).write_text(json.dumps(card, indent=1) + "\n")
  (partial / shipped.PROSE).write_text(prose(card))
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
    shutil.copyfile(work / "drawings.png", picture)
  return size


def make_card(work: Path) -> dict[str, Any]:
  """What card.json holds: how the model of a working folder was made and what it scored.

  Raises:
    FileNotFoundError, ValueError: a folder that lacks something, by name.
  """
  kind = _read(work / frozen_parts.RECORD)["parts"]
  if kind != "trained":
    raise ValueError(f"{work}: its frozen parts are {kind}; expected a run with --from-scratch")
  report = _read(work / "report.json")
  if not (work / "drawings.png").is_file():
    raise FileNotFoundError(f"{work / 'drawings.png'}: absent; the stage score writes it")
  for key in (*SCORES, "seconds", "model"):
    if key not in report:
      raise ValueError(f"{work / 'report.json'}: no {key!r}; let the quickstart finish")
  found = shipped.sums(work / "model")
  if found != report["model"]:
    raise ValueError(f"{work / 'model'}: is not the model that report.json scored; score it again")
  runs = {stage: _read(work / stage / "config.json")["train"] for stage in STAGES}
  seeds = {int(run["seed"]) for run in runs.values()}
  if len(seeds) > 1:
    raise ValueError(f"{work}: stages of several seeds, {sorted(seeds)}; a card names one")
  exported = _read(work / "done" / "export.json")
  return {
    "commands": [
      "bash launch/quickstart.sh --from-scratch --workdir DIR",
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
    "scores": {name: report[name] for name in SCORES},
    "parts": parts(work / "model"),
    "sha256": found,
  }


def _made(run: Path) -> int:
  """Steps that a run made; fewer than its config says where it was stopped."""
  lines = (run / "metrics.jsonl").read_text().splitlines()
  return int(json.loads(lines[-1])["step"])


def parts(model: Path) -> dict[str, dict[str, int]]:
  """{part: {"parameters", "bytes"}} of a model's folder; its tokenizer has bytes alone.

  Raises:
    ValueError: a tensor that is not float16, or that belongs to no part.
  """
  out: dict[str, dict[str, int]] = {
    "tokenizer": {"parameters": 0, "bytes": sum(f.stat().st_size for f in model.glob("tok*.json"))}
  }
  main = Tensors(model)
  rows = names.rows(main)
  for name in main:
    module = next((_module(row) for row in rows if re.fullmatch(table.pattern(row.name), name)), "")
    if module not in PARTS:
      raise ValueError(f"{model}: {name} belongs to no part of the card")
    _count(out, PARTS[module], main, name)
  for folder, part in DECODER.items():
    tensors = Tensors(model / "diffusion-decoder" / folder, "diffusion_pytorch_model")
    for name in tensors:
      _count(out, part, tensors, name)
  return out


def _module(row: table.Row) -> str:
  return trees.top(row.paths[0])


def _count(out: dict[str, dict[str, int]], part: str, tensors: Tensors, name: str) -> None:
  dtype = tensors.dtype(name)
  if dtype != np.float16:
    raise ValueError(f"{tensors.path}: {name} is {dtype}, not float16; export the model again")
  size = int(np.prod(tensors[name], dtype=np.int64))
  known = out.setdefault(part, {"parameters": 0, "bytes": 0})
  known["parameters"] += size
  known["bytes"] += size * dtype.itemsize


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


def prose(card: Mapping[str, Any]) -> str:
  """README.md of the folder."""
  scores, rebuilt = card["scores"], card["scores"]["reconstruction"]
  read = scores["understanding"]
  versions = ", ".join(f"{name} {number}" for name, number in card["versions"].items())
  sections = [
    "---\nlicense: apache-2.0\n---",
    "# The trained miniature of blip3o_jax\n\n"
    "A complete BLIP3-o of 64-pixel pictures in the layout of the released checkpoints, in half\n"
    "precision. It was trained from nothing on scenes of coloured shapes that the package draws,\n"
    "and knows nothing else. Licence: that of the package, Apache-2.0. `tools/ship.py` wrote this\n"
    "page; `card.json` has the same for programs.",
    "## Made by\n\n"
    + "".join(f"    {line}\n" for line in card["commands"])
    + f"\nSeed {card['seed']}, {card['cores']} CPU cores; {versions}.",
    "## Parts\n\n"
    + _table(
      ("part", "parameters", "bytes"),
      [(name, v["parameters"] or "", v["bytes"]) for name, v in card["parts"].items()],
    ),
    "## Seconds\n\nSteps that a run made, of those planned. The total is that of whole calls:\n"
    "stages that were called alone are not in it.\n\n"
    + _table(("stage", "steps", "of", "batch", "seconds"), _stages(card)),
    *(f"## {head}\n\n" + _rates(scores[name]) for name, head in TABLES.items()),
    f"Before instruction tuning {_rate(scores['generation']['pretrained']['overall'])} of drawings "
    f"were right. Answers\nwere right in {read['accuracy']:.3f} before the generator's training "
    f"and in {read['accuracy_after_generation_training']:.3f} after it.",
    "## Reconstruction\n\n"
    f"{rebuilt['psnr']:.1f} dB; the same objects found in {_rate(rebuilt['scorer_accuracy'])}.",
    "## Files\n\n" + _table(("file", "sha256"), list(card["sha256"].items())),
  ]
  return "\n\n".join(part.rstrip("\n") for part in sections) + "\n"


def _stages(card: Mapping[str, Any]) -> list[tuple[Any, ...]]:
  runs = card["runs"]
  return [
    (name, *(runs[name].values() if name in runs else ("", "", "")), round(value))
    for name, value in card["seconds"].items()
  ]


def _rates(group: Mapping[str, Any]) -> str:
  rows = [
    (name, f"{v['rate']:.2f}", f"{v['low']:.2f} to {v['high']:.2f}", v["count"])
    for name, v in group.items()
    if isinstance(v, dict) and "rate" in v
  ]
  return _table(("", "right", "95 %", "of"), rows)


def _rate(rate: Mapping[str, float]) -> str:
  return f"{rate['rate']:.2f} ({rate['low']:.2f} to {rate['high']:.2f}, {rate['count']} in all)"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)
