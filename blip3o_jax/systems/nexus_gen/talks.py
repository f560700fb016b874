"""Conversations with pictures on both sides as rows that teach to answer, and to draw.

A record is of one of these kinds, and its task says which are taken:

- A conversation has an answer. In its texts stand marks where pictures stand if `extra["placed"]`,
  else all stand before the first question. Those in answers are drawn (`Reading.whole` keeps them).
- An edit has `inputs`, and the picture that comes of them; a caption has the picture alone. Both
  are put into the templates of `prompts`.

The words of `extra["places"]` are what the places of pictures that are given predict, one each.
"""

from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

from blip3o_jax.data.pipeline import Arrays
from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.records import Record
from blip3o_jax.data.text import chat
from blip3o_jax.data.text import mrope
from blip3o_jax.systems.nexus_gen import prompts
from blip3o_jax.systems.nexus_gen.model import Config
from blip3o_jax.systems.parts import captions
from blip3o_jax.systems.parts.shown import Picture
from blip3o_jax.systems.parts.shown import Room
from blip3o_jax.systems.parts.shown import pictures_of
from blip3o_jax.systems.parts.targets import Encoded

UNLIMITED = 1 << 30  # more than any row has
# The kinds of records that a task takes.
KINDS: dict[str, tuple[str, ...]] = {
  "generate": ("caption",),
  "edit": ("edit", "caption"),
  "understand": ("conversation",),
  "messages": ("conversation", "edit", "caption"),
}
OTHERS = {
  "conversation": "'understand' and 'messages' take conversations",
  "edit": "'edit' and 'messages' take edits",
  "caption": "'generate', 'edit' and 'messages' take captions without an answer",
}


class Said(NamedTuple):
  """A conversation: questions and answers in turn, each cut where its pictures stand."""

  asked: Sequence[Sequence[str]]
  said: Sequence[Sequence[str]]

  def drawn(self) -> list[bool]:
    """Of each picture, in order, whether the assistant draws it."""
    pairs = zip(self.asked, self.said, strict=True)
    return [bool(i) for pair in pairs for i, texts in enumerate(pair) for _ in texts[1:]]


