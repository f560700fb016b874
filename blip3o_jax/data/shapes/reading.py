"""What a caption says or a picture shows, object by object: words to be read at the slots.

Knows the grammar of `captions`: `told` looks at no scene, and tells what was said.
"""

from collections.abc import Sequence
import dataclasses
import itertools
from typing import Final

from blip3o_jax.data.shapes.captions import NUMBERS
from blip3o_jax.data.shapes.captions import plural
from blip3o_jax.data.shapes.scenes import COLORS
from blip3o_jax.data.shapes.scenes import GRID
from blip3o_jax.data.shapes.scenes import MOST_OBJECTS
from blip3o_jax.data.shapes.scenes import SHAPES
from blip3o_jax.data.shapes.scenes import Scene

NOTHING: Final = "no"
_SINGULAR: Final = {plural(shape): shape for shape in SHAPES} | {shape: shape for shape in SHAPES}
_COLUMNS: Final = "abcd"  # as on a chess board: a cell has a word of each kind
_RELATIONS: Final = ("left", "right", "above", "below")


@dataclasses.dataclass
class _Told:
  color: str
  shape: str
  place: tuple[str, str] = (NOTHING, NOTHING)


def told(caption: str) -> tuple[str, ...]:
  """The objects of a caption in the order of mention, each of a group by itself.

  Returns:
    Four words for each of `MOST_OBJECTS` objects: its colour, its shape, and two of its place:
    `top` or `bottom` and `left` or `right`; or the numbers of row and column; or `left`, `right`,
    `above` or `below` (of the next object) and `no`. `no` stands for all that is not said.
  """
  words = caption.replace(",", "").split()
  found: list[_Told] = []
  count, color, group = 1, NOTHING, 0
  for i, word in enumerate(words):
    if word in COLORS:
      color = word
    elif word in _SINGULAR:
      group = count
      found += [_Told(color, _SINGULAR[word]) for _ in range(count)]
      count, color = 1, NOTHING
    elif word in ("top", "bottom") or word == "row":
      place = (word, words[i + 1]) if word != "row" else (words[i + 1], words[i + 3])
      for one in found[-group:]:
        one.place = place
    elif word in _RELATIONS and words[i - 1] in _SINGULAR:
      found[-1].place = (word, NOTHING)
    elif word in NUMBERS and words[i - 1] not in ("row", "column"):
      count = NUMBERS.index(word)
  return _words(found)


def shown(scene: Scene) -> tuple[str, ...]:
  """The objects of a picture row by row, as `told` gives those of a caption that says all of it.

  Their places are the numbers of row and column.
  """
  order = sorted(scene.objects, key=lambda o: (o.row, o.col))
  return _words([_Told(o.color, o.shape, (NUMBERS[o.row + 1], NUMBERS[o.col + 1])) for o in order])


def placed(columns: bool) -> tuple[str, ...]:
  """What names the row of each cell, row by row, `one` to `four`, or its column, `a` to `d`."""
  cells = itertools.product(range(GRID), repeat=2)
  return tuple(_COLUMNS[col] if columns else NUMBERS[row + 1] for row, col in cells)


def standing(scene: Scene, shapes: bool) -> tuple[str, ...]:
  """What stands in each cell, row by row: the word of its colour, or its shape; `no` of nothing."""
  there = {(o.row, o.col): o.shape if shapes else o.color for o in scene.objects}
  every = range(GRID)
  return tuple(there.get((row, col), NOTHING) for row in every for col in every)


def _words(found: Sequence[_Told]) -> tuple[str, ...]:
  every = [*found, *[_Told(NOTHING, NOTHING)] * (MOST_OBJECTS - len(found))]
  return tuple(w for o in every for w in (o.color, o.shape, *o.place))
