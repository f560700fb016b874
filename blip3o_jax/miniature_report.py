"""The last stage of the miniature: what it can do, in numbers, pictures and one page.

report.json has, each rate with count and 95 % interval: `understanding` (accuracy before and after
the generator's training, and by question type), `generation` (by category, overall, before tuning,
unseen combinations, diversity), `reconstruction`, `scorer`; the launch script adds `seconds`.
drawings.png shows the first drawings of each category.
"""

from collections.abc import Sequence
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from blip3o_jax import miniature
from blip3o_jax.data import shapes
from blip3o_jax.evaluate import miniature as evaluate
from blip3o_jax.evaluate import report
from blip3o_jax.evaluate import shapes_check
from blip3o_jax.systems import inference

SHOWN = 12
COLUMNS = 6  # of drawings.png, a row a category
Prompts = Sequence[dict[str, Any]]
# The data set's names of categories and questions -> the report's.
NAMES = {"two_object": "two_objects"}


def write(work: Path, amounts: miniature.Amounts = miniature.ALL) -> dict[str, Any]:
  """Scores work/model on test questions, prompts and pictures; writes the report and the images."""
  model = inference.load(work / "model")
  count = amounts.asked
  numbers, dialogues = _understanding(work, model, count)
  asked = evaluate.test_prompts(count)
  drawn, images = evaluate.generation(model, asked)
  _save_images(work / "images", asked, images)
  first = [i for i in range(len(asked)) if i % count < COLUMNS]
  report.sheet(*_marked(asked, images, first), min(COLUMNS, count)).save(work / "drawings.png")
  numbers["generation"] = _generation(work, model, drawn, count)
  rebuilt, before, after = evaluate.reconstruction(model, count)
  numbers["reconstruction"] = {"psnr": rebuilt["psnr"], "scorer_accuracy": rebuilt["right"]}
  checked = shapes_check.measure(count)
  numbers["scorer"] = {name: checked[name] for name in ("accuracy", "rejection")}
  pictures = {
    "Drawings of test prompts": _drawings(asked, images, count),
    "Dialogues": report.dialogue(dialogues, [shapes.render(d["scene"]) for d in dialogues]),
    "Reconstruction": _row(before[:10], "before") + _row(after[:10], "after"),
  }
  for name, text in (
    ("report.html", _page(work, numbers, pictures)),
    ("report.json", json.dumps(numbers, indent=2)),
  ):
    partial = work / f".{name}.partial"
    partial.write_text(text)
    partial.replace(work / name)
  return {}


def _understanding(
  work: Path, model: inference.Model, count: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """The same questions before and after the generator's training, and the frozen leaves' hashes."""
  earlier = miniature.before_generation(work, model)
  before, _ = evaluate.understanding(earlier, count)
  after, dialogues = evaluate.understanding(model, count)
  overall = after.pop("overall")
  numbers = {
    "accuracy": before["overall"]["rate"],
    "accuracy_after_generation_training": overall["rate"],
    "overall": overall,
    "frozen_sha256_before": miniature.frozen_hash(earlier),
    "frozen_sha256_after": miniature.frozen_hash(model),
    **after,
  }
  return {"understanding": numbers}, dialogues


def _generation(
  work: Path, model: inference.Model, drawn: dict[str, Any], count: int
) -> dict[str, Any]:
  """Rates by category, before and after tuning, on unseen combinations; and the diversity."""
  out = {_name(name): value for name, value in drawn.items()}
  out["unseen_combinations"] = out.pop("unseen")
  earlier = miniature.assemble(work, "generator")
  # Half of the prompts: enough for the comparison, and drawing is what takes the time here.
  pretrained, _ = evaluate.generation(earlier, evaluate.test_prompts(max(1, count // 2)))
  out["pretrained"] = {_name(name): value for name, value in pretrained.items()}
  varied = [shapes.test_prompts(c)[i] for c in shapes.CATEGORIES for i in range(2)]
  out["diversity"], out["diversity_of_data"] = evaluate.diversity(model, varied)
  return out


def _name(tag: str) -> str:
  return NAMES.get(tag, tag)


def _save_images(folder: Path, asked: Prompts, images: np.ndarray) -> None:
  """The pictures that were scored, images/<category>/<number>.png."""
  for number, (prompt, image) in enumerate(zip(asked, images, strict=True)):
    path = folder / _name(prompt["tag"]) / f"{number:04d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def _drawings(asked: Prompts, images: np.ndarray, count: int) -> str:
  """The first drawings of each category, marked by what the scorer says."""
  parts = ["<p>The first of each category, not chosen; green is what the scorer accepts.</p>"]
  for start in range(0, len(asked), count):
    chosen = range(start, start + min(SHOWN, count))
    parts.append(f"<h3>{_name(asked[start]['tag'])}</h3>")
    parts.append(report.figures(*_marked(asked, images, chosen)))
  return "".join(parts)


def _marked(
  asked: Prompts, images: np.ndarray, chosen: Sequence[int]
) -> tuple[list[np.ndarray], list[str], list[str]]:
  """Some of the drawings, their prompts, and "yes" or "no" by what the scorer says."""
  right = [evaluate.scorer.judge(images[i], asked[i]["include"]).correct for i in chosen]
  marks = ["yes" if ok else "no" for ok in right]
  return [images[i] for i in chosen], [asked[i]["prompt"] for i in chosen], marks


def _page(work: Path, numbers: dict[str, Any], pictures: dict[str, str]) -> str:
  def rates(group: str) -> str:
    rows = {k: v for k, v in numbers[group].items() if isinstance(v, dict) and "rate" in v}
    return report.rates_table(rows)

  drawn, rebuilt = numbers["generation"], numbers["reconstruction"]
  sections = [
    ("Drawings of test prompts", pictures["Drawings of test prompts"]),
    (
      "Generation",
      rates("generation")
      + f"<p>Before instruction tuning {drawn['pretrained']['overall']['rate']:.2f} overall. "
      f"Diversity {drawn['diversity']:.2f}, of the data {drawn['diversity_of_data']:.2f}.</p>",
    ),
    ("Understanding", rates("understanding")),
    ("Dialogues", pictures["Dialogues"]),
    (
      f"Reconstruction: {rebuilt['psnr']:.1f} dB, {rebuilt['scorer_accuracy']['rate']:.2f} right",
      pictures["Reconstruction"],
    ),
    ("Losses", "".join(_curves(work))),
  ]
  return report.page("BLIP3-o, the miniature", sections)


def _row(images: np.ndarray, caption: str) -> str:
  return report.figures(list(images), [caption] * len(images), [""] * len(images))


def _curves(work: Path) -> list[str]:
  """One picture of the loss of each run."""
  out = []
  for path in sorted(work.glob("*/metrics.jsonl")):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    points = [(r["step"], r["loss"]) for r in rows if r.get("loss") is not None]
    out.append(report.curve(points, path.parent.name))
  return out
