"""The words of the embedded set: all that its captions, questions and instructions are made of."""

from typing import Final

from blip3o_jax.data.shapes.captions import NUMBERS
from blip3o_jax.data.shapes.captions import plural
from blip3o_jax.data.shapes.scenes import COLORS
from blip3o_jax.data.shapes.scenes import RELATIONS
from blip3o_jax.data.shapes.scenes import SHAPES
from blip3o_jax.data.shapes.scenes import SIZES

_OTHERS: Final = (
  "a an the single there is are and of on at photo picture image white plain light background "
  "top bottom row column what where how many color shape object objects from describe"
)
_INSTRUCTING: Final = (
  "make paint turn change to replace with into put in place remove delete erase take away add draw "
  "move shift bring"
)
WORDS: Final[tuple[str, ...]] = tuple(
  sorted(
    {
      *COLORS,
      *SHAPES,
      *map(plural, SHAPES),
      *NUMBERS[1:],
      *filter(None, SIZES),
      *" ".join(RELATIONS).split(),
      *_OTHERS.split(),
    }
  )
)
# And those of instructions: a model that learned no edits does not know them.
EDIT_WORDS: Final[tuple[str, ...]] = tuple(sorted({*WORDS, *_INSTRUCTING.split()}))
# What a line has room for.
SUMMARY: Final = "; ".join(
  (", ".join(COLORS), ", ".join(SHAPES), f"{NUMBERS[1]} to {NUMBERS[-1]}", ", ".join(RELATIONS))
)
