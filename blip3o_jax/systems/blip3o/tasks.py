"""What a record becomes for each task of BLIP3-o, in numpy.

| task | arrays of a batch |
|---|---|
| generate | tokens, segments int32[B, P]: a prompt that ends in [IMG]; images or features |
| understand | tokens, segments, labels int32[B, T]; positions int32[B, 3, T]; patches [B, N, p] |

Rows are padded on the left. Beside patches stand the constants of `qwen_vision.Layout`; there are
no patches where `Data.image_size` is 0. images float32[B, S, S, 3], normalised as `Data.values`
says; features float32[B, h, w, C].

A record of `understand` may have, in `extra`: `reads`, words that the hidden vectors at the slots
should name, one each (what the prompt asks to draw or, where there is a picture, what it shows; no
answer goes with them); `places`, words that the hidden vectors at the picture's own tokens should
name, one each, in the order of the tokens.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from blip3o_jax.data import images
from blip3o_jax.data.pipeline import Arrays
from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.pipeline import Transform
from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.records import Record
from blip3o_jax.data.text import chat
from blip3o_jax.data.text import mrope
from blip3o_jax.models import qwen_vision
from blip3o_jax.systems.blip3o import prompts
from blip3o_jax.systems.blip3o.model import Config
from blip3o_jax.systems.parts import targets

UNLIMITED = 1 << 30


def transforms(
  cfg: Config, data: Data, tokenizer: prompts.Tokenizer | None
) -> dict[int, Transform]:
  """{bucket: what makes a record a row of that length}, for the task of `data`.

  Raises:
    ValueError: another task, no tokenizer, a bucket that the prompt's template does not fit, a
      picture that the vision tower's patches do not tile.
  """
  data.check_task("generate", "understand")
  if tokenizer is None:
    raise ValueError(f"config.tokenizer: task {data.task!r} needs a directory with tokenizer.json")
  if data.task == "generate":
    for bucket in data.buckets:
      prompts.generation_ids(tokenizer, "", limit=bucket, form=cfg.prompt_form)
    return {bucket: Generate(cfg, data, tokenizer, bucket) for bucket in data.buckets}
  unit = cfg.visual.patch_size * cfg.visual.merge
  if data.image_size % unit:
    raise ValueError(
      f"config.data.image_size: {data.image_size} is not a multiple of patch_size x merge = {unit}"
    )
  made: dict[int, Transform] = {b: Understand(cfg, data, tokenizer, b) for b in data.buckets}
  for bucket in data.buckets:
    places = [image_tokens(cfg, data)]
    chat.chat_ids(tokenizer, "", places, system=prompts.SYSTEM, limit=bucket)
  return made


def image_tokens(cfg: Config, data: Data) -> int:
  """Places of one picture in an understanding row."""
  return (data.image_size // (cfg.visual.patch_size * cfg.visual.merge)) ** 2


@dataclasses.dataclass(frozen=True)
class Generate:
  """A caption as a generation prompt of `bucket` tokens, and what it should become."""

  cfg: Config
  data: Data
  tokenizer: prompts.Tokenizer
  bucket: int

  def tokens(self, record: Record) -> int:
    """Of the prompt, uncut."""
    return len(self._prompt(record, UNLIMITED))

  def __call__(self, record: Record, rng: np.random.Generator) -> Arrays:
    del rng  # as released: no augmentation
    ids = self._prompt(record, self.bucket)
    row = chat.token_row(ids, self.bucket, self.tokenizer.pad)
    return row | targets.target(record, self.data)

  def _prompt(self, record: Record, limit: int) -> list[int]:
    form = self.cfg.prompt_form
    return prompts.generation_ids(self.tokenizer, record.prompt, limit=limit, form=form)


class Understand:
  """A question about a picture, or about nothing, and its answer as a row of `bucket` tokens.

  A record with `reads` becomes a prompt for a picture with something to read at the slots; one with
  `places` has something to read at the picture's tokens as well.
  """

  def __init__(self, cfg: Config, data: Data, tokenizer: prompts.Tokenizer, bucket: int):
    self._cfg, self._data, self._tokenizer, self._bucket = cfg, data, tokenizer, bucket
    self._cells = image_tokens(cfg, data)
    side = data.image_size // cfg.visual.patch_size
    self._grid = (side, side)
    self._layout: Arrays = {}
    if side:
      layout: Any = qwen_vision.layout([self._grid], side * side, cfg.visual)
      fields = dataclasses.fields(layout)
      self._layout = {f"patch_{f.name}": getattr(layout, f.name)[0] for f in fields}

  def tokens(self, record: Record) -> int:
    """Of the row, uncut."""
    reads = record.extra.get("reads", ())
    if reads:
      return len(self._asked(record, UNLIMITED)) + len(reads)
    return len(self._answered(record, UNLIMITED)[0])

  def __call__(self, record: Record, rng: np.random.Generator) -> Arrays:
    if record.image is not None and not self._data.image_size:
      raise BadRecord(f"{record.name}: shows a picture, but data.image_size is 0")
    reads: Sequence[str] = record.extra.get("reads", ())
    if reads:
      # Their vectors are at random, as slots are at first.
      fill = rng.integers(*prompts.UNUSED, size=len(reads)).tolist()
      asked = self._asked(record, self._bucket - len(fill))
      return self._row(record, *prompts.reading_row(self._tokenizer, asked, reads, fill))
    if not record.answer:
      raise BadRecord(f"{record.name}: a question without an answer cannot train understanding")
    return self._row(record, *self._answered(record, self._bucket))

  def _answered(self, record: Record, limit: int) -> tuple[list[int], list[int]]:
    places = [self._cells] * (record.image is not None)
    return chat.chat_row(
      self._tokenizer,
      record.prompt,
      record.answer,
      places,
      record.turns,
      system=prompts.SYSTEM,
      limit=limit,
    )

  def _asked(self, record: Record, limit: int) -> list[int]:
    form = self._cfg.prompt_form
    if record.image is None:
      return prompts.generation_ids(self._tokenizer, record.prompt, limit=limit, form=form)
    return prompts.reconstruction_ids(self._tokenizer, self._cells, form=form)

  def _row(self, record: Record, ids: list[int], predicted: list[int]) -> Arrays:
    tokenizer, vision = self._tokenizer, self._cfg.visual
    has = record.image is not None
    out = chat.token_row(ids, self._bucket, tokenizer.pad)
    labels = np.full(self._bucket, chat.IGNORED, np.int32)
    labels[-len(predicted) :] = predicted
    if places := record.extra.get("places", ()):
      labels[out["tokens"] == tokenizer.image_pad] = prompts.single_ids(tokenizer, places)
    grids = [self._grid] * has
    tokens, segments = out["tokens"][None], out["segments"][None]
    found, _ = mrope.mrope_positions(tokens, segments, grids, tokenizer.image_pad, vision.merge)
    out |= {"labels": labels, "positions": found[:, 0]}
    if not self._data.image_size:
      return out
    if not has:
      patches = np.zeros((self._grid[0] * self._grid[1], vision.patch_dim), np.float32)
      return out | {"patches": patches} | {k: np.zeros_like(v) for k, v in self._layout.items()}
    patches = images.patchify(
      images.normalise(targets.square(record, self._data)),
      patch_size=vision.patch_size,
      merge=vision.merge,
      temporal_patch_size=vision.temporal_patch_size,
    )
    return out | {"patches": patches} | self._layout
