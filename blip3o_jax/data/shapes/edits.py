"""Edits of scenes: an instruction, the picture before it and the picture after it.

Five kinds, each changes one object: recolour, replace, remove, add, move. An instruction names that
object so that it fits no other of the scene, by look or by place; all else stays as it was, to the
bit. The scene afterwards is one that its split may show. No training edit is worded as a test edit:
those have the texts that `captions.held_out_text` keeps from captions, and no others.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
from dataclasses import dataclass
from typing import Final
from typing import Literal
from typing import TypeVar
from typing import get_args

import numpy as np

from blip3o_jax.data.shapes.captions import Mention
from blip3o_jax.data.shapes.captions import cell_words
from blip3o_jax.data.shapes.captions import held_out_text
from blip3o_jax.data.shapes.naming import cell_names
from blip3o_jax.data.shapes.naming import names
from blip3o_jax.data.shapes.naming import placed_names
from blip3o_jax.data.shapes.scenes import COLORS
from blip3o_jax.data.shapes.scenes import GRID
from blip3o_jax.data.shapes.scenes import HELD_OUT_PAIRS
from blip3o_jax.data.shapes.scenes import MOST_OBJECTS
from blip3o_jax.data.shapes.scenes import Object
from blip3o_jax.data.shapes.scenes import Scene
from blip3o_jax.data.shapes.scenes import centre
from blip3o_jax.data.shapes.scenes import held_out_combination
from blip3o_jax.data.shapes.scenes import make_rng
from blip3o_jax.data.shapes.scenes import pairs
from blip3o_jax.data.shapes.scenes import quadrant
from blip3o_jax.data.shapes.scenes import replacements
from blip3o_jax.data.shapes.scenes import scene as make_scene
from blip3o_jax.data.shapes.scenes import shade
from blip3o_jax.data.shapes.scenes import stand

EditKind = Literal["recolour", "replace", "remove", "add", "move"]
EDITS: Final[tuple[str, ...]] = get_args(EditKind)
Cell = tuple[int, int]
T = TypeVar("T")
_STREAM: Final = 1 << 23
_TRIES: Final = 100  # wordings of one scene

# {old} is the object as the instruction names it, {new} what there shall be, {place} where.
_WORDINGS: Final[dict[str, tuple[str, ...]]] = {
  "recolour": (
    "make the {old} {new}",
    "paint the {old} {new}",
    "color the {old} {new}",
    "turn the {old} {new}",
    "change the color of the {old} to {new}",
  ),
  "replace": (
    "replace the {old} with {new}",
    "turn the {old} into {new}",
    "change the {old} into {new}",
    "put {new} in place of the {old}",
  ),
  "remove": ("remove the {old}", "delete the {old}", "erase the {old}", "take away the {old}"),
  "add": ("add {new}", "draw {new}", "put {new}", "place {new}"),
  "move": ("move the {old} to {place}", "shift the {old} to {place}", "bring the {old} to {place}"),
}


@dataclass(frozen=True)
class Edit:
  """An instruction, and the scenes before and after it.

  Attributes:
    cells: in which the instruction lets the new object stand; () where it stays at its place, and
      where there is none.
  """

  kind: str
  instruction: str
  before: Scene
  after: Scene
  cells: tuple[Cell, ...] = ()

  @property
  def kept(self) -> tuple[Object, ...]:
    """The objects that stay as they are."""
    return tuple(o for o in self.before.objects if o in self.after.objects)

  @property
  def new(self) -> Object | None:
    """The object that was not there, or not like this or not there alone; None of a removal."""
    return next((o for o in self.after.objects if o not in self.before.objects), None)

  @property
  def unseen(self) -> bool:
    """Whether either picture shows a pair that the generator's split never does."""
    shown = {(o.color, o.shape) for o in (*self.before.objects, *self.after.objects)}
    return bool(shown & HELD_OUT_PAIRS)


def _one(options: Sequence[T], rng: np.random.Generator) -> T:
  return options[int(rng.integers(len(options)))]


def _named(o: Object, scene: Scene, rng: np.random.Generator) -> str:
  """One of the names of an object, most often by look alone where that is enough."""
  u = rng.random()
  if len(scene.objects) == 1 and u < 0.2:
    return "object"
  by_look, by_quadrant = names(o, scene), placed_names(o, scene)
  if by_look and u < 0.6:
    return _one(by_look, rng)
  if by_quadrant and u < 0.85:
    return _one(by_quadrant, rng)
  return _one(cell_names(o), rng)


def _destination(
  taken: Sequence[Object], away: str, rng: np.random.Generator
) -> tuple[Cell, str, tuple[Cell, ...]]:
  """A free cell, the words for where it is, and the cells that these allow.

  Args:
    away: a quadrant that the words may not be.
  """
  full = {(o.row, o.col) for o in taken}
  every = [(row, col) for row in range(GRID) for col in range(GRID)]
  free = [cell for cell in every if cell not in full]
  if rng.random() < 0.5:
    cell = _one(free, rng)
    return cell, cell_words(*cell), (cell,)
  cell = _one([cell for cell in free if quadrant(*cell) != away], rng)
  where = quadrant(*cell)
  return cell, f"the {where}", tuple(c for c in every if quadrant(*c) == where)


