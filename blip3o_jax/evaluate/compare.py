"""Two models side by side, blind: a page for people, and the sign test over what they answered.

Which picture of a pair is A's follows from the comparison's seed and the pair's id, so neither the
page nor the answers say it. Half of the pairs have A left.
"""

import base64
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import hashlib
import html
import io
import json
import math
from pathlib import Path
import re
from typing import Any

import numpy as np
from PIL import Image

from blip3o_jax import files
from blip3o_jax.evaluate import page

TEMPLATE = Path(__file__).with_name("compare.html")
ANSWERS = "blip3o answers 1"
HEAD = 2**14  # characters of a page, in which it says what it is
# The two criteria of the paper's human study, with what each asks for.
QUESTIONS = {
  "quality": (
    "Visual quality",
    "which picture looks better: its appeal, layout, clarity, placement of things, the whole?",
  ),
  "alignment": ("Prompt alignment", "which picture shows better what the text says?"),
}
CHOICES = ("left", "right", "tie")


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two pictures of one prompt.

  Attributes:
    id: of the pair, within its comparison. a, b: give uint8[H, W, 3].
  """

  id: str
  prompt: str
  a: Callable[[], np.ndarray]
  b: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Sides:
  """Who stands where, and in which order pairs are shown."""

  left: Mapping[str, bool]  # of a pair: whether A is left
  order: Sequence[str]


def sides(seed: int, ids: Sequence[str]) -> Sides:
  """What the seed says of pairs: half of them, one more or less, have A left."""

  def ranked(what: str) -> list[str]:
    return sorted(ids, key=lambda i: hashlib.sha256(f"{what} {seed} {i}".encode()).digest())

  first = set(ranked("left")[: (len(ids) + seed % 2) // 2])
  return Sides({i: i in first for i in ids}, ranked("order"))


def write(
  path: Path, pairs: Sequence[Pair], seed: int, about: Mapping[str, Any], quality: int = 0
) -> str:
  """Writes the page, and returns the comparison's fingerprint, 16 digits.

  Args:
    about: of JSON, what the answers say of A and B, sealed so that it does not meet the eye: `a`
      and `b`, with a name each.
    quality: of WebP, 1 to 100; 0 keeps pictures as they are, as PNG.

  Raises:
    ValueError: the file is there, and is another comparison.
  """
  ids = [pair.id for pair in pairs]
  placed = sides(seed, ids)
  text = [json.dumps([pair.id, pair.prompt]) for pair in pairs]
  sealed = base64.b64encode(json.dumps(about).encode()).decode()
  known = hashlib.sha256(json.dumps([seed, *text, sealed]).encode()).hexdigest()[:16]
  if path.exists() and (before := comparison_of(path)) != known:
    raise ValueError(
      f"{path}: is another comparison ({before or 'none of ours'}), whose answers would not belong "
      "to this one; name another --output"
    )
  header = {
    "comparison": known,
    "seed": str(seed),  # JavaScript has no whole numbers beyond 2**53
    "order": placed.order,
    "questions": QUESTIONS,
    "sealed": sealed,
  }
  before, _, rest = TEMPLATE.read_text(encoding="utf-8").partition("<!--ABOUT-->")
  middle, _, after = rest.partition("<!--PAIRS-->")
  with files.replacing(path) as partial, partial.open("w", encoding="utf-8") as out:
    out.write(f"{before}{_json(header)}{middle}")
    for pair in pairs:
      a, b = _data(pair.a(), quality), _data(pair.b(), quality)
      left, right = (a, b) if placed.left[pair.id] else (b, a)
      data = _json({"prompt": pair.prompt, "left": left, "right": right})
      out.write(
        f'<script type="application/json" class="pair" data-id="{html.escape(pair.id)}">{data}'
        "</script>\n"
      )
    out.write(after)
  return known


def comparison_of(path: Path) -> str:
  """The fingerprint of the comparison that a page shows; "" for another file."""
  with path.open(encoding="utf-8", errors="replace") as page:
    found = re.search(r'"comparison": "([0-9a-f]{16})"', page.read(HEAD))
  return found[1] if found else ""


def _json(value: Any) -> str:
  """JSON that may stand in a script element, whatever texts are in it."""
  return json.dumps(value).replace("<", "\\u003c")


def _data(pixels: np.ndarray, quality: int) -> str:
  """A picture as a data URL, without the metadata that would say whose it is."""
  out = io.BytesIO()
  if quality:
    Image.fromarray(pixels).save(out, "WEBP", quality=quality)
  else:
    Image.fromarray(pixels).save(out, "PNG")
  return (
    f"data:image/{'webp' if quality else 'png'};base64,{base64.b64encode(out.getvalue()).decode()}"
  )


# The answers --------------------------------------------------------------------------------------


def sign_test(wins: int, losses: int) -> float:
  """The two-sided exact p-value of wins among wins + losses, if each were as likely as the other.

  Ties are left out, as the test has it; without a win or a loss it is 1.
  """
  n = wins + losses
  tail = term = 1  # C(n, 0)
  for k in range(min(wins, losses)):
    term = term * (n - k) // (k + 1)
    tail += term
  return min(1.0, 2 * tail / 2**n) if wins != losses else 1.0


def read(path: Path) -> dict[str, Any]:
  """Answers that a page gave.

  Raises:
    FileNotFoundError: no such file. ValueError: no such answers, by field.
  """
  if not path.is_file():
    raise FileNotFoundError(f"{path}: no such file of answers")
  found = files.read_json(path)
  if found.get("format") != ANSWERS:
    raise ValueError(f"{path}: format is {found.get('format')!r}; expected {ANSWERS!r}")
  kinds = {"comparison": str, "seed": str, "ids": list, "sealed": str, "session": str}
  for name, kind in {**kinds, "answers": list}.items():
    if not isinstance(found.get(name), kind):
      raise ValueError(f"{path}: {name} is {found.get(name)!r}; expected a {kind.__name__}")
  try:
    about = json.loads(base64.b64decode(found["sealed"], validate=True))
    names = [str(about[side]["name"]) for side in "ab"]
    seed = int(found["seed"])
  except (ValueError, KeyError, TypeError):
    raise ValueError(f"{path}: sealed or seed: not as the page wrote it") from None
  seen: set[str] = set()
  for i, row in enumerate(found["answers"]):
    where = f"{path}: answers[{i}]"
    if not isinstance(row, dict) or row.get("id") not in found["ids"] or row["id"] in seen:
      raise ValueError(f"{where}: no pair of the comparison, or one that stands there twice")
    seen.add(row["id"])
    for name in QUESTIONS:
      if row.get(name) not in (*CHOICES, None):
        raise ValueError(f"{where}: {name} is {row[name]!r}; expected one of {', '.join(CHOICES)}")
  return {**found, "seed": seed, "names": names, "about": about}


def score(paths: Sequence[Path]) -> dict[str, Any]:
  """What people answered: for each question judgements and pairs, and the sign test of both.

  A pair is won by whom most of its judgements prefer, ties left out. Judgements of one pair are not
  independent of each other, pairs are.

  Raises:
    FileNotFoundError, ValueError: as `read`; answers of several comparisons, or one session twice.
  """
  found = [read(path) for path in paths]
  sessions: dict[str, Path] = {}
  for path, each in zip(paths, found, strict=True):
    if (each["comparison"], each["sealed"]) != (found[0]["comparison"], found[0]["sealed"]):
      raise ValueError(f"{path}: answers about another comparison than {paths[0]}")
    if each["session"] in sessions:
      raise ValueError(
        f"{path}: of the same session as {sessions[each['session']]}; give the later one alone"
      )
    sessions[each["session"]] = path
  left = sides(found[0]["seed"], found[0]["ids"]).left
  out: dict[str, Any] = {
    "comparison": found[0]["comparison"],
    **{side: found[0]["about"][side] for side in "ab"},
    "seed": found[0]["seed"],
    "pairs": len(left),
    "raters": [each.get("rater", "") for each in found],
    "files": [str(path) for path in paths],
    "questions": {},
  }
  for name, (title, question) in QUESTIONS.items():
    votes: dict[str, list[int]] = {}  # 1 for A, -1 for B, 0 for neither
    for each in found:
      for row in each["answers"]:
        if choice := row.get(name):
          side = 0 if choice == "tie" else 1 if (choice == "left") == left[row["id"]] else -1
          votes.setdefault(row["id"], []).append(side)
    judged = [side for each in votes.values() for side in each]
    out["questions"][name] = {
      "title": title,
      "question": question,
      "judgements": _counts(judged),
      "pairs": _counts([int(np.sign(sum(each))) for each in votes.values()]),
    }
  return out


def _counts(votes: Sequence[int]) -> dict[str, Any]:
  a, b = votes.count(1), votes.count(-1)
  shares = {f"{name}_share": n / len(votes) for name, n in (("a", a), ("b", b)) if votes}
  return {"a": a, "ties": votes.count(0), "b": b, **shares, "p": sign_test(a, b)}


def lines(found: Mapping[str, Any]) -> list[str]:
  """The result in words."""
  count = len(found["raters"])
  raters = f"{count} rater{'s' if count > 1 else ''}"
  out = [
    f"A: {found['a']['name']}",
    f"B: {found['b']['name']}",
    f"{found['pairs']} pairs, {raters}",
  ]
  for each in found["questions"].values():
    out.append(f"{each['title']}:")
    for what in ("judgements", "pairs"):
      n = each[what]
      counts = f"A {n['a']}, the same {n['ties']}, B {n['b']}"
      out.append(f"  {what + ':':<12}{counts}; sign test p = {_small(n['p'])}")
  return out


def report(found: Mapping[str, Any]) -> str:
  """The result as a page."""
  names = "".join(f"<p>{s.upper()}: {html.escape(found[s]['name'])}</p>" for s in "ab")
  sections = [("Who", f"{names}<p>{found['pairs']} pairs, {len(found['raters'])} raters</p>")]
  for each in found["questions"].values():
    rows = "".join(
      f"<tr><td>{what}</td><td>{n['a']}</td><td>{n['ties']}</td><td>{n['b']}</td>"
      f"<td>{_small(n['p'])}</td></tr>"
      for what in ("judgements", "pairs")
      for n in (each[what],)
    )
    head = "<tr><th></th><th>A better</th><th>the same</th><th>B better</th><th>p</th></tr>"
    text = f"<p>{html.escape(each['question'])}</p><table>{head}{rows}</table>"
    sections.append((each["title"], text))
  note = (
    "<p>p: two-sided exact sign test, ties left out. Judgements of one pair by several raters are "
    "not independent; a pair counts for whom most of its judgements prefer.</p>"
  )
  return page.page("Which picture is better?", [*sections, ("How to read it", note)])


def _small(p: float) -> str:
  return f"{p:.4f}" if p >= 1e-3 or not math.isfinite(p) else f"{p:.2e}"
