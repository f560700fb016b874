"""A stand-in for a model that draws: quick, and each picture says its prompt and seed in pixels."""

from collections.abc import Callable
from collections.abc import Sequence
import hashlib
from typing import Any

import numpy as np
from PIL import Image

from blip3o_jax.use.picture import Picture


class Painted:
  """Has of `use.model.Model` what draws pictures.

  Args:
    side: of the pictures, in pixels. verbs: that it has. before: called with the number of each
      batch of a call, from 0, before it is drawn.
  """

  def __init__(
    self,
    side: int = 8,
    verbs: Sequence[str] = ("generate",),
    before: Callable[[int], None] | None = None,
    fingerprint: str = "blake3:1",
  ):
    self.name, self.system, self.dtype, self.fingerprint = (
      "stand-in",
      "none",
      "float32",
      fingerprint,
    )
    self.verbs, self.side, self._before = tuple(verbs), side, before
    self.batches: list[list[tuple[str, int]]] = []

  def options(self, verb: str) -> dict[str, Any]:
    if verb not in self.verbs:
      raise ValueError(f"{self.name}: cannot {verb}")
    return {"steps": 4, "guidance": 2.0, "size": None, "max_pixels": 0}

  def generate(self, prompts: Any, seeds: Any, *, images: Any = (), batch: int = 8, **options: Any):
    assert len(prompts) == len(seeds) <= batch
    if self._before:
      self._before(len(self.batches))
    self.batches.append(list(zip(prompts, seeds, strict=True)))
    return self._pictures("generate", prompts, seeds, options)

  def edit(self, shown: Any, instructions: Any, seeds: Any, *, batch: int = 8, **options: Any):
    assert len(shown) == len(instructions) == len(seeds) <= batch
    assert all(isinstance(each, Image.Image) and each.mode == "RGB" for each in shown)
    self.batches.append(list(zip(instructions, seeds, strict=True)))
    return self._pictures("edit", instructions, seeds, options)

  def settings(self, verb: str, options: Any) -> dict[str, Any]:
    used = {k: v for k, v in {**self.options(verb), **options}.items() if v}
    named = {"verb": verb, **used, "model": self.name, "system": self.system}
    return named | {"dtype": self.dtype, "fingerprint": self.fingerprint, "version": "0"}

  def _pictures(self, verb: str, prompts: Any, seeds: Any, options: Any) -> list[Picture]:
    settings = self.settings(verb, options)
    return [
      Picture(pixels(p, s, self.side), p, s, settings) for p, s in zip(prompts, seeds, strict=True)
    ]


def pixels(prompt: str, seed: int, side: int = 8) -> np.ndarray:
  """uint8[side, side, 3] that another prompt or seed would not give."""
  digest = hashlib.sha256(f"{prompt} {seed}".encode()).digest()
  return np.random.default_rng(list(digest)).integers(0, 256, (side, side, 3), np.uint8)
