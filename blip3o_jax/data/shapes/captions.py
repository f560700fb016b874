"""Words for scenes: short and long captions, the six test categories, and what is held out.

A short text is held out, and then no caption is ever that text, if its hash says so; a coloured
pair ("a red circle and a blue square") or a plain relation ("a circle left of a square") is held
out as content, in every wording and order. Test prompts are drawn from what is held out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
import itertools
from typing import Any
from typing import Final
from typing import Literal
from typing import get_args

import numpy as np

from blip3o_jax.data.shapes.scenes import COLORS
from blip3o_jax.data.shapes.scenes import HELD_OUT_PAIRS
from blip3o_jax.data.shapes.scenes import INVERSE
from blip3o_jax.data.shapes.scenes import RELATIONS
from blip3o_jax.data.shapes.scenes import SHAPES
from blip3o_jax.data.shapes.scenes import Object
from blip3o_jax.data.shapes.scenes import Scene
from blip3o_jax.data.shapes.scenes import fraction
from blip3o_jax.data.shapes.scenes import held_out_combination
from blip3o_jax.data.shapes.scenes import make_rng
from blip3o_jax.data.shapes.scenes import pairs
from blip3o_jax.data.shapes.scenes import relation
from blip3o_jax.data.shapes.scenes import scene_of

Category = Literal[
  "single_object", "two_object", "counting", "colors", "position", "color_attribution"
]
CATEGORIES: Final[tuple[str, ...]] = get_args(Category)
PROMPTS_PER_CATEGORY: Final = 120
NUMBERS: Final = ("zero", "one", "two", "three", "four")

_PREFIXES: Final = ("", "there is", "a photo of", "a picture of", "an image of")
_ARTICLES: Final = ("a", "one", "a single")
_SUFFIXES: Final = (
  "",
  "on a white background",
  "on a plain background",
  "on a light background",
)
_HELD_OUT_TEXTS: Final = 0.45
_HELD_OUT_RELATIONS: Final = 0.25


@dataclass(frozen=True)
class Mention:
  """A group of like objects as a caption names it; "" where it does not say."""

  count: int
  shape: str
  color: str = ""
  size: str = ""
  place: str = ""

  def words(self, article: str) -> str:
    """`three green stars`, or `a small red circle at the top left`."""
    number = article if self.count == 1 else NUMBERS[self.count]
    name = self.shape if self.count == 1 else plural(self.shape)
    text = " ".join(filter(None, (number, self.size, self.color, name)))
    return f"{text} at the {self.place}" if self.place else text


def plural(shape: str) -> str:
  """`circles`, `crosses`."""
  return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def cell_words(row: int, col: int) -> str:
  """`row one column two`, of a cell counted from zero."""
  return f"row {NUMBERS[row + 1]} column {NUMBERS[col + 1]}"


def listing(parts: Sequence[str]) -> str:
  """`a`, `a and b`, `a, b and c`."""
  return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def held_out_text(text: str) -> bool:
  """Whether no caption may ever be exactly this text."""
  return fraction("text " + text) < _HELD_OUT_TEXTS


@cache
def held_out_relation(first: str, how: str, second: str) -> bool:
  """Whether no caption may say `a <first> <how> a <second>` (without colours), or its inverse."""
  if first > second:
    first, how, second = second, INVERSE[how], first
  return fraction(f"relation {first} {how} {second}") < _HELD_OUT_RELATIONS


def _dress(body: str, many: bool, rng: np.random.Generator) -> str:
  """Puts a body into one of 20 frames; half of the time none."""
  prefix, suffix = "", ""
  if rng.random() < 0.6:
    prefix = _PREFIXES[int(rng.integers(len(_PREFIXES)))]
  if rng.random() < 0.4:
    suffix = _SUFFIXES[int(rng.integers(len(_SUFFIXES)))]
  return _frame(body, many, prefix, suffix)


def _frame(body: str, many: bool, prefix: str, suffix: str) -> str:
  prefix = "there are" if many and prefix == "there is" else prefix
  return " ".join(filter(None, (prefix, body, suffix)))


def _article(rng: np.random.Generator) -> str:
  return "a" if rng.random() < 0.7 else _ARTICLES[int(rng.integers(len(_ARTICLES)))]


def _groups(objects: Sequence[Object], colored: bool) -> list[Mention]:
  names = [(o.shape, o.color if colored else "") for o in objects]
  return [Mention(names.count(name), *name) for name in dict.fromkeys(names)]


def _listed(mentions: Sequence[Mention], rng: np.random.Generator) -> str:
  """A caption that lists every group, or "" if its content is held out."""
  if len(mentions) == 2 and all(m.count == 1 and m.color for m in mentions):
    a, b = mentions
    if held_out_combination((a.color, a.shape), (b.color, b.shape)):
      return ""
  article = _article(rng)
  order = [mentions[int(i)] for i in rng.permutation(len(mentions))]
  return _dress(listing([m.words(article) for m in order]), order[0].count > 1, rng)


def _related(a: Object, b: Object, how: str, rng: np.random.Generator, colored: bool = True) -> str:
  """A caption that states how `a` stands to `b`, or "" if its content is held out."""
  if rng.random() < 0.5:
    a, b, how = b, a, INVERSE[how]
  if colored and held_out_combination((a.color, a.shape), (b.color, b.shape)):
    return ""
  if not colored and held_out_relation(a.shape, how, b.shape):
    return ""
  article = _article(rng)
  first, second = (Mention(1, o.shape, o.color if colored else "").words(article) for o in (a, b))
  return _dress(f"{first} {how} {second}", False, rng)


def _short(scene: Scene, rng: np.random.Generator) -> str:
  objects = scene.objects
  colored = bool(rng.random() < 0.75)
  if len(objects) == 1:
    (o,) = objects
    size = o.size if rng.random() < 0.4 else ""
    place = o.place if rng.random() < 0.4 else ""
    mention = Mention(1, o.shape, o.color if colored else "", size, place)
    return _dress(mention.words(_article(rng)), False, rng)
  mentions = _groups(objects, colored)
  if len(objects) == 2 and len(mentions) == 2 and rng.random() < 0.6:
    a, b = objects
    how = relation(a, b)
    if how and (colored or a.shape != b.shape):
      return _related(a, b, how, rng, colored)
  return _listed(mentions, rng)


def caption(scene: Scene, variant: int = 0) -> str:
  """A short caption (about 3 to 18 words) that counts every object of the scene.

  Args:
    variant: different wordings of one scene; a pure function of (scene, variant).
  """
  return _first_allowed(lambda rng: _short(scene, rng), scene, variant)


def _first_allowed(draw: Any, scene: Scene, variant: int) -> str:
  rng = make_rng(scene.split, scene.seed, scene.index, 2 + 2 * variant)
  for _ in range(1000):
    text = draw(rng)
    if text and not held_out_text(text):
      return text
  raise ValueError(f"every wording of scene {scene.split} {scene.index} is held out")


def long_caption(scene: Scene, variant: int = 0, *, quadrants: bool | None = None) -> str:
  """Every object with its size (if small or large), colour, shape and place; at most 49 words.

  Args:
    variant: different orders and wordings.
    quadrants: places as `top left` (True), as `row one column two` (False), or either (None).
  """
  rng = make_rng(scene.split, scene.seed, scene.index, 3 + 2 * variant)
  drawn = bool(rng.random() < 0.5)
  coarse = drawn if quadrants is None else quadrants
  parts = []
  for i in rng.permutation(len(scene.objects)):
    o = scene.objects[int(i)]
    words = Mention(1, o.shape, o.color, o.size).words("a")
    parts.append(f"{words} at {'the ' + o.place if coarse else cell_words(o.row, o.col)}")
  return _dress(listing(parts), False, rng)


# --- the six categories


def _entry(shape: str, color: str = "", count: int = 1) -> dict[str, Any]:
  return {"class": shape, "count": count} | ({"color": color} if color else {})


def category_include(scene: Scene, category: Category | str) -> list[dict[str, Any]]:
  """What a caption of `category_caption` asks of its scene: metadata as of `test_prompts`.

  Raises:
    ValueError: an unknown category.
  """
  _check(category)
  colored = category in ("colors", "color_attribution")
  out = [_entry(m.shape, m.color, m.count) for m in _groups(scene.objects, colored)]
  if category == "position":
    out[1]["position"] = [relation(scene.objects[1], scene.objects[0]), 0]
  return out


def category_caption(
  seed: int, index: int, category: Category | str, split: str = "generator"
) -> tuple[Scene, str]:
  """A scene of a test category and a caption in the manner of its prompts, for instruction tuning.

  The scene is of `split` (HELD_OUT_PAIRS as there) and the caption is never a test prompt.

  Raises:
    ValueError: an unknown category or split.
  """
  _check(category)
  rng = make_rng(split, seed, index, 1 << 20)
  while True:
    include = _draw(category, split, rng)
    scene = scene_of(include, seed, index, split)
    objects = scene.objects
    if len(objects) == 2 and held_out_combination(
      *((o.color, o.shape) for o in objects)  # type: ignore[arg-type]
    ):
      seed += 1 << 32  # another draw of the free colours
      continue
    for _ in range(40):
      text = _category_words(scene, category, rng)
      if text and not held_out_text(text):
        return scene, text


def _draw(category: str, split: str, rng: np.random.Generator) -> list[dict[str, Any]]:
  """Random metadata of a category within the split's pairs."""
  allowed = pairs(split)

  def pick(options: Sequence[tuple[str, str]]) -> tuple[str, str]:
    return options[int(rng.integers(len(options)))]

  color, shape = pick(allowed)
  if category in ("single_object", "colors"):
    return [_entry(shape, color)]
  if category == "counting":
    return [_entry(shape, color if rng.random() < 0.5 else "", int(rng.integers(2, 5)))]
  other = pick([p for p in allowed if p[1] != shape])
  if category == "color_attribution":
    other = pick([p for p in allowed if p[1] != shape and p[0] != color])
  out = [_entry(shape, color), _entry(other[1], other[0])]
  if category == "position":
    out[1]["position"] = [RELATIONS[int(rng.integers(4))], 0]
  return out


