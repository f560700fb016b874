"""A page of `blip3o compare`: what it holds, and the answers of its raters."""

import json
from pathlib import Path
import re

from blip3o_jax.evaluate import compare


def scripts(path: Path) -> list[tuple[str, dict]]:
  """The page's data: (attributes, JSON) of each script that is data."""
  text = path.read_text(encoding="utf-8")
  pattern = r'<script type="application/json"([^>]*)>(.*?)</script>'
  return [(a, json.loads(data)) for a, data in re.findall(pattern, text, re.DOTALL)]


def answers(path: Path, page: Path, chosen: dict[str, tuple[str, str]], session: str) -> Path:
  """A file as the page gives it: of each pair who is better (a, b or tie), by both questions."""
  about = scripts(page)[0][1]
  left = compare.sides(int(about["seed"]), about["order"]).left

  def side(pair: str, who: str) -> str:
    return "tie" if who == "tie" else "left" if (who == "a") == left[pair] else "right"

  rows = [
    {"id": i, "quality": side(i, q), "alignment": side(i, a), "seconds": 2.5}
    for i, (q, a) in chosen.items()
  ]
  data = {"format": compare.ANSWERS, "ids": sorted(about["order"]), "session": session}
  data |= {name: about[name] for name in ("comparison", "seed", "sealed")}
  path.write_text(json.dumps({**data, "rater": session.title(), "answers": rows}))
  return path


def alike(path: Path, page: Path) -> Path:
  """The answers of a rater who finds all pairs the same."""
  pairs = scripts(page)[0][1]["order"]
  return answers(path, page, dict.fromkeys(pairs, ("tie", "tie")), path.stem)