class Talk:
  """A record as a row of `bucket` tokens, padded before them.

  The pictures of answers are squashed to the size of the targets, the others keep their ratio. So
  that rows of pictures alone are small, the room of the task "generate" is that of a target.
  """

  def __init__(self, cfg: Config, data: Data, tokenizer: Any, bucket: int):
    self._cfg, self._data, self._tokenizer, self._bucket = cfg, data, tokenizer, bucket
    self.side = cfg.side(cfg.target_grid)
    most = self.side**2 if data.task == "generate" else cfg.form.max_pixels
    self.room = Room(cfg.visual, data, most)
    told = prompts.counts(tokenizer, data.task, cfg.form, self.room.places)
    self.counts = f"{told}, either caption" if data.swap_captions else told

  def tokens(self, record: Record) -> int:
    """Of the longest row that the record may become, uncut, its pictures as large as may be."""
    return max(self._length(record, text) for text in captions.possible(record, self._data))

  def __call__(self, record: Record, rng: np.random.Generator) -> Arrays:
    return self.row(record, rng)

  def row(self, record: Record, rng: np.random.Generator, *, drawn: bool = True) -> Arrays:
    """The arrays of a record, `drawn` with the patches of the pictures that answers hold.

    Raises:
      BadRecord: of another kind than the task's, without a picture to draw, with more pictures than
        a row has room for, with one that cannot be used, or with pictures that do not fit.
    """
    self._check(record)
    said = self._said(record, captions.chosen(record, self._data, rng))
    draws, encoded = said.drawn(), self._pictures(record)
    if len(draws) != len(encoded):
      raise BadRecord(
        f"{record.name}: {len(draws)} marks {chat.MARK} for {len(encoded)} pictures", "lists"
      )
    self.room.check(len(draws) if drawn else draws.count(False), record.name)
    pictures = [
      (self._target if draw else self._input)(each, record.name, drawn)
      for each, draw in zip(encoded, draws, strict=True)
    ]
    places = [self.room.places_of(picture) for picture in pictures]
    try:
      ids, predicted = self._ids(record, said, places, self._bucket)
    except ValueError as error:
      raise BadRecord(f"{record.name}: {error}", "size") from None
    # Turns that were cut had the others.
    kept = ids.count(self._tokenizer.vision_start)
    names = record.extra.get("places", ())
    out = self._arrays(ids, predicted, [p.grid for p in pictures[:kept]], names)
    if not self._data.image_size:
      return out
    shown = [p for p, draw in zip(pictures[:kept], draws[:kept], strict=True) if drawn or not draw]
    return out | self.room.arrays(shown)

  # Of a record -----------------------------------------------------------------------------------

  def _check(self, record: Record) -> None:
    """Raises BadRecord for a record that the task does not take."""
    kind, task = _kind(record), self._data.task
    if kind not in KINDS[task]:
      what = f"{record.name}: config.data.task {task!r} takes no {kind}; {OTHERS[kind]}"
      raise BadRecord(what, "lists")
    if not self._data.image_size and (kind != "conversation" or pictures_of(record)):
      raise BadRecord(f"{record.name}: has a picture, but data.image_size is 0")
    if kind == "caption" and not record.prompt.strip():
      raise BadRecord(f"{record.name}: neither a caption nor an answer", "empty")
    marked = any(chat.MARK in text for text in _answers(record))
    if task == "understand" and marked and record.extra.get("placed"):
      raise BadRecord(
        f"{record.name}: an answer holds a picture; config.data.task 'messages' draws it", "lists"
      )

  def _said(self, record: Record, text: str) -> Said:
    """What is said in a row, given the caption that is trained on."""
    kind, form = _kind(record), self._cfg.form
    if kind != "conversation":
      count = record.extra.get("inputs", len(record.inputs))
      if record.extra.get("placed"):
        told = text.split(chat.MARK)
      elif count:
        told = prompts.editing(text, count, form.pictures)
      else:
        told = prompts.generating(text, form.language)
      return Said([told], [prompts.drawn(count, form.language)])
    pairs = [(record.prompt, record.answer), *record.turns]
    if record.extra.get("placed"):
      return Said([q.split(chat.MARK) for q, _ in pairs], [a.split(chat.MARK) for _, a in pairs])
    count = record.extra.get("pictures", len(pictures_of(record)))
    asked = [prompts.asking(record.prompt, count), *([q] for q, _ in record.turns)]
    return Said(asked, [[a] for _, a in pairs])

  def _pictures(self, record: Record) -> list[Encoded]:
    """In the order in which the row has them."""
    if _kind(record) == "conversation":
      return list(pictures_of(record))
    return [*record.inputs, record.image]

  def _input(self, encoded: Encoded, name: str, drawn: bool) -> Picture:
    del drawn
    return self.room.native(encoded, name)

  def _target(self, encoded: Encoded, name: str, drawn: bool) -> Picture:
    """A picture that is drawn; where only its places count, nothing is read."""
    if drawn:
      return self.room.squashed(encoded, name, self.side)
    vision, grid = self._cfg.visual, self._cfg.target_grid
    return Picture(np.zeros((0, vision.patch_dim), np.uint8), (grid, grid))

  # Of a row --------------------------------------------------------------------------------------

  def _length(self, record: Record, text: str) -> int:
    said = self._said(record, text)
    places = [self._cfg.slots if draw else self.room.places for draw in said.drawn()]
    return len(self._ids(record, said, places, UNLIMITED)[0])

  def _ids(
    self, record: Record, said: Said, places: Sequence[int], limit: int
  ) -> tuple[list[int], list[int]]:
    turns = chat.turns_of(said.asked, said.said, places)
    system = record.extra.get("system", prompts.SYSTEM)
    return chat.talk_row(self._tokenizer, turns, system=system, limit=limit)

  def _arrays(
    self,
    ids: list[int],
    predicted: list[int],
    grids: Sequence[tuple[int, int]],
    names: Sequence[str],
  ) -> Arrays:
    words, visual = self._tokenizer, self._cfg.visual
    out = chat.token_row(ids, self._bucket, words.pad)
    labels = np.full(self._bucket, chat.IGNORED, np.int32)
    labels[-len(predicted) :] = predicted
    if names:
      slots = np.roll(labels == words.image_pad, 1)
      given = (out["tokens"] == words.image_pad) & ~slots
      labels[given] = chat.single_ids(words, names)
    tokens, segments = out["tokens"][None], out["segments"][None]
    found, _ = mrope.mrope_positions(tokens, segments, grids, words.image_pad, visual.merge)
    return out | {"labels": labels, "positions": found[:, 0]}


def _kind(record: Record) -> str:
  """Of the kinds of `KINDS`."""
  if record.answer:
    return "conversation"
  return "edit" if record.extra.get("inputs", len(record.inputs)) else "caption"


def _answers(record: Record) -> list[str]:
  return [record.answer, *(answer for _, answer in record.turns)]
