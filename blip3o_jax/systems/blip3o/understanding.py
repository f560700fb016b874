"""Conversations about pictures, or about nothing, as rows that teach to answer.

A record may have in `extra`: `placed`, true where the questions hold a `chat.MARK` for each picture
in the place where it stands (else all stand before the first question); `reads`, words that the
hidden vectors at the slots should name, one each (what the prompt asks to draw or, where there is a
picture, what it shows; no answer goes with them); `places`, words that the hidden vectors at the
pictures' own tokens should name, one each, in the order of the tokens.
"""

from collections.abc import Sequence

import numpy as np

from blip3o_jax.data.pipeline import Arrays
from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.records import Record
from blip3o_jax.data.text import chat
from blip3o_jax.data.text import mrope
from blip3o_jax.systems.blip3o import prompts
from blip3o_jax.systems.blip3o.model import Config
from blip3o_jax.systems.parts.shown import Picture
from blip3o_jax.systems.parts.shown import Room
from blip3o_jax.systems.parts.shown import pictures_of


class Understand:
  """A question about pictures, or about nothing, and its answer as a row of `bucket` tokens.

  A record with `reads` becomes a prompt for a picture with something to read at the slots; one with
  `places` has something to read at its pictures' tokens as well.
  """

  def __init__(self, cfg: Config, data: Data, tokenizer: prompts.Tokenizer, bucket: int):
    self._cfg, self._data, self._tokenizer, self._bucket = cfg, data, tokenizer, bucket
    self._room = Room(cfg.visual, data)
    self.counts = prompts.counts(tokenizer, data.task, self._room.places, cfg.prompt_form)

  def tokens(self, record: Record) -> int:
    """Of the row, uncut, its pictures as large as they may be."""
    reads = record.extra.get("reads", ())
    if record.extra.get("placed"):
      count = _marks(record)
    else:
      count = record.extra.get("pictures", len(pictures_of(record)))
    places = [self._room.places] * count
    if reads:
      return len(self._asked(record, places, prompts.UNLIMITED)) + len(reads)
    return len(self._answered(record, places, prompts.UNLIMITED)[0])

  def __call__(self, record: Record, rng: np.random.Generator) -> Arrays:
    shown, reads = pictures_of(record), record.extra.get("reads", ())
    self._check(record, len(shown))
    pictures = [self._room.picture(each, record.name) for each in shown]
    places = [self._room.places_of(picture) for picture in pictures]
    if reads:
      # Their vectors are at random, as slots are at first.
      fill = rng.integers(*prompts.UNUSED, size=len(reads)).tolist()
      asked = self._asked(record, places, self._bucket - len(fill))
      self._room.fits(len(asked) + len(fill), self._bucket, places, record.name)
      ids, predicted = prompts.reading_row(self._tokenizer, asked, reads, fill)
    else:
      first = places[: record.prompt.count(chat.MARK)] if record.extra.get("placed") else places
      least = chat.chat_ids(self._tokenizer, "", first, system=prompts.SYSTEM)
      self._room.fits(len(least), self._bucket, first, record.name)
      ids, predicted = self._answered(record, places, self._bucket)
    return self._row(record, ids, predicted, pictures)

  def _check(self, record: Record, count: int) -> None:
    """Raises BadRecord for a record that cannot train understanding."""
    name, placed, reads = record.name, record.extra.get("placed"), record.extra.get("reads")
    if count and not self._data.image_size:
      raise BadRecord(f"{name}: shows a picture, but data.image_size is 0")
    self._room.check(count, name)
    if reads and count > 1:
      raise BadRecord(f"{name}: words to be read at the slots are of one picture, not {count}")
    if not reads and not record.answer:
      raise BadRecord(f"{name}: a question without an answer cannot train understanding")
    if placed and (marks := _marks(record)) != count:
      raise BadRecord(
        f"{name}: its questions hold {marks} marks {chat.MARK} for {count} pictures", "lists"
      )

  def _answered(
    self, record: Record, places: Sequence[int], limit: int
  ) -> tuple[list[int], list[int]]:
    return chat.chat_row(
      self._tokenizer,
      record.prompt,
      record.answer,
      places,
      record.turns,
      system=prompts.SYSTEM,
      limit=limit,
      mark=chat.MARK if record.extra.get("placed") else "",
    )

  def _asked(self, record: Record, places: Sequence[int], limit: int) -> list[int]:
    form = self._cfg.prompt_form
    if places:
      return prompts.reconstruction_ids(self._tokenizer, places[0], form=form)
    return prompts.generation_ids(self._tokenizer, record.prompt, limit=limit, form=form)

  def _row(
    self, record: Record, ids: list[int], predicted: list[int], pictures: Sequence[Picture]
  ) -> Arrays:
    tokenizer = self._tokenizer
    out = chat.token_row(ids, self._bucket, tokenizer.pad)
    labels = np.full(self._bucket, chat.IGNORED, np.int32)
    labels[-len(predicted) :] = predicted
    if places := record.extra.get("places", ()):
      labels[out["tokens"] == tokenizer.image_pad] = chat.single_ids(tokenizer, places)
    pictures = pictures[: ids.count(tokenizer.vision_start)]  # turns that were cut had the others
    tokens, segments, grids = out["tokens"][None], out["segments"][None], [p.grid for p in pictures]
    merge = self._cfg.visual.merge
    found, _ = mrope.mrope_positions(tokens, segments, grids, tokenizer.image_pad, merge)
    out |= {"labels": labels, "positions": found[:, 0]}
    return out | self._room.arrays(pictures) if self._data.image_size else out


def _marks(record: Record) -> int:
  """Of pictures, in its questions."""
  return sum(text.count(chat.MARK) for text in (record.prompt, *(q for q, _ in record.turns)))
