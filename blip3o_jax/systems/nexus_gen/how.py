"""How a picture is drawn: the options of the verbs, checked before any long work."""

import dataclasses
from typing import Literal
from typing import get_args

from absl import logging

from blip3o_jax.systems.nexus_gen import painting
from blip3o_jax.systems.nexus_gen import prompts
from blip3o_jax.systems.parts import asked

Words = Literal["template", "own"]
Size = int | tuple[int, int]
# Options of what is painted, and of what is drawn from a text.
PAINTS = ("steps", "scale", "size")
DRAWS = (*PAINTS, "language", "max_pixels", "words")


@dataclasses.dataclass(frozen=True)
class How:
  """How a picture is drawn; the zeros, "" and None are what the model says.

  Attributes:
    steps, scale: of the decoder's sampler. size: height and width in pixels, or both at once.
    language: of the templates. max_pixels: of a picture that the language model is shown.
    words: whose words stand before the picture, the template's, or the model's own.
    decoder: that paints an edit.
  """

  steps: int = 0
  scale: float = 0.0
  size: Size | None = None
  language: prompts.Language | None = None
  max_pixels: int = 0
  words: Words = "template"
  decoder: painting.Which = "editor"

  def __post_init__(self) -> None:
    asked.check_numbers(0, steps=self.steps, scale=self.scale, max_pixels=self.max_pixels)
    for name, known in (
      ("language", (None, *get_args(prompts.Language))),
      ("words", get_args(Words)),
      ("decoder", get_args(painting.Which)),
    ):
      if getattr(self, name) not in known:
        told = ", ".join(map(str, known[known[0] is None :]))
        raise ValueError(f"{name} {getattr(self, name)!r}: expected one of {told}")

  def sides(self, size: int, step: int) -> tuple[int, int]:
    """Height and width, rounded up to multiples of `step`, with a warning (spec 7).

    Args:
      size: of a side, where none is asked for.

    Raises:
      ValueError: no two whole numbers above 0.
    """
    found = size if self.size is None else self.size
    both = tuple(found) if isinstance(found, tuple | list) else (found, found)
    whole = all(isinstance(side, int) and not isinstance(side, bool) for side in both)
    if len(both) != 2 or not whole or min(both) < 1:
      raise ValueError(f"size {found!r}: expected a height and a width in pixels, above 0")
    height, width = (-(-side // step) * step for side in both)
    if (height, width) != both:
      logging.warning(
        "size %d x %d becomes %d x %d: sides are multiples of %d", *both, height, width, step
      )
    return height, width
