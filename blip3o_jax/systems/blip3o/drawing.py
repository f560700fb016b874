"""Prompts for a picture, from a caption, after others or after itself, and the picture itself."""

from collections.abc import Sequence

import numpy as np

from blip3o_jax.data.pipeline import Arrays
from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.records import Record
from blip3o_jax.data.text import chat
from blip3o_jax.systems.blip3o import prompts
from blip3o_jax.systems.blip3o.model import Config
from blip3o_jax.systems.parts import captions
from blip3o_jax.systems.parts import targets
from blip3o_jax.systems.parts.shown import Room


class Generate:
  """A caption as a generation prompt of `bucket` tokens, and what it should become.

  Captions may be dropped and swapped, see `Data`.
  """

  def __init__(self, cfg: Config, data: Data, tokenizer: prompts.Tokenizer, bucket: int):
    self._cfg, self._data, self._tokenizer, self._bucket = cfg, data, tokenizer, bucket
    self.counts = self._counts(0)
    self._bare: dict[int, int] = {}  # tokens of a prompt without a caption, by its pictures

  def tokens(self, record: Record) -> int:
    """Of the longest prompt that the record may become, uncut."""
    places = self._most(record)
    if (n := len(places)) not in self._bare:  # counted for every record of a set
      self._bare[n] = len(self._prompt("", places, prompts.UNLIMITED))
    told = (self._prompt(text, places, prompts.UNLIMITED) for text in self._captions(record))
    return max(self._bare[n], *map(len, told))

  def __call__(self, record: Record, rng: np.random.Generator) -> Arrays:
    if record.inputs:
      raise BadRecord(
        f"{record.name}: an edit of {len(record.inputs)} pictures, which config.data.task "
        f"{self._data.task!r} does not show; 'edit' does",
        "lists",
      )
    ids = self._prompt(self._caption(record, rng), [], self._bucket)
    row = chat.token_row(ids, self._bucket, self._tokenizer.pad)
    return row | targets.target(record, self._data)

  def _counts(self, places: int) -> str:
    said = prompts.counts(self._tokenizer, self._data.task, places, self._cfg.prompt_form)
    return f"{said}, either caption" if self._data.swap_captions else said

  def _prompt(self, caption: str, places: Sequence[int], limit: int) -> list[int]:
    form = self._cfg.prompt_form
    return prompts.drawing_ids(self._tokenizer, caption, places, limit=limit, form=form)

  def _most(self, record: Record) -> list[int]:
    """The most places that each picture of the prompt may take, as a record's words know them."""
    del record
    return []

  def _captions(self, record: Record) -> list[str]:
    """All that `_caption` may be, but for none."""
    return captions.possible(record, self._data)

  def _caption(self, record: Record, rng: np.random.Generator) -> str:
    return captions.chosen(record, self._data, rng)


class Edit(Generate):
  """Pictures and what to make of them as a prompt of `bucket` tokens, and what it should become.

  A record without pictures to begin with (`Record.inputs`) is a generation prompt, in the same
  arrays.

  Attributes:
    least: what a prompt must have room for, beside its pictures.
  """

  least = ""

  def __init__(self, cfg: Config, data: Data, tokenizer: prompts.Tokenizer, bucket: int):
    super().__init__(cfg, data, tokenizer, bucket)
    self._room = Room(cfg.visual, data)
    self.counts = self._counts(self._room.places)

  def __call__(self, record: Record, rng: np.random.Generator) -> Arrays:
    shown = self._shown(record)
    self._room.check(len(shown), record.name)
    pictures = [self._room.picture(each, record.name) for each in shown]
    places = [self._room.places_of(picture) for picture in pictures]
    least = len(self._prompt(self.least, places, prompts.UNLIMITED))
    self._room.fits(least, self._bucket, places, record.name)
    ids = self._prompt(self._caption(record, rng), places, self._bucket)
    row = chat.token_row(ids, self._bucket, self._tokenizer.pad)
    return row | self._room.arrays(pictures) | targets.target(record, self._data)

  def _shown(self, record: Record) -> Sequence[bytes | np.ndarray | None]:
    return record.inputs

  def _most(self, record: Record) -> list[int]:
    return [self._room.places] * record.extra.get("inputs", len(record.inputs))


class Reconstruct(Edit):
  """A picture, and the request to draw it again, as a prompt of `bucket` tokens."""

  least = prompts.RECONSTRUCT

  def _shown(self, record: Record) -> Sequence[bytes | np.ndarray | None]:
    return [record.image]

  def _most(self, record: Record) -> list[int]:
    return [self._room.places]

  def _captions(self, record: Record) -> list[str]:
    return [prompts.RECONSTRUCT]

  def _caption(self, record: Record, rng: np.random.Generator) -> str:
    return prompts.RECONSTRUCT
