"""What a record becomes for each task, and the pipeline of a data config. Knows no network.

| task | arrays of a batch |
|---|---|
| generate | tokens, segments int32[B, P]: a prompt that ends in [IMG]; images or features |
| understand | tokens, segments, labels int32[B, T]; positions int32[B, 3, T]; patches [B, N, p] |
| contrast | tokens, segments int32[B, P]: a bare caption and its end; images or features |
| pixels | images in [-1, 1], and features where `Data.features` asks for them |

Rows are padded on the left. There are no patches where `Data.image_size` is 0. images float32[B, S,
S, 3], normalised as `Data.values` says; features float32[B, h, w, C].
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import numpy as np

from blip3o_jax.data import images as pictures
from blip3o_jax.data.pipeline import Arrays
from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.pipeline import Pipeline
from blip3o_jax.data.pipeline import Transform
from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.records import InMemory
from blip3o_jax.data.records import Record
from blip3o_jax.data.records import Source
from blip3o_jax.data.records import Subset
from blip3o_jax.data.records import text_bytes
from blip3o_jax.data.shapes import source as embedded
from blip3o_jax.data.sources import tars
from blip3o_jax.data.text import chat
from blip3o_jax.data.text import mrope
from blip3o_jax.models import qwen_vision

SAMPLE = 256  # records that are tokenised to estimate the lengths of all
UNLIMITED = 1 << 30


def generate_transform(cfg: Data, tokenizer: chat.Tokenizer, bucket: int) -> Transform:
  """A caption as a generation prompt of `bucket` tokens, and what it should become."""

  def transform(record: Record, rng: np.random.Generator) -> Arrays:
    del rng  # as released: no augmentation
    ids = chat.generation_ids(tokenizer, record.prompt, limit=bucket, form=cfg.form)
    return _tokens(ids, bucket, tokenizer.pad) | _target(cfg, record)

  return transform


def understand_transform(
  cfg: Data,
  tokenizer: chat.Tokenizer,
  bucket: int,
  layout: Mapping[str, np.ndarray] | None = None,
) -> Transform:
  """A question about a picture, or about nothing, and its answer as a row of `bucket` tokens.

  A record with `reads` becomes a prompt for a picture with something to read at the slots; one
  with `places` has something to read at the picture's tokens as well.

  Args:
    layout: constants of one picture that the vision tower wants beside its patches, added to each
      row; zeros in a row without a picture.
  """
  side = cfg.image_size // cfg.patch_size
  grid = (side, side)
  shape = (side * side, 3 * cfg.temporal_patch_size * cfg.patch_size**2)

  def transform(record: Record, rng: np.random.Generator) -> Arrays:
    if record.image is not None and not side:
      raise BadRecord(f"{record.name}: shows a picture, but data.image_size is 0")
    if record.reads:
      return read(record, rng)
    if not record.answer:
      raise BadRecord(f"{record.name}: a question without an answer cannot train understanding")
    places = [cfg.image_tokens] * (record.image is not None)
    ids, targets = chat.chat_row(
      tokenizer, record.prompt, record.answer, places, record.turns, limit=bucket
    )
    return row(record, ids, targets)

  def read(record: Record, rng: np.random.Generator) -> Arrays:
    # Their vectors are at random, as slots are at first.
    fill = rng.integers(*chat.UNUSED, size=len(record.reads)).tolist()
    if record.image is None:
      room = bucket - len(fill)
      prompt = chat.generation_ids(tokenizer, record.prompt, limit=room, form=cfg.form)
    else:
      prompt = chat.reconstruction_ids(tokenizer, cfg.image_tokens, form=cfg.form)
    return row(record, *chat.reading_row(tokenizer, prompt, record.reads, fill))

  def row(record: Record, ids: list[int], targets: list[int]) -> Arrays:
    has = record.image is not None
    out = _tokens(ids, bucket, tokenizer.pad)
    labels = np.full(bucket, chat.IGNORED, np.int32)
    labels[-len(targets) :] = targets
    if record.places:
      labels[out["tokens"] == tokenizer.image_pad] = chat.single_ids(tokenizer, record.places)
    positions, _ = mrope.mrope_positions(
      out["tokens"][None], out["segments"][None], [grid] * has, tokenizer.image_pad, cfg.merge
    )
    out |= {"labels": labels, "positions": positions[:, 0]}
    if not side:
      return out
    patches = np.zeros(shape, np.float32)
    if has:
      patches = pictures.patchify(
        pictures.normalise(_square(cfg, record, cfg.image_size)),
        patch_size=cfg.patch_size,
        merge=cfg.merge,
        temporal_patch_size=cfg.temporal_patch_size,
      )
    constants = {k: v if has else np.zeros_like(v) for k, v in (layout or {}).items()}
    return out | {"patches": patches} | constants

  return transform


def contrast_transform(cfg: Data, tokenizer: chat.Tokenizer, bucket: int) -> Transform:
  """A picture and its bare caption, cut to `bucket` tokens with <|im_end|> as the last."""

  def transform(record: Record, rng: np.random.Generator) -> Arrays:
    del rng
    ids = chat.text_ids(tokenizer, record.prompt, limit=bucket)
    return _tokens(ids, bucket, tokenizer.pad) | _target(cfg, record)

  return transform


def pixels_transform(cfg: Data) -> Transform:
  """A picture in [-1, 1] for the pixel decoder, with its cached features if they are wanted."""

  def transform(record: Record, rng: np.random.Generator) -> Arrays:
    del rng
    images = pictures.signed(_square(cfg, record, cfg.image_size))
    return {"images": images} | (_target(cfg, record) if cfg.features else {})

  return transform


def token_lengths(source: Source, cfg: Data, tokenizer: chat.Tokenizer) -> np.ndarray:
  """Tokens that each record's row needs, int64[n], estimated from the bytes of its text.

  The template's tokens are exact; those of the text are its bytes times the largest ratio that is
  seen among 256 records over the whole source, so that few texts, if any, are cut. With one bucket
  there is nothing to choose, and zeros are returned.
  """
  if cfg.task == "pixels" or len(cfg.buckets) == 1:
    return np.zeros(len(source), np.int64)

  def count(record: Record, places: Sequence[int] = ()) -> int:
    prompt, answer, turns = record.prompt, record.answer, record.turns
    if record.reads:
      asked = chat.generation_ids(tokenizer, prompt, limit=UNLIMITED, form=cfg.form)
      return len(asked) + len(record.reads)
    if cfg.task == "understand":
      return len(chat.chat_row(tokenizer, prompt, answer, places, turns, limit=UNLIMITED)[0])
    if cfg.task == "contrast":
      return len(chat.text_ids(tokenizer, prompt, limit=UNLIMITED))
    return len(chat.generation_ids(tokenizer, prompt, limit=UNLIMITED, form=cfg.form))

  nothing = Record()
  ratio, empty, template = 0.0, count(nothing), count(nothing, [cfg.image_tokens])
  for index in np.unique(np.linspace(0, len(source) - 1, SAMPLE).astype(np.int64)):
    try:
      record = source[int(index)]
    except BadRecord:
      continue
    extra = count(record) - empty
    ratio = max(ratio, extra / max(text_bytes(record), 1))
  return template + np.ceil(source.lengths() * ratio).astype(np.int64)


def open_source(cfg: Data) -> Source:
  """The records of a data config.

  Raises:
    FileNotFoundError, ValueError: see `tars.TarSource`, `embedded.EmbeddedSource`; an empty split.
  """
  if cfg.source == "shapes":
    asks = cfg.task == "understand"
    home = cfg.path if cfg.features else ""
    return embedded.EmbeddedSource(
      cfg.split, cfg.records, cfg.mixture, questions=asks, features=home
    )
  source = tars.TarSource(cfg.path)
  if not cfg.holdout and cfg.split == "train":
    chosen = np.arange(len(source))
  else:
    held = source.hashes() < math.floor(cfg.holdout * 2**32)
    chosen = np.flatnonzero(held if cfg.split == "test" else ~held)
  if not len(chosen):
    raise ValueError(f"{cfg.path}: the split {cfg.split!r} is empty; holdout is {cfg.holdout}")
  return Subset(source, chosen[: cfg.records or None])


def build(
  source: Source,
  cfg: Data,
  tokenizer: chat.Tokenizer,
  *,
  rows: Sequence[int] = (),
  layout: Mapping[str, np.ndarray] | None = None,
) -> Pipeline:
  """The pipeline of a task over a source.

  Args:
    rows: of the global batch that this process loads. layout: see `understand_transform`.

  Raises:
    ValueError: a bucket that the prompt's template does not fit, sizes that do not divide.
  """
  made: dict[int, Transform] = {}
  if cfg.task == "understand" and cfg.image_size % (cfg.patch_size * cfg.merge):
    raise ValueError(
      f"image_size {cfg.image_size} is not a multiple of patch_size x merge = "
      f"{cfg.patch_size * cfg.merge}"
    )
  for bucket in cfg.buckets:
    match cfg.task:
      case "generate":
        chat.generation_ids(tokenizer, "", limit=bucket, form=cfg.form)
        made[bucket] = generate_transform(cfg, tokenizer, bucket)
      case "understand":
        chat.chat_ids(tokenizer, "", [cfg.image_tokens], limit=bucket)
        made[bucket] = understand_transform(cfg, tokenizer, bucket, layout)
      case "contrast":
        made[bucket] = contrast_transform(cfg, tokenizer, bucket)
      case "pixels":
        made[bucket] = pixels_transform(cfg)
  return Pipeline(source, made, token_lengths(source, cfg, tokenizer), cfg, rows)


@dataclasses.dataclass(frozen=True)
class Made:
  """A transform, and how many tokens its rows would have without padding."""

  call: Transform
  count: Callable[[Record], int]

  def __call__(self, record: Record, rng: np.random.Generator) -> Arrays:
    return self.call(record, rng)

  def tokens(self, record: Record) -> int:
    return self.count(record)


def transforms(model: Any, cfg: Data, tokenizer: Any) -> dict[int, Transform]:
  """{bucket: transform} of a task; ValueError for a tokenizer that is wanted and not there."""
  if cfg.task != "pixels" and tokenizer is None:
    raise ValueError(f"config.tokenizer: task {cfg.task!r} needs a directory with tokenizer.json")
  layout: dict[str, np.ndarray] = {}
  if cfg.task == "understand" and cfg.image_size:
    vision = model.visual
    side = cfg.image_size // vision.patch_size
    places = qwen_vision.layout([(side, side)], side * side, vision)
    layout = {f"patch_{f.name}": getattr(places, f.name)[0] for f in dataclasses.fields(places)}
  whole = build(InMemory([Record(prompt="x")] * cfg.batch), cfg, tokenizer, layout=layout)

  def count(record: Record) -> int:
    if cfg.task == "pixels":
      return 0
    prompt, places = record.prompt, [cfg.image_tokens] * (record.image is not None)
    if record.reads:
      asked = chat.generation_ids(tokenizer, prompt, limit=UNLIMITED, form=cfg.form)
      return len(asked) + len(record.reads)
    if cfg.task == "understand":
      return len(
        chat.chat_row(tokenizer, prompt, record.answer, places, record.turns, limit=UNLIMITED)[0]
      )
    if cfg.task == "contrast":
      return len(chat.text_ids(tokenizer, prompt, limit=UNLIMITED))
    return len(chat.generation_ids(tokenizer, prompt, limit=UNLIMITED, form=cfg.form))

  return {b: Made(t, count) for b, t in zip(whole.buckets, whole._transforms, strict=True)}


def _tokens(ids: list[int], length: int, pad: int) -> Arrays:
  tokens, segments = chat.pad_left([ids], length, pad)
  return {"tokens": tokens[0], "segments": segments[0]}


def _square(cfg: Data, record: Record, size: int) -> np.ndarray:
  if record.image is None:
    raise BadRecord(f"{record.name}: no image")
  image = pictures.decode(record.image, record.name, friendly=cfg.friendly)
  try:
    return pictures.square(image, size, squash=cfg.squash)
  except BadRecord as error:
    raise BadRecord(f"{record.name}: {error}") from None


def _target(cfg: Data, record: Record) -> Arrays:
  """The record's cached features, or its picture for the encoder."""
  if cfg.features:
    if record.features is None:
      raise BadRecord(f"{record.name}: no cached features (KEY.npy beside the caption)")
    return {"features": record.features.astype(np.float32)}
  image = _square(cfg, record, cfg.image_size)
  return {"images": pictures.normalise(image) if cfg.values == "clip" else pictures.signed(image)}
