"""The first pictures of a model: they compile its programs, and show what it draws."""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

import numpy as np
from PIL import Image

from blip3o_jax.serve.interface import Model
from blip3o_jax.serve.interface import Progress
from blip3o_jax.serve.settings import LENGTH
from blip3o_jax.serve.settings import Settings

FEW = ("steps", "pixel_steps")  # options, of which one is enough here


@dataclasses.dataclass(frozen=True)
class Facts:
  """About a model's pictures.

  Attributes:
    side: height and width, unless asked otherwise; None where it draws none.
    tokens: vectors that a picture is for the model; 0 where it reads none back.
    fingerprint: of its weights, short.
  """

  side: tuple[int, int] | None
  tokens: int
  fingerprint: str


def warm(model: Model, settings: Settings, check: Callable[[], None]) -> Facts:
  """Draws and answers in each size of batch.

  Args:
    check: called between steps; what it raises ends the warming.
  """
  side, tokens = None, 0
  for count in _sizes(settings.batch) if "generate" in model.verbs else ():
    side = _draw(model, settings, count, check)
  if "reconstruct" in model.verbs:
    height, width = side or (64, 64)
    blank = Image.fromarray(np.full((height, width, 3), 127, np.uint8))
    tokens = math.prod(np.asarray(model.features([blank])).shape[1:-1])
  talk = [{"role": "user", "content": settings.questions[0]}]
  length = min(LENGTH, settings.limits.tokens)
  for count in _sizes(settings.batch) if "chat" in model.verbs else ():
    check()
    model.chat([talk] * count, seed=[0] * count, length=length)
  return Facts(side, tokens, model.fingerprint.rpartition(":")[2][:16])


def _draw(
  model: Model, settings: Settings, count: int, check: Callable[[], None]
) -> tuple[int, int]:
  previewed = False

  def progress(step: Progress) -> None:
    nonlocal previewed
    check()
    if step.preview is not None and not previewed:
      previewed = True
      step.preview()

  few: dict[str, Any] = {name: 2 for name in FEW if name in model.options("generate")}
  pictures = model.generate(
    [settings.prompts[0]] * count, list(range(count)), batch=count, progress=progress, **few
  )
  height, width = pictures[0].pixels.shape[:2]
  return height, width


def _sizes(most: int) -> list[int]:
  return [2**i for i in range(most.bit_length())]
