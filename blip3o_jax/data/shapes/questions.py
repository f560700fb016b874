"""Questions about scenes with one-word or two-word answers, on pictures or on captions.

Five kinds; each question is answerable from the picture alone. `text_question` gives the caption
that answers it in place of the picture, so a language model can be taught without images.
"""

from collections.abc import Sequence
import dataclasses
from dataclasses import dataclass
import itertools
from typing import Final
from typing import Literal
from typing import get_args

import numpy as np

from blip3o_jax.data.shapes.captions import NUMBERS
from blip3o_jax.data.shapes.captions import long_caption
from blip3o_jax.data.shapes.captions import plural
from blip3o_jax.data.shapes.naming import names
from blip3o_jax.data.shapes.scenes import COLORS
from blip3o_jax.data.shapes.scenes import INVERSE
from blip3o_jax.data.shapes.scenes import SHAPES
from blip3o_jax.data.shapes.scenes import Object
from blip3o_jax.data.shapes.scenes import Scene
from blip3o_jax.data.shapes.scenes import make_rng
from blip3o_jax.data.shapes.scenes import relation
from blip3o_jax.data.shapes.scenes import replacements
from blip3o_jax.data.shapes.scenes import scene as make_scene

Kind = Literal["count", "shape", "color", "exist", "where"]
KINDS: Final[tuple[str, ...]] = get_args(Kind)
_STREAM: Final = 1 << 21
_TALK: Final = 1 << 22
_AGAIN: Final = 1000  # between the wordings of a kind that is named twice


@dataclass(frozen=True)
class Question:
  """A question about a scene. `context` is the caption that answers it, "" if the picture does."""

  scene: Scene
  kind: str
  question: str
  answer: str
  context: str = ""


def _named(o: Object, scene: Scene, rng: np.random.Generator) -> str:
  """A name that fits only this object of the scene: `circle`, `red object`, `red circle`, or ""."""
  options = names(o, scene)
  return options[int(rng.integers(len(options)))] if options else ""