def _category_words(scene: Scene, category: str, rng: np.random.Generator) -> str:
  colored = category in ("colors", "color_attribution")
  if category == "position":
    b, a = scene.objects
    return _related(a, b, relation(a, b), rng, colored=False)
  return _listed(_groups(scene.objects, colored), rng)


def _check(category: str) -> None:
  if category not in CATEGORIES:
    raise ValueError(f"category {category!r}: expected one of {', '.join(CATEGORIES)}")


def _bodies(category: str) -> list[tuple[str, bool, list[dict[str, Any]]]]:
  """Every (body, whether it opens with a plural, metadata) that a category's prompts may have."""
  out = []
  every = list(itertools.product(COLORS, SHAPES))
  for article in _ARTICLES:

    def a(shape: str, color: str = "", article: str = article) -> str:
      return Mention(1, shape, color).words(article)

    if category == "single_object":
      out += [(a(s), False, [_entry(s)]) for s in SHAPES]
    if category == "colors":
      out += [(a(s, c), False, [_entry(s, c)]) for c, s in every]
    if category == "two_object":
      two = itertools.permutations(SHAPES, 2)
      out += [(f"{a(s)} and {a(t)}", False, [_entry(s), _entry(t)]) for s, t in two]
    if category == "position":
      every_relation = itertools.product(SHAPES, RELATIONS, SHAPES)
      out += [
        (f"{a(s)} {how} {a(t)}", False, [_entry(t), _entry(s) | {"position": [how, 0]}])
        for s, how, t in every_relation
        if s != t and held_out_relation(s, how, t)
      ]
    if category == "color_attribution":
      out += [
        (f"{a(s, c)} and {a(t, d)}", False, [_entry(s, c), _entry(t, d)])
        for (c, s), (d, t) in itertools.permutations(every, 2)
        if held_out_combination((c, s), (d, t))
      ]
  if category == "counting":
    counts = itertools.product(SHAPES, range(2, 5))
    out += [(Mention(n, s).words("a"), True, [_entry(s, count=n)]) for s, n in counts]
  return out


