"""The miniature's scores over minutes, from every checkpoint that its runs kept.

Questions and prompts are those of the probe, so that the curve may guide changes of the recipe.
"""

import json
from pathlib import Path
from typing import Any

from absl import logging
import numpy as np

from blip3o_jax import files
from blip3o_jax.data import shapes
from blip3o_jax.miniature import models
from blip3o_jax.miniature import scores
from blip3o_jax.miniature import stages
from blip3o_jax.train import checkpoint

# A run -> the curve that it belongs to.
RUNS = {
  "answers": "understanding",
  "backbone": "understanding",
  "generator": "generation",
  "tuned": "generation",
}


def write(work: Path, amounts: stages.Amounts = stages.ALL) -> dict[str, Any]:
  """Writes work/curve.json: {"understanding" and "generation": [[minutes, rate], ...]}.

  Minutes count from the first line that any run logged; a rate is the mean of the question types,
  or of the categories, of `amounts.probe` questions or prompts each. With shipped parts, which no
  run here trained, the curve of understanding is empty.
  """
  # Of shipped parts there is no run.
  runs = {name: kind for name, kind in RUNS.items() if (work / name).is_dir()}
  lines = {name: _times(work / name) for name in ("tower", *runs) if (work / name).is_dir()}
  began = min(time for found in lines.values() for time in found.values())
  asked = stages.probe_prompts(amounts.probe)
  out: dict[str, list[tuple[float, float]]] = {kind: [] for kind in RUNS.values()}
  for name, kind in runs.items():
    for step in checkpoint.steps(work / name):
      # Checkpoints need not fall on steps that were logged.
      at = float(np.interp(step, list(lines[name]), list(lines[name].values())))
      minutes = (at - began) / 60
      if kind == "understanding":
        model = models.reader(work, step, name)
        rates, _ = scores.understanding(model, amounts.probe, seed=stages.PROBE_SEED)
        rate = rates["overall"]["rate"]
      else:
        model = models.assemble(work, name, step)
        rates, _ = scores.generation(model, asked, seed=stages.PROBE_SEED)
        rate = float(np.mean([rates[c]["rate"] for c in shapes.CATEGORIES]))
      logging.info("%s at step %d, minute %.1f: %s %.3f", name, step, minutes, kind, rate)
      out[kind].append((round(minutes, 2), round(rate, 4)))
  files.write_text(work / "curve.json", json.dumps(out, indent=2))
  return {}


def _times(run: Path) -> dict[int, float]:
  """Unix seconds of the steps that a run logged."""
  lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
  return {line["step"]: line["time"] for line in lines}
