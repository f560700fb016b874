"""Scenes of the embedded set: 1 to 4 coloured shapes on a 4 x 4 grid, from (seed, index).

Knows what is in a picture and what is held out; does not know pixels (`render`), words (`captions`)
or questions (`questions`). Everything is a pure function of (split, seed, index).
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
import hashlib
from typing import Any
from typing import Final
from typing import Literal
from typing import get_args

import numpy as np

SIZE: Final = 64  # pixels of a side
GRID: Final = 4  # cells of a side
MOST_OBJECTS: Final = 4
CELL: Final = SIZE // GRID
SHAPES: Final = ("circle", "square", "triangle", "star", "cross")
# Far apart in RGB and in direction from a light background, so pixels alone tell them apart.
PALETTE: Final[dict[str, tuple[int, int, int]]] = {
  "red": (220, 35, 40),
  "yellow": (245, 205, 25),
  "green": (25, 175, 55),
  "blue": (35, 75, 225),
  "purple": (155, 45, 205),
  "black": (25, 25, 30),
}
COLORS: Final = tuple(PALETTE)

# Colour-shape pairs that the generator never trains on: every shape and every colour is among them.
HELD_OUT_PAIRS: Final[frozenset[tuple[str, str]]] = frozenset(
  {
    ("red", "star"),
    ("yellow", "square"),
    ("green", "triangle"),
    ("blue", "cross"),
    ("purple", "circle"),
    ("black", "star"),
  }
)

Split = Literal["world", "generator", "validation", "test"]
Relation = Literal["left of", "right of", "above", "below"]
SPLITS: Final[tuple[str, ...]] = get_args(Split)
RELATIONS: Final[tuple[str, ...]] = get_args(Relation)
INVERSE: Final[dict[str, str]] = {
  "left of": "right of",
  "right of": "left of",
  "above": "below",
  "below": "above",
}
# Half widths in pixels; the words are said for the outer two. The gaps keep the words checkable.
SIZES: Final[dict[str, tuple[float, float]]] = {
  "small": (5.0, 5.4),
  "": (5.6, 6.0),
  "large": (6.2, 6.7),
}
# An object reaches no farther from its cell's centre: gaps between objects of at least 1.5 pixels.
_REACH: Final = 7.25
_MAX_JITTER: Final = 1.5


@dataclass(frozen=True)
class Object:
  """One shape: centre x, y (y down) and half its width in pixels; row and col of its cell."""

  shape: str
  color: str
  size: str  # "small", "" or "large"
  row: int
  col: int
  x: float
  y: float
  half: float
  rgb: tuple[int, int, int]

  @property
  def place(self) -> str:
    """The quadrant, such as `top left`."""
    return quadrant(self.row, self.col)


@dataclass(frozen=True)
class Scene:
  """What a picture shows, with the (split, seed, index) that it came from."""

  split: str
  seed: int
  index: int
  objects: tuple[Object, ...]
  background: tuple[int, int, int]


def quadrant(row: int, col: int) -> str:
  """The quadrant of a cell, such as `top left`."""
  return f"{'top' if row < GRID // 2 else 'bottom'} {'left' if col < GRID // 2 else 'right'}"


def fraction(text: str) -> float:
  """A stable hash of a text in [0, 1), the same on every machine and in every run."""
  return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest()) / 2**48


@cache
def held_out_combination(first: tuple[str, str], second: tuple[str, str]) -> bool:
  """Whether two (color, shape) are a test combination: a fifth of those that differ in both.

  A picture of exactly these two is in no split but `test`, so `color_attribution` prompts name
  combinations that were neither drawn nor described in training.
  """
  if first[0] == second[0] or first[1] == second[1]:
    return False
  return fraction("combination " + " + ".join(sorted(map(" ".join, (first, second))))) < 0.2


@cache
def pairs(split: str) -> tuple[tuple[str, str], ...]:
  """The (color, shape) pairs that a split may show: 30, or 24 for the generator's.

  Raises:
    ValueError: an unknown split.
  """
  if split not in SPLITS:
    raise ValueError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
  every = tuple((color, shape) for color in COLORS for shape in SHAPES)
  if split in ("generator", "validation"):
    return tuple(pair for pair in every if pair not in HELD_OUT_PAIRS)
  return every


def make_rng(split: str, seed: int, index: int, stream: int = 0) -> np.random.Generator:
  """The random generator of a record; `stream` separates scenes, captions and questions.

  Raises:
    ValueError: an unknown split, a negative seed or index.
  """
  if split not in SPLITS:
    raise ValueError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
  if seed < 0 or index < 0:
    raise ValueError(f"seed {seed}, index {index}: expected integers from 0")
  return np.random.default_rng([SPLITS.index(split), seed, index, stream])


def relation(a: Object, b: Object, dominance: float = 1.5) -> str:
  """How `a` stands to `b`, or "" where neither axis clearly dominates.

  Args:
    dominance: how many times longer the main axis must be than the other.
  """
  dx, dy = a.x - b.x, a.y - b.y
  if abs(dx) >= 8 and abs(dx) >= dominance * abs(dy):
    return "left of" if dx < 0 else "right of"
  if abs(dy) >= 8 and abs(dy) >= dominance * abs(dx):
    return "above" if dy < 0 else "below"
  return ""


def _cells(count: int, rng: np.random.Generator, wanted: str) -> list[tuple[int, int]]:
  """Distinct cells; with `wanted` the second stands to the first in that relation."""
  if not wanted:
    return [divmod(int(c), GRID) for c in rng.permutation(GRID * GRID)[:count]]
  # Along the relation at least one cell, across it less: the relation then dominates after jitter.
  along = sorted(int(v) for v in rng.permutation(GRID)[:2])
  slack = 1 if along[1] - along[0] >= 2 else 0
  first = int(rng.integers(GRID))
  across = (first, int(np.clip(first + rng.integers(-slack, slack + 1), 0, GRID - 1)))
  if wanted in ("left of", "above"):
    along.reverse()
  if wanted in ("left of", "right of"):
    return [(across[0], along[0]), (across[1], along[1])]
  return [(along[0], across[0]), (along[1], across[1])]


def arrange(
  rng: np.random.Generator, wanted: Sequence[tuple[str, str]], *, second_is: str = ""
) -> tuple[Object, ...]:
  """Places (color, shape) pairs in distinct cells, with jitter, size and shade drawn from `rng`.

  Args:
    wanted: at most 16 pairs.
    second_is: with exactly two pairs, the relation of the second to the first ("" for any).

  Raises:
    ValueError: an unknown relation, or one asked of other than two pairs.
  """
  if second_is and (second_is not in RELATIONS or len(wanted) != 2):
    raise ValueError(f"relation {second_is!r} of {len(wanted)} objects: expected two, {RELATIONS}")
  noise = rng.random((len(wanted), 7))
  cells = _cells(len(wanted), rng, second_is)
  return tuple(
    stand(pair, cell, u) for pair, cell, u in zip(wanted, cells, noise.tolist(), strict=True)
  )


def stand(pair: tuple[str, str], cell: tuple[int, int], u: Sequence[float]) -> Object:
  """An object of a (color, shape) in a cell (row, col).

  Args:
    u: seven numbers in [0, 1) that choose size word, size, jitter along x and y, and the shade.
  """
  words = tuple(SIZES)
  size = words[int(u[0] * len(words))]
  low, high = SIZES[size]
  half = low + (high - low) * u[1]
  x, y = centre(cell, half, u[2:4])
  return Object(pair[1], pair[0], size, *cell, x, y, half, shade(pair[0], u[4:]))


def centre(cell: tuple[int, int], half: float, u: Sequence[float]) -> tuple[float, float]:
  """Where an object of this half width stands in a cell: x, y with the jitter of two numbers."""
  jitter = min(_REACH - half, _MAX_JITTER)
  x, y = ((at + 0.5) * CELL + jitter * (2 * v - 1) for at, v in zip(cell[::-1], u, strict=True))
  return x, y


def shade(color: str, u: Sequence[float]) -> tuple[int, int, int]:
  """The colour of the palette, each channel moved by up to 10 as three numbers in [0, 1) say."""
  moved = (c + int(21 * v) - 10 for c, v in zip(PALETTE[color], u, strict=True))
  r, g, b = (min(max(c, 0), 255) for c in moved)
  return r, g, b


def background(rng: np.random.Generator) -> tuple[int, int, int]:
  """A plain light colour: one brightness with a slight tint."""
  base = int(rng.integers(236, 249))
  r, g, b = (base + int(v) for v in rng.integers(-4, 5, 3))
  return r, g, b


def _contents(rng: np.random.Generator, split: str) -> tuple[list[tuple[str, str]], str]:
  """The pairs of one scene and, for some scenes of two, a relation."""
  allowed = pairs(split)

  def one() -> tuple[str, str]:
    return allowed[int(rng.integers(len(allowed)))]

  kind = rng.random()
  if kind < 0.2:  # one object
    return [one()], ""
  if kind < 0.5:  # two shapes that differ, often side by side
    first = one()
    others = [p for p in allowed if p[1] != first[1]]
    wanted = RELATIONS[int(rng.integers(4))] if rng.random() < 0.7 else ""
    return [first, others[int(rng.integers(len(others)))]], wanted
  count = int(rng.integers(2, 5))
  if kind < 0.7:  # several of one shape, half of the time in one colour
    first = one()
    if rng.random() < 0.5:
      return [first] * count, ""
    same = [p for p in allowed if p[1] == first[1]]
    return [same[int(i)] for i in rng.integers(len(same), size=count)], ""
  found = [one()]
  while len(found) < count:  # a mixture, sometimes with repeats: "two red circles and ..."
    found.append(found[-1] if rng.random() < 0.25 else one())
  return found, ""


def scene(seed: int, index: int, split: Split | str = "generator") -> Scene:
  """The scene of a record; the same on every call.

  Args:
    split: `generator` and `validation` never show HELD_OUT_PAIRS; `world` and `test` may. No split
      but `test` shows a held-out combination. The four are independent streams.

  Raises:
    ValueError: an unknown split, a negative seed or index.
  """
  rng = make_rng(split, seed, index)
  while True:
    found, second_is = _contents(rng, split)
    if split == "test" or len(found) != 2 or not held_out_combination(found[0], found[1]):
      break
  objects = arrange(rng, found, second_is=second_is)
  return Scene(split, seed, index, objects, background(rng))


def replacements(index: int) -> Iterator[int]:
  """`index`, then those that stand in for it, beyond any data set's end: none repeats a record."""
  return (index + (skip << 40) for skip in range(1000))


