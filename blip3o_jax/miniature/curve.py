"""The miniature's scores over minutes, from every checkpoint that its runs kept.

Questions and prompts are those of the probe, so that the curve may guide changes of the recipe.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
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
  asked = stages.probe_prompts(amounts.probe)

  def rate(name: str, step: int) -> float:
    if RUNS[name] == "understanding":
      model = models.reader(work, step, name)
      rates, _ = scores.understanding(model, amounts.probe, seed=stages.PROBE_SEED)
      return rates["overall"]["rate"]
    model = models.assemble(work, name, step)
    rates, _ = scores.generation(model, asked, seed=stages.PROBE_SEED)
    return scores.mean(rates, shapes.CATEGORIES)

  return write_points(work, RUNS, rate, first=("tower",))


def write_points(
  work: Path,
  kinds: Mapping[str, str],
  rate: Callable[[str, int], float],
  *,
  first: Sequence[str] = (),
) -> dict[str, Any]:
  """Writes work/curve.json: {kind: [[minutes, rate], ...]}, a point for each kept checkpoint.

  Args:
    kinds: {run: the curve that it belongs to}; those that are not there have no points.
    rate: of a run after a step. first: other runs whose first line may begin the minutes.
  """
  runs = [name for name in kinds if (work / name).is_dir()]
  lines = {name: _times(work / name) for name in (*first, *runs) if (work / name).is_dir()}
  began = min(time for found in lines.values() for time in found.values())
  out: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds.values()}
  for name in runs:
    for step in checkpoint.steps(work / name):
      # Checkpoints need not fall on steps that were logged.
      at = float(np.interp(step, list(lines[name]), list(lines[name].values())))
      minutes, found = (at - began) / 60, rate(name, step)
      logging.info("%s at step %d, minute %.1f: %s %.3f", name, step, minutes, kinds[name], found)
      out[kinds[name]].append((round(minutes, 2), round(found, 4)))
  files.write_text(work / "curve.json", json.dumps(out, indent=2))
  return {}


def _times(run: Path) -> dict[int, float]:
  """Unix seconds of the steps that a run logged."""
  lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
  return {line["step"]: line["time"] for line in lines}
