"""The last stages of the miniature: what it can do, in numbers, pictures and one page.

report.json has, each rate with count and 95 % interval: `understanding` (accuracy before and after
the generator's training, and by question type), `generation` (by category, overall, before tuning,
unseen combinations, diversity), `reconstruction`, `scorer`, `model` (the sha256 of the files that
were scored). In a folder of shipped parts `shipped.generation` has the same keys for the shipped
generator, drawn here from the same prompts and seeds; its `pretrained`, whose weights do not ship,
is that of the card. The launch script adds `seconds`. drawings.png shows the first drawings of
each category.

`draw_pretrained`, `score` and `compare` leave what they found in scores/, and may run beside other
stages, each on a core; `write` puts it together.
"""

from collections.abc import Sequence
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from blip3o_jax import files
from blip3o_jax.data import shapes
from blip3o_jax.evaluate import page
from blip3o_jax.evaluate import shapes as scorer
from blip3o_jax.evaluate.shapes import check
from blip3o_jax.evaluate.shapes import edits as edit_scorer
from blip3o_jax.miniature import models
from blip3o_jax.miniature import scores
from blip3o_jax.miniature import shipped
from blip3o_jax.miniature import stages
from blip3o_jax.systems.blip3o import verbs

SHOWN = 12
COLUMNS = 6  # of drawings.png, a row a category
Prompts = Sequence[dict[str, Any]]
TITLE = "BLIP3-o, the miniature"
# The data set's names of categories and questions -> the report's.
NAMES = {"two_object": "two_objects"}
DRAWN = "Drawings of test prompts"  # headings of the page
SHIPPED = "Drawings of the shipped miniature, same prompts and seeds"
TALKED, REBUILT = "Dialogues", "Reconstruction"
EDITED = "Test edits: before, as it should be, output"


def score(work: Path, amounts: stages.Amounts = stages.ALL) -> dict[str, Any]:
  """Scores work/model on test questions, prompts and pictures: scores/model.json, drawings.png."""
  model = verbs.load(work / "model")
  count = amounts.asked
  numbers, dialogues = _understanding(work, model, count)
  asked = scores.test_prompts(count)
  numbers["generation"], images = _generation(model, asked, amounts.alike)
  _save_images(work / "images", asked, images)
  first = [i for i in range(len(asked)) if i % count < COLUMNS]
  page.sheet(*_marked(asked, images, first), min(COLUMNS, count)).save(work / "drawings.png")
  rebuilt, before, after = scores.reconstruction(model, count)
  numbers["reconstruction"] = {"psnr": rebuilt["psnr"], "scorer_accuracy": rebuilt["right"]}
  numbers["model"] = shipped.sums(work / "model")
  pictures = {
    DRAWN: _drawings(asked, images, count),
    TALKED: page.dialogue(dialogues, [shapes.render(d["scene"]) for d in dialogues]),
    REBUILT: _row(before[:10], "before") + _row(after[:10], "after"),
  }
  _leave(work, "model", numbers, pictures)
  return {}