@cache
def _prompts(category: str) -> tuple[dict[str, Any], ...]:
  by_text = category not in ("position", "color_attribution")
  kinds: dict[str, list[tuple[float, str, list[dict[str, Any]]]]] = {}
  for body, many, include in _bodies(category):
    for prefix, suffix in itertools.product(_PREFIXES, _SUFFIXES):
      text = _frame(body, many, prefix, suffix)
      if not by_text or held_out_text(text):
        kinds.setdefault(_kind(category, include), []).append(
          (fraction("prompt " + text), text, include)
        )
  # Round robin over what is asked for, so that each shape, number or pair has its share.
  queues = [sorted(kinds[k], key=lambda item: item[0]) for k in sorted(kinds, key=fraction)]
  rounds = itertools.chain.from_iterable(itertools.zip_longest(*queues))
  chosen = [item for item in rounds if item is not None][:PROMPTS_PER_CATEGORY]
  first = CATEGORIES.index(category) * PROMPTS_PER_CATEGORY
  return tuple(
    {
      "tag": category,
      "include": include,
      "prompt": text,
      "index": first + i,
      "unseen": any((e.get("color"), e["class"]) in HELD_OUT_PAIRS for e in include),
    }
    for i, (_, text, include) in enumerate(chosen)
  )


def _kind(category: str, include: Sequence[dict[str, Any]]) -> str:
  if category == "color_attribution":
    names = sorted(f"{e['color']} {e['class']}" for e in include)
  else:
    names = [f"{e['count']} {e.get('color', '')} {e['class']} {e.get('position')}" for e in include]
  return " + ".join(names)


def test_prompts(category: Category | str) -> list[dict[str, Any]]:
  """The 120 test prompts of a category; no caption of any split is ever one of them.

  Returns:
    [{tag, include: [{class, count, color?, position?: [relation, entry]}], prompt, index, unseen}],
    as GenEval's metadata (spec section 8), `unseen` where a HELD_OUT_PAIRS pair is asked for. The
    order mixes contents, so any first n are a fair sample.

  Raises:
    ValueError: an unknown category.
  """
  _check(category)
  return [dict(p, include=[dict(e) for e in p["include"]]) for p in _prompts(category)]


test_prompts.__test__ = False  # type: ignore[attr-defined]  # the name is not for pytest