def _count(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
  o = scene.objects[int(rng.integers(len(scene.objects)))]
  u = rng.random()
  if u < 0.3:
    return "how many objects are there?", NUMBERS[len(scene.objects)]
  shape = o.shape if rng.random() < 0.9 else SHAPES[int(rng.integers(len(SHAPES)))]
  if u < 0.65:
    number = sum(p.shape == shape for p in scene.objects)
    return f"how many {plural(shape)} are there?", NUMBERS[number]
  if u < 0.85:
    number = sum(p.color == o.color for p in scene.objects)
    return f"how many {o.color} objects are there?", NUMBERS[number]
  number = sum((p.color, p.shape) == (o.color, shape) for p in scene.objects)
  return f"how many {o.color} {plural(shape)} are there?", NUMBERS[number]


def _shape(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
  once = [o for o in scene.objects if sum(p.color == o.color for p in scene.objects) == 1]
  if not once:
    return None
  o = once[int(rng.integers(len(once)))]
  return f"what shape is the {o.color} object?", o.shape


def _color(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
  once = [o for o in scene.objects if sum(p.shape == o.shape for p in scene.objects) == 1]
  if not once:
    return None
  o = once[int(rng.integers(len(once)))]
  return f"what color is the {o.shape}?", o.color


def _exist(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
  """Yes and no equally often; a no is half a present object with one attribute changed."""
  o = scene.objects[int(rng.integers(len(scene.objects)))]
  present = {(p.color, p.shape) for p in scene.objects}
  if rng.random() < 0.5:
    return f"is there a {o.color} {o.shape}?", "yes"
  near = [(c, o.shape) for c in COLORS if (c, o.shape) not in present]
  near += [(o.color, s) for s in SHAPES if (o.color, s) not in present]
  far = [(c, s) for c in COLORS for s in SHAPES if (c, s) not in present]
  options = near if rng.random() < 0.5 else far
  color, shape = options[int(rng.integers(len(options)))]
  return f"is there a {color} {shape}?", "no"


def _where(scene: Scene, rng: np.random.Generator, pairs: bool = True) -> tuple[str, str] | None:
  """A quadrant of one object or, for half of the scenes with several, how it stands to another."""
  order = [scene.objects[int(i)] for i in rng.permutation(len(scene.objects))]
  if pairs and rng.random() < 0.5:
    for a, b in itertools.permutations(order, 2):
      how = relation(a, b)
      names = (_named(a, scene, rng), _named(b, scene, rng)) if how else ("", "")
      if all(names):
        return f"where is the {names[0]} from the {names[1]}?", how.removesuffix(" of")
  for o in order:
    name = _named(o, scene, rng)
    if name:
      return f"where is the {name}?", o.place
  return None


def question(scene: Scene, kind: Kind | str, variant: int = 0) -> Question | None:
  """A question of a kind about the scene's picture, or None where the scene has no clear one.

  Answers are `zero` to `four` (count), a shape, a colour, `yes` or `no` (exist), `top left` and so
  on or `left`, `right`, `above`, `below` (where). A pure function of its arguments.

  Raises:
    ValueError: an unknown kind.
  """
  if kind not in KINDS:
    raise ValueError(f"kind {kind!r}: expected one of {', '.join(KINDS)}")
  stream = _STREAM + 2 * (len(KINDS) * variant + KINDS.index(kind))
  rng = make_rng(scene.split, scene.seed, scene.index, stream)
  makers = {"count": _count, "shape": _shape, "color": _color, "exist": _exist, "where": _where}
  found = makers[kind](scene, rng)  # type: ignore[operator]
  return Question(scene, kind, *found) if found else None


def questions(scene: Scene, variant: int = 0) -> list[Question]:
  """One question of each kind that the scene can answer (3 to 5)."""
  return [q for kind in KINDS if (q := question(scene, kind, variant))]


def _where_told(scene: Scene, rng: np.random.Generator) -> Question | None:
  """For most scenes of two: a caption that states how they stand, asked from either side."""
  if len(scene.objects) != 2 or rng.random() > 0.6:
    return None
  a, b = (scene.objects[int(i)] for i in rng.permutation(2))
  how, name, other = relation(a, b), _named(a, scene, rng), _named(b, scene, rng)
  if not (how and name and other):
    return None
  context = f"a {a.color} {a.shape} {how} a {b.color} {b.shape}"
  if rng.random() < 0.5:
    name, other, how = other, name, INVERSE[how]
  answer = how.removesuffix(" of")
  return Question(scene, "where", f"where is the {name} from the {other}?", answer, context)


def text_question(scene: Scene, kind: Kind | str, variant: int = 0) -> Question | None:
  """The same kinds asked of a long caption (`context`), for training on text alone.

  The long caption names quadrants, which do not always say how two objects stand to each other; so
  where a question asks for that, the caption is one that states it, from either side.

  Raises:
    ValueError: an unknown kind.
  """
  rng = make_rng(scene.split, scene.seed, scene.index, _STREAM + 2 * variant + 1)
  told = _where_told(scene, rng) if kind == "where" else None
  context = told.context if told else long_caption(scene, variant, quadrants=True)
  return _of_caption(scene, kind, variant, context, told, rng)


def _of_caption(
  scene: Scene,
  kind: str,
  variant: int,
  context: str,
  told: Question | None,
  rng: np.random.Generator,
) -> Question | None:
  """A question that `context` answers; `told` is the one that it states, if it states one."""
  if kind != "where":
    asked = question(scene, kind, variant)
    return dataclasses.replace(asked, context=context) if asked else None
  # A caption that states no relation does not say how any two objects stand. Drawn in either case,
  # so that what `rng` gives next does not depend on it.
  found = _where(scene, rng, pairs=False)
  return told or (Question(scene, kind, *found, context) if found else None)


def conversation(
  scene: Scene,
  turns: int,
  variant: int = 0,
  *,
  kinds: Sequence[str] = KINDS,
  text: bool = False,
) -> list[Question]:
  """Up to `turns` different questions about one scene, of mixed kinds in random order.

  Args:
    turns: at least 1.
    kinds: to ask; every scene has a count and an existence to ask for. A kind that stands there
      several times is asked in so many times the wordings.
    text: ask a caption, the same for all questions, instead of the picture.

  Raises:
    ValueError: an unknown kind, or no question of these kinds.
  """
  rng = make_rng(scene.split, scene.seed, scene.index, _TALK + variant)
  told = _where_told(scene, rng) if text else None
  context = told.context if told else long_caption(scene, variant, quadrants=True) if text else ""
  found: dict[str, Question] = {}
  for first, (i, kind) in itertools.product((2 * variant, 2 * variant + 1), enumerate(kinds)):
    wording = first + _AGAIN * kinds[:i].count(kind)
    asked = (
      _of_caption(scene, kind, wording, context, told, rng)
      if text
      else question(scene, kind, wording)
    )
    if asked:
      found.setdefault(asked.question, asked)
  if not found:
    raise ValueError(f"scene {scene.index} has no question of the kinds {', '.join(kinds)}")
  order = [list(found.values())[int(i)] for i in rng.permutation(len(found))]
  return order[:turns]


def question_at(
  seed: int, index: int, split: str, kind: Kind | str = "", text: bool = False
) -> Question:
  """The question of a record: scene `index`, or the next that has one of this kind.

  Args:
    kind: "" takes the kinds in turn, index by index.
    text: ask a caption instead of the picture.

  Raises:
    ValueError: an unknown split or kind, a negative seed or index.
  """
  chosen = kind or KINDS[index % len(KINDS)]
  ask = text_question if text else question
  for other in replacements(index):
    found = ask(make_scene(seed, other, split), chosen)
    if found:
      return found
  raise ValueError(f"no scene from {index} has a question of kind {chosen!r}")