def score_edits(
  work: Path, model: scores.Editing, amounts: stages.Amounts = stages.ALL
) -> dict[str, Any]:
  """Scores answers, drawings and edits of a loaded model: scores/model.json, edits.png.

  Beside the edits stand their bounds: the input itself in place of an output, which no edit
  accepts, and the picture that was asked for.
  """
  count = amounts.asked
  answered, dialogues = scores.understanding(model, count)
  asked, edits = scores.test_prompts(count), scores.edits_of(count)
  drawn, images = scores.generation(model, asked)
  generated = {_name(name): value for name, value in drawn.items()}
  generated["unseen_combinations"] = generated.pop("unseen")
  edited, outputs = scores.editing(model, edits)
  copied = edit_scorer.score_edits(shapes.render_many([e.before for e in edits]), edits)
  ideal = edit_scorer.score_edits(shapes.render_many([e.after for e in edits]), edits)
  numbers = {
    "understanding": answered,
    "generation": generated,
    "editing": edited,
    "editing_bounds": {"input": copied["overall"], "target": ideal["overall"]},
    "model": shipped.sums(work / "model"),
  }
  _save_images(work / "images", asked, images)
  shown = [i for i in range(len(edits)) if i % count < COLUMNS]
  chosen = [edits[i] for i in shown]
  edit_scorer.sheet(outputs[shown], chosen).save(work / "edits.png")
  page.sheet(
    *_marked(asked, images, [i for i in range(len(asked)) if i % count < COLUMNS]),
    min(COLUMNS, count),
  ).save(work / "drawings.png")
  pictures = {
    EDITED: page.figures(*edit_scorer.triples(outputs[shown], chosen)),
    DRAWN: _drawings(asked, images, count),
    TALKED: page.dialogue(dialogues, [shapes.render(d["scene"]) for d in dialogues]),
  }
  _leave(work, "model", numbers, pictures)
  return {}