def _said(kind: str, rng: np.random.Generator, **words: str) -> str:
  return _one(_WORDINGS[kind], rng).format(**words)


def _after(scene: Scene, old: Object | None, new: Object | None) -> Scene:
  """The scene with `new` in the place that `old` has among its objects."""
  objects = [new if o is old else o for o in scene.objects] + [new] * (old is None)
  return dataclasses.replace(scene, objects=tuple(o for o in objects if o is not None))


def _recolour(scene: Scene, rng: np.random.Generator) -> Edit:
  old = _one(scene.objects, rng)
  color = _one([c for c in COLORS if c != old.color], rng)
  text = _said("recolour", rng, old=_named(old, scene, rng), new=color)
  new = dataclasses.replace(old, color=color, rgb=shade(color, rng.random(3).tolist()))
  return Edit("recolour", text, scene, _after(scene, old, new))


def _replace(scene: Scene, rng: np.random.Generator) -> Edit:
  old = _one(scene.objects, rng)
  color, shape = _one([p for p in pairs(scene.split) if p[1] != old.shape], rng)
  what = Mention(1, shape, color).words("a")
  text = _said("replace", rng, old=_named(old, scene, rng), new=what)
  rgb = shade(color, rng.random(3).tolist())
  new = dataclasses.replace(old, shape=shape, color=color, rgb=rgb)
  return Edit("replace", text, scene, _after(scene, old, new))


def _remove(scene: Scene, rng: np.random.Generator) -> Edit | None:
  if len(scene.objects) == 1:
    return None
  old = _one(scene.objects, rng)
  text = _said("remove", rng, old=_named(old, scene, rng))
  return Edit("remove", text, scene, _after(scene, old, None))


def _add(scene: Scene, rng: np.random.Generator) -> Edit | None:
  if len(scene.objects) == MOST_OBJECTS:
    return None
  pair = _one(pairs(scene.split), rng)
  cell, where, cells = _destination(scene.objects, "", rng)
  what = Mention(1, pair[1], pair[0]).words("a")
  text = _said("add", rng, new=f"{what} at {where}")
  new = stand(pair, cell, rng.random(7).tolist())
  return Edit("add", text, scene, _after(scene, None, new), cells)


def _move(scene: Scene, rng: np.random.Generator) -> Edit:
  old = _one(scene.objects, rng)
  cell, where, cells = _destination(scene.objects, old.place, rng)
  text = _said("move", rng, old=_named(old, scene, rng), place=where)
  x, y = centre(cell, old.half, rng.random(2).tolist())
  new = dataclasses.replace(old, row=cell[0], col=cell[1], x=x, y=y)
  return Edit("move", text, scene, _after(scene, old, new), cells)


_MAKERS: Final[dict[str, Callable[[Scene, np.random.Generator], Edit | None]]] = {
  "recolour": _recolour,
  "replace": _replace,
  "remove": _remove,
  "add": _add,
  "move": _move,
}


def _allowed(made: Edit) -> bool:
  """Whether a split may show the scene afterwards, and say the instruction."""
  objects, test = made.after.objects, made.after.split == "test"
  shown = [(o.color, o.shape) for o in objects]
  if not set(shown) <= set(pairs(made.after.split)):
    return False
  if len(shown) == 2 and not test and held_out_combination(shown[0], shown[1]):
    return False
  return held_out_text(made.instruction) == test


def edit(scene: Scene, kind: EditKind | str) -> Edit | None:
  """An edit of a kind of the scene, or None where it has none: a fifth object, no object at all.

  A pure function of its arguments.

  Raises:
    ValueError: an unknown kind.
  """
  if kind not in EDITS:
    raise ValueError(f"kind {kind!r}: expected one of {', '.join(EDITS)}")
  rng = make_rng(scene.split, scene.seed, scene.index, _STREAM + EDITS.index(kind))
  for _ in range(_TRIES):
    made = _MAKERS[kind](scene, rng)
    if made and _allowed(made):
      return made
  return None


def edit_at(
  seed: int, index: int, split: str, kind: EditKind | str = "", most: int = MOST_OBJECTS
) -> Edit:
  """The edit of a record: of scene `index`, or of the next that has one of this kind.

  Args:
    kind: "" takes the kinds in turn, index by index. most: objects of the scene before it.

  Raises:
    ValueError: an unknown split or kind, a negative seed or index.
  """
  chosen = kind or EDITS[index % len(EDITS)]
  for other in replacements(index):
    scene = make_scene(seed, other, split)
    found = edit(scene, chosen) if len(scene.objects) <= most else None
    if found:
      return found
  raise ValueError(f"no scene from {index} has an edit of kind {chosen!r}")
