"""What a user hands over becomes rows: prompts with pictures, and the answer that draws one.

What is done with texts and pictures, and to which sizes all is padded, `parts.asked` says. B rows,
T tokens, I pictures of N patches of all rows.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
from typing import Any

import numpy as np
from PIL import Image

from blip3o_jax.data.text import chat
from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.systems.nexus_gen import prompts
from blip3o_jax.systems.nexus_gen import released
from blip3o_jax.systems.nexus_gen.model import Config
from blip3o_jax.systems.parts import asked
from blip3o_jax.systems.parts import buckets
from blip3o_jax.systems.parts import talking

# Lengths that rows are padded to; a longer caption is cut, a longer question refused.
BUCKETS = (192, 256, 384, 512, 768, 1024, 2048, 4096)

Shown = Sequence[Sequence[Image.Image]]  # the pictures of each prompt


class Batches:
  """Makes the arguments of `speaking.predict` and `speaking.answer` for one model."""

  def __init__(self, cfg: Config, settings: released.Settings, tokenizer: Tokenizer):
    self._cfg, self._settings, self._tokenizer = cfg, settings, tokenizer
    self._talks = talking.Prompts(
      tokenizer,
      cfg.visual,
      cfg.image_token,
      prompts.SYSTEM,
      BUCKETS,
      settings.min_pixels,
      settings.max_pixels,
      prompts.asking,
    )

  def drawing(
    self,
    texts: Sequence[str],
    shown: Shown,
    language: prompts.Language,
    max_pixels: int = 0,
    *,
    answered: bool = True,
  ) -> dict[str, Any]:
    """A row for each caption, or for each instruction with its pictures, in the template.

    An instruction with marks (`chat.MARK`) has its pictures there, else where the settings say.

    Args:
      shown: as many. max_pixels: of a picture; 0 is what the model says.
      answered: with the template's answer and its slots, for `predict`; else the prompt alone, for
        `answer`.

    Returns:
      See `_rows`.

    Raises:
      ValueError: other marks than pictures; see `asked.patches`.
    """
    editing = functools.partial(prompts.editing, order=self._settings.pictures)
    said = [
      _marked(text, len(own), f"instruction {i + 1}", editing)
      if own
      else prompts.generating(text, language)
      for i, (text, own) in enumerate(zip(texts, shown, strict=True))
    ]
    answers = [prompts.drawn(len(own), language) if answered else [""] for own in shown]
    return self._rows(said, answers, shown, max_pixels)

  def asking(self, questions: Sequence[str], shown: Shown, max_pixels: int = 0) -> dict[str, Any]:
    """A prompt for each question about pictures, or about nothing, for `answer`.

    A question with marks (`chat.MARK`) has its pictures there, else they stand before it.

    Raises:
      ValueError: other marks than pictures; a conversation longer than the largest bucket.
    """
    out, _ = self.talks(self.questions(questions, shown), max_pixels)
    return {**out, "labels": np.full_like(out["tokens"], chat.IGNORED)}

  def questions(self, questions: Sequence[str], shown: Shown) -> list[list[talking.Message]]:
    """A conversation for each question; see `asking`."""
    return [
      [talking.Message("user", _marked(question, len(own), f"question {i + 1}", _bare), own)]
      for i, (question, own) in enumerate(zip(questions, shown, strict=True))
    ]

  def talks(
    self, conversations: Sequence[talking.Conversation], max_pixels: int = 0
  ) -> tuple[dict[str, Any], list[int]]:
    """A prompt for each conversation, for `answer`, and how many ids it has.

    Raises:
      ValueError: a conversation longer than the largest bucket.
    """
    return self._talks.rows(conversations, max_pixels)

  def _rows(
    self,
    said: Sequence[Sequence[str]],
    answers: Sequence[Sequence[str]],
    shown: Shown,
    max_pixels: int,
  ) -> dict[str, Any]:
    """Left-padded rows of one turn each, the last one repeated up to a power of two.

    A text that is longer than the largest bucket is cut, with a warning.

    Args:
      said, answers: cut where pictures stand. shown: those of what is said.

    Returns:
      tokens, segments, labels int32[B, T], positions int32[3, B, T], deltas int32[B, 1], and
      `patches` and `layout` of pictures, if any.
    """
    cfg, settings = self._cfg, self._settings
    patches, grids = asked.patches(
      [image for own in shown for image in own],
      [
        room
        for texts, answer in zip(said, answers, strict=True)
        for room in self._rooms(texts, answer)
      ],
      cfg.visual,
      min_pixels=settings.min_pixels,
      max_pixels=max_pixels or settings.max_pixels,
    )
    left, target = iter(grids), (cfg.target_grid, cfg.target_grid)
    rows, predicted, order = [], [], []
    for texts, answer, own in zip(said, answers, shown, strict=True):
      given = [next(left) for _ in own]
      ids, labels = self._row(texts, answer, asked.places(given, cfg.visual), BUCKETS[-1])
      rows.append(ids)
      predicted.append(labels)
      order += [*given, *[target] * (len(answer) - 1)]
    out = asked.padded(rows, BUCKETS, self._tokenizer.pad)
    out |= asked.positions(out, len(rows), order, cfg.image_token, cfg.visual.merge)
    count, length = out["tokens"].shape
    found = np.full((len(rows), length), chat.IGNORED, np.int32)
    for row, labels in zip(found, predicted, strict=True):
      row[-len(labels) :] = labels
    out["labels"] = buckets.repeat_last(found, count)
    return {**out, **asked.stacked(patches, grids, len(rows), cfg.visual)}

  def _row(
    self, texts: Sequence[str], answer: Sequence[str], places: Sequence[int], limit: int
  ) -> tuple[list[int], list[int]]:
    turn = chat.Turn(texts, answer, places, [self._cfg.slots] * (len(answer) - 1))
    return chat.talk_row(self._tokenizer, [turn], system=prompts.SYSTEM, limit=limit)

  def _rooms(self, texts: Sequence[str], answer: Sequence[str]) -> list[int]:
    """For each picture of a prompt, how many places the longest row has for it."""
    count = len(texts) - 1
    if not count:
      return []
    bare = len(self._row(["", *[""] * count], answer, [0] * count, 1 << 30)[0])
    words = len(self._row(texts, answer, [0] * count, 1 << 30)[0]) - bare
    # A long text is cut rather than the picture shrunk to nothing.
    return [(BUCKETS[-1] - bare - min(words, BUCKETS[0])) // count] * count


def _marked(
  text: str, pictures: int, what: str, before: Callable[[str, int], list[str]]
) -> list[str]:
  """A text cut where its pictures stand: at its marks, or without any as `before` has them."""
  if chat.MARK not in text:
    return before(text, pictures)
  found = text.split(chat.MARK)
  if len(found) - 1 != pictures:
    raise ValueError(f"{what} has {len(found) - 1} marks {chat.MARK} for {pictures} pictures")
  return found


def _bare(text: str, pictures: int) -> list[str]:
  """A text that pictures stand before, which `talking.Prompts` cuts."""
  del pictures
  return [text]


def batch(rows: Mapping[str, Any]) -> dict[str, Any]:
  """Rows as `NexusGen.vectors` takes them."""
  out = {name: rows[name] for name in ("tokens", "segments", "labels")}
  out["positions"] = np.moveaxis(rows["positions"], 1, 0)
  if "patches" in rows:
    layout = rows["layout"]
    out |= {"patches": rows["patches"], "patch_positions": layout.positions}
    out |= {"patch_windows": layout.windows, "patch_segments": layout.segments}
  return out


def prompt(rows: Mapping[str, Any]) -> dict[str, Any]:
  """Rows as `speaking.answer` takes them."""
  return {name: value for name, value in rows.items() if name != "labels"}
