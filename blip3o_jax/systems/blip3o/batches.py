"""What a user hands over becomes arrays: prompts, questions and pictures as padded rows.

What is done with texts and pictures, and to which sizes all is padded, `parts.asked` says.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.systems.blip3o import prompts
from blip3o_jax.systems.blip3o import released
from blip3o_jax.systems.blip3o.model import Config
from blip3o_jax.systems.parts import asked
from blip3o_jax.systems.parts import talking

# Lengths that prompts are padded to; a longer generation prompt is cut, a longer question refused.
BUCKETS = (32, 64, 160, 448)
PICTURE_BUCKETS = (64, 160, 448, 1024, 2048, 4096)
CHAT_BUCKETS = (32, 64, 160, 512, 1024, 2048, 4096)


class Batches:
  """Makes the arguments of `sampling.draw` and `speaking.talk` for one model."""

  def __init__(self, cfg: Config, settings: released.Settings, tokenizer: Tokenizer):
    self._cfg, self._settings, self._tokenizer = cfg, settings, tokenizer
    self._talks = talking.Prompts(
      tokenizer,
      cfg.visual,
      cfg.image_token,
      prompts.SYSTEM,
      CHAT_BUCKETS,
      settings.min_pixels,
      settings.max_pixels,
      talking.standing_before,
    )

  def drawing(
    self, texts: Sequence[str], images: Sequence[asked.Picture | None], max_pixels: int = 0
  ) -> dict[str, Any]:
    """A padded prompt for each caption that asks for a picture, after the one it may have.

    Args:
      images: as many, or none at all.
      max_pixels: see `Model.chat`.

    Raises:
      ValueError: see `asked.texts_of`, `asked.images_of`.
    """
    texts, form = asked.texts_of(texts, "prompt", self._settings.words), self._settings.prompt_form
    some = images if not isinstance(images, Sequence) or images else [None] * len(texts)
    shown = asked.images_of(some, len(texts), "prompt")
    words, short, long = self._tokenizer, BUCKETS[-1], PICTURE_BUCKETS[-1]
    rooms = [
      long - min(len(prompts.edit_ids(words, text, 0, limit=prompts.UNLIMITED, form=form)), short)
      for text in texts
    ]
    patches, grids = self._patches(shown, rooms, max_pixels)
    places = iter(asked.places(grids, self._cfg.visual))
    rows = [
      prompts.generation_ids(words, text, limit=short, form=form)
      if image is None
      else prompts.edit_ids(words, text, next(places), limit=long, form=form)
      for text, image in zip(texts, shown, strict=True)
    ]
    out = self.padded(rows, PICTURE_BUCKETS if grids else BUCKETS)
    return {**out, **asked.stacked(patches, grids, len(rows), self._cfg.visual)}

  def asking(
    self, questions: Sequence[str], images: Sequence[asked.Picture | None], max_pixels: int = 0
  ) -> dict[str, Any]:
    """A padded conversation for each question, after the picture it may have, with positions.

    Args, Raises: as `drawing`; ValueError: a conversation longer than the largest bucket.
    """
    return self.talks(self.questions(questions, images), max_pixels)[0]

  def questions(
    self, questions: Sequence[str], images: Sequence[asked.Picture | None]
  ) -> list[list[talking.Message]]:
    """A conversation for each question, after the picture it may have.

    Raises:
      ValueError: see `asked.texts_of`, `asked.images_of`.
    """
    questions = asked.texts_of(questions, "question")
    shown = asked.images_of(images, len(questions), "question")
    return [
      [talking.Message("user", [question], [] if image is None else [image])]
      for question, image in zip(questions, shown, strict=True)
    ]

  def talks(
    self, conversations: Sequence[talking.Conversation], max_pixels: int = 0
  ) -> tuple[dict[str, Any], list[int]]:
    """A padded prompt for each conversation, and how many ids it has.

    Raises:
      ValueError: see `talking.checked` and `talking.Prompts.rows`.
    """
    return self._talks.rows(talking.checked(conversations, self._settings.words), max_pixels)

  def padded(self, rows: Sequence[Sequence[int]], lengths: Sequence[int]) -> dict[str, Any]:
    """Tokens and segments int32[B', P] of prompts, the last one repeated up to a power of two.

    Raises:
      ValueError: a prompt longer than the last of `lengths`.
    """
    return asked.padded(rows, lengths, self._tokenizer.pad)

  def _patches(
    self, images: Sequence[Image.Image | None], rooms: Sequence[int], max_pixels: int
  ) -> tuple[list[np.ndarray], list[tuple[int, int]]]:
    """Patches and grids of the pictures that there are, in order.

    Args:
      rooms: for each row, how many places its prompt has for a picture.
    """
    some = [(i, room) for i, room in zip(images, rooms, strict=True) if i is not None]
    return asked.patches(
      [image for image, _ in some],
      [room for _, room in some],
      self._cfg.visual,
      min_pixels=self._settings.min_pixels,
      max_pixels=max_pixels or self._settings.max_pixels,
    )