def scene_at(seed: int, index: int, split: Split | str, most: int = MOST_OBJECTS) -> Scene:
  """Scene `index`, or the first of its `replacements` that has at most `most` objects.

  Raises:
    ValueError: see `scene`; none has so few.
  """
  for other in replacements(index):
    found = scene(seed, other, split)
    if len(found.objects) <= most:
      return found
  raise ValueError(f"no scene from {index} has at most {most} objects")


def scene_of(
  include: Sequence[Mapping[str, Any]], seed: int, index: int, split: Split | str = "test"
) -> Scene:
  """A random scene that satisfies GenEval-style metadata: what a perfect generator would draw.

  Args:
    include: entries {class, count, color?, position?: [relation, entry]}; a colour that is not
      named is drawn at random from the split's pairs.

  Raises:
    ValueError: a colour-shape pair that the split may not show.
  """
  rng = make_rng(split, seed, index, 1)
  allowed = pairs(split)
  found: list[tuple[str, str]] = []
  second_is = ""
  for entry in include:
    choice = [p for p in allowed if p[1] == entry["class"] and entry.get("color", p[0]) == p[0]]
    if not choice:
      raise ValueError(f"split {split!r} may not show {entry.get('color')} {entry['class']}")
    found += [choice[int(rng.integers(len(choice)))] for _ in range(entry.get("count", 1))]
    second_is = entry["position"][0] if "position" in entry else second_is
  objects = arrange(rng, found, second_is=second_is)
  return Scene(split, seed, index, objects, background(rng))