def draw_pretrained(work: Path, amounts: stages.Amounts = stages.ALL) -> dict[str, Any]:
  """Scores the generator before its tuning, and the scorer itself: scores/pretrained.json."""
  count = amounts.asked
  earlier = models.assemble(work, "generator")
  # Half of the prompts: enough for the comparison, and drawing is what takes the time here.
  pretrained, _ = scores.generation(earlier, scores.test_prompts(max(1, count // 2)))
  checked = check.measure(count)
  numbers = {
    "pretrained": {_name(name): value for name, value in pretrained.items()},
    "scorer": {name: checked[name] for name in ("accuracy", "rejection")},
  }
  _leave(work, "pretrained", numbers, {})
  return {}


def compare(work: Path, amounts: stages.Amounts = stages.ALL) -> dict[str, Any]:
  """Scores the shipped generator on the prompts and seeds of `score`: scores/shipped.json."""
  asked = scores.test_prompts(amounts.asked)
  drawn, images = _generation(verbs.load(shipped.directory()), asked, amounts.alike)
  drawn["pretrained"] = shipped.card()["scores"]["generation"]["pretrained"]
  pictures = {SHIPPED: _drawings(asked, images, amounts.asked)}
  _leave(work, "shipped", {"shipped": {"generation": drawn}}, pictures)
  return {}


def write(work: Path, title: str = TITLE) -> dict[str, Any]:
  """Writes report.html and report.json of what the other stages left in scores/."""
  numbers, pictures = _left(work, "model")
  if (work / "scores" / "pretrained.json").exists():
    earlier, _ = _left(work, "pretrained")
    numbers["generation"]["pretrained"] = earlier["pretrained"]
    numbers["scorer"] = earlier["scorer"]
  if (work / "scores" / "shipped.json").exists():
    beside, more = _left(work, "shipped")
    numbers |= beside
    pictures |= more
  files.write_text(work / "report.html", _page(work, title, numbers, pictures))
  files.write_text(work / "report.json", json.dumps(numbers, indent=2))
  return {}


def _leave(work: Path, name: str, numbers: dict[str, Any], pictures: dict[str, str]) -> None:
  """Keeps numbers and the HTML of pictures by heading, for the report."""
  (work / "scores").mkdir(exist_ok=True)
  files.write_text(
    work / "scores" / f"{name}.json", json.dumps({"numbers": numbers, "pictures": pictures})
  )


def _left(work: Path, name: str) -> tuple[dict[str, Any], dict[str, str]]:
  found = json.loads((work / "scores" / f"{name}.json").read_text())
  return found["numbers"], found["pictures"]


def _understanding(
  work: Path, model: verbs.Model, count: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """The same questions before and after the generator's training, and the frozen leaves' hashes."""
  earlier = models.before_generation(work, model)
  before, _ = scores.understanding(earlier, count)
  after, dialogues = scores.understanding(model, count)
  overall = after.pop("overall")
  numbers = {
    "accuracy": before["overall"]["rate"],
    "accuracy_after_generation_training": overall["rate"],
    "overall": overall,
    "frozen_sha256_before": models.frozen_hash(earlier),
    "frozen_sha256_after": models.frozen_hash(model),
    **after,
  }
  return {"understanding": numbers}, dialogues


def _generation(
  model: verbs.Model, asked: Prompts, alike: int
) -> tuple[dict[str, Any], np.ndarray]:
  """Rates by category and of unseen combinations, the diversity; and the pictures."""
  drawn, images = scores.generation(model, asked)
  out: dict[str, Any] = {_name(name): value for name, value in drawn.items()}
  out["unseen_combinations"] = out.pop("unseen")
  varied = [shapes.test_prompts(c)[i] for c in shapes.CATEGORIES for i in range(2)]
  out["diversity"], out["diversity_of_data"] = scores.diversity(model, varied, alike)
  return out, images


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
    parts.append(page.figures(*_marked(asked, images, chosen)))
  return "".join(parts)


def _marked(
  asked: Prompts, images: np.ndarray, chosen: Sequence[int]
) -> tuple[list[np.ndarray], list[str], list[str]]:
  """Some of the drawings, their prompts, and "yes" or "no" by what the scorer says."""
  right = [scorer.judge(images[i], asked[i]["include"]).correct for i in chosen]
  marks = ["yes" if ok else "no" for ok in right]
  return [images[i] for i in chosen], [asked[i]["prompt"] for i in chosen], marks


def _page(work: Path, head: str, numbers: dict[str, Any], pictures: dict[str, str]) -> str:
  drawn = numbers["generation"]
  beside = numbers.get("shipped", {}).get("generation")
  tables = {"": _rates(drawn)} if beside is None else {"new": _rates(drawn)}
  notes = [_note("This generator: before", drawn)] if "pretrained" in drawn else []
  if beside is not None:
    tables["shipped"] = _rates(beside)
    notes.append(_note("The shipped one: before", beside))
  sections = []
  if "editing" in numbers:
    sections += [
      (EDITED, pictures[EDITED]),
      ("Editing", page.rates_table({"": _rates(numbers["editing"] | numbers["editing_bounds"])})),
    ]
  sections += [
    (DRAWN, pictures[DRAWN]),
    *((name, pictures[name]) for name in (SHIPPED,) if name in pictures),
    ("Generation", page.rates_table(tables) + "".join(notes)),
    ("Understanding", page.rates_table({"": _rates(numbers["understanding"])})),
    (TALKED, pictures[TALKED]),
  ]
  if rebuilt := numbers.get("reconstruction"):
    right = rebuilt["scorer_accuracy"]["rate"]
    title = f"{REBUILT}: {rebuilt['psnr']:.1f} dB, {right:.2f} right"
    sections.append((title, pictures[REBUILT]))
  sections.append(("Losses", "".join(_curves(work))))
  return page.page(head, sections)


def _rates(group: dict[str, Any]) -> dict[str, Any]:
  return {k: v for k, v in group.items() if isinstance(v, dict) and "rate" in v}


def _note(head: str, drawn: dict[str, Any]) -> str:
  return (
    f"<p>{head} instruction tuning {drawn['pretrained']['overall']['rate']:.2f} overall; "
    f"diversity {drawn['diversity']:.2f}, of the data {drawn['diversity_of_data']:.2f}.</p>"
  )


def _row(images: np.ndarray, caption: str) -> str:
  return page.figures(list(images), [caption] * len(images), [""] * len(images))


def _curves(work: Path) -> list[str]:
  """One picture of the loss of each run."""
  out = []
  for path in sorted(work.glob("*/metrics.jsonl")):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    points = [(r["step"], r["loss"]) for r in rows if r.get("loss") is not None]
    out.append(page.curve(points, path.parent.name))
  return out
