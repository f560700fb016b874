"""What a user hands over becomes arrays: prompts, questions and pictures as padded rows.

Lengths, rows and patches are padded to a few sizes, so that another prompt compiles nothing. Texts
are never changed, but for a model that knows few words; pictures are read as `data.images.rgb` says
and shrunk where the prompt has no room for them, with a warning.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import math
import operator
import re
from typing import Any

from absl import logging
import jax
import numpy as np
from PIL import Image

from blip3o_jax.data import images as pictures
from blip3o_jax.data.text import chat
from blip3o_jax.data.text import mrope
from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.diffusion import flow
from blip3o_jax.models import qwen_vision
from blip3o_jax.systems.blip3o import prompts
from blip3o_jax.systems.blip3o import released
from blip3o_jax.systems.blip3o.model import Config
from blip3o_jax.systems.parts import buckets

# Lengths that prompts are padded to; a longer generation prompt is cut, a longer question refused.
BUCKETS = (32, 64, 160, 448)
PICTURE_BUCKETS = (64, 160, 448, 1024, 2048, 4096)
CHAT_BUCKETS = (32, 64, 160, 512, 1024, 2048, 4096)
PATCHES = 16  # the fewest that a picture is padded to
# Both samplers visit times of tables of 1000; the language model was trained on 32768 positions.
MOST = {"steps": flow.TRAIN_STEPS, "pixel_steps": flow.TRAIN_STEPS, "length": 32_768}

Picture = Image.Image | np.ndarray


class Batches:
  """Makes the arguments of `verbs.draw` and `verbs.answer` for one model."""

  def __init__(self, cfg: Config, settings: released.Settings, tokenizer: Tokenizer):
    self._cfg, self._settings, self._tokenizer = cfg, settings, tokenizer

  def drawing(
    self, texts: Sequence[str], images: Sequence[Picture | None], max_pixels: int = 0
  ) -> dict[str, Any]:
    """A padded prompt for each caption that asks for a picture, after the one it may have.

    Args:
      images: as many, or none at all.
      max_pixels: see `Model.chat`.

    Raises:
      ValueError: see `texts_of`, `images_of`.
    """
    texts, form = self.texts_of(texts, "prompt"), self._settings.prompt_form
    some = images if not isinstance(images, Sequence) or images else [None] * len(texts)
    shown = images_of(some, len(texts), "prompt")
    words, short, long = self._tokenizer, BUCKETS[-1], PICTURE_BUCKETS[-1]
    rooms = [
      long - min(len(prompts.edit_ids(words, text, 0, limit=prompts.UNLIMITED, form=form)), short)
      for text in texts
    ]
    patches, grids = self._patches(shown, rooms, max_pixels)
    places = iter(self._places(grids))
    rows = [
      prompts.generation_ids(words, text, limit=short, form=form)
      if image is None
      else prompts.edit_ids(words, text, next(places), limit=long, form=form)
      for text, image in zip(texts, shown, strict=True)
    ]
    out = self.padded(rows, PICTURE_BUCKETS if grids else BUCKETS)
    return {**out, **self._stacked(patches, grids, len(rows))}

  def asking(
    self, questions: Sequence[str], images: Sequence[Picture | None], max_pixels: int = 0
  ) -> dict[str, Any]:
    """A padded conversation for each question, after the picture it may have, with positions.

    Args, Raises: as `drawing`; ValueError: a conversation longer than the largest bucket.
    """
    questions = self.texts_of(questions, "question")
    shown, cfg, limit = images_of(images, len(questions), "question"), self._cfg, CHAT_BUCKETS[-1]

    def ids_of(question: str, places: Sequence[int]) -> list[int]:
      return chat.chat_ids(self._tokenizer, question, places, system=prompts.SYSTEM)

    rooms = [limit - len(ids_of(question, [0])) for question in questions]
    patches, grids = self._patches(shown, rooms, max_pixels)
    places = iter(self._places(grids))
    rows = [
      ids_of(question, [] if image is None else [next(places)])
      for question, image in zip(questions, shown, strict=True)
    ]
    out = self.padded(rows, CHAT_BUCKETS)
    count, n = len(out["tokens"]), len(rows)
    positions, deltas = mrope.mrope_positions(
      out["tokens"][:n], out["segments"][:n], grids, cfg.image_token, cfg.visual.merge
    )
    positions = np.moveaxis(buckets.repeat_last(np.moveaxis(positions, 1, 0), count), 0, 1)
    deltas = buckets.repeat_last(deltas, count)
    return {**out, "positions": positions, "deltas": deltas, **self._stacked(patches, grids, n)}

  def texts_of(self, values: Sequence[str], what: str) -> list[str]:
    """Texts as the model is given them.

    Where it knows few words (`Settings.words`) in small letters, with a warning that names others.

    Raises:
      ValueError: no list, an empty one, what is no text, a text without a word.
    """
    if isinstance(values, str) or not hasattr(values, "__len__"):
      raise ValueError(f"expected a list of {what}s, got {values!r}; put one into a list: [...]")
    if not len(values):
      raise ValueError(f"no {what}s: expected at least one")
    for i, text in enumerate(values):
      if not isinstance(text, str):
        raise ValueError(f"{what} {i + 1}: expected a text, got {text!r}")
      if not text.strip():
        raise ValueError(f"{what} {i + 1} is empty; say what is wanted")
    known = set(self._settings.words)
    if not known:
      return list(values)
    texts = [text.lower() for text in values]
    strange = [w for w in dict.fromkeys(re.findall(r"[^\W_]+", " ".join(texts))) if w not in known]
    if strange:
      logging.warning(
        "this model was trained with %d words and takes others for some of them: %s%s",
        len(known),
        ", ".join(strange[:12]),
        " ..." if len(strange) > 12 else "",
      )
    return texts

  def padded(self, rows: Sequence[Sequence[int]], lengths: Sequence[int]) -> dict[str, Any]:
    """Tokens and segments int32[B', P] of prompts, the last one repeated up to a power of two.

    Raises:
      ValueError: a prompt longer than the last of `lengths`.
    """
    longest = max(len(r) for r in rows)
    if longest > lengths[-1]:
      raise ValueError(f"a prompt of {longest} tokens is longer than the limit of {lengths[-1]}")
    length, count = chat.bucket_of(longest, lengths), buckets.power(len(rows))
    tokens, segments = chat.pad_left(rows, length, self._tokenizer.pad)
    return {
      "tokens": buckets.repeat_last(tokens, count),
      "segments": buckets.repeat_last(segments, count),
    }

  def _patches(
    self, images: Sequence[Image.Image | None], rooms: Sequence[int], max_pixels: int
  ) -> tuple[list[np.ndarray], list[tuple[int, int]]]:
    """Patches and grids of the pictures that there are, in order.

    Args:
      rooms: for each row, how many places its prompt has for a picture.
    """
    vision, settings = self._cfg.visual, self._settings
    unit = (vision.patch_size * vision.merge) ** 2
    if max_pixels and max_pixels < unit:
      raise ValueError(f"max_pixels {max_pixels}: expected {unit} or more, which is one place")
    wanted, factor, found = max_pixels or settings.max_pixels, vision.patch_size * vision.merge, []
    for image, room in zip(images, rooms, strict=True):
      if image is None:
        continue
      most = wanted
      least = min(settings.min_pixels, most)
      high, wide = pictures.smart_resize(
        image.height, image.width, factor=factor, min_pixels=least, max_pixels=most
      )
      shrunk = high * wide > room * unit > 0
      if shrunk:
        most = room * unit
      patches, grid = pictures.qwen_image(
        image,
        min_pixels=min(least, most),
        max_pixels=most,
        patch_size=vision.patch_size,
        merge=vision.merge,
        temporal_patch_size=vision.temporal_patch_size,
      )
      found.append((patches, grid))
      if shrunk:
        logging.warning(
          "a picture of %d x %d is shrunk to %d x %d, in place of %d x %d, to fit the %d places "
          "that the prompt has",
          *image.size,
          *(side * vision.patch_size for side in reversed(grid)),
          *(wide, high),
          room,
        )
    return [patches for patches, _ in found], [grid for _, grid in found]

  def _places(self, grids: Sequence[tuple[int, int]]) -> list[int]:
    """How many places of a prompt each picture takes."""
    return [math.prod(grid) // self._cfg.visual.merge**2 for grid in grids]

  def _stacked(
    self, patches: Sequence[np.ndarray], grids: Sequence[tuple[int, int]], rows: int
  ) -> Mapping[str, Any]:
    """`patches` and `layout` of the pictures of prompts, absent ones behind them; {} for none.

    A row that is repeated beyond `rows` looks at absent pictures, and nobody at it.
    """
    if not grids:
      return {}
    vision, count = self._cfg.visual, buckets.power(rows)
    n = buckets.fine(max(len(p) for p in patches), max(PATCHES, vision.merge**2))
    n = -(-n // vision.merge**2) * vision.merge**2
    stacked = np.zeros((count, n, patches[0].shape[1]), np.float32)
    for i, p in enumerate(patches):
      stacked[i, : len(p)] = p
    layout = qwen_vision.layout(grids, n, vision)
    room = count - len(grids)
    layout = jax.tree.map(lambda x: np.pad(x, ((0, room), *((0, 0),) * (x.ndim - 1))), layout)
    return {"patches": stacked, "layout": layout}


def images_of(
  values: Sequence[Picture | None], count: int | None, what: str
) -> list[Image.Image | None]:
  """Pictures as RGB; None stays.

  Args:
    count: how many there must be, None for any number above 0. what: they go with.

  Raises:
    ValueError: no list, another number, what is no picture (see `data.images.rgb`).
  """
  if isinstance(values, str | Image.Image) or not hasattr(values, "__len__"):
    raise ValueError(f"images: expected a list of pictures, got {type(values).__name__}")
  if count is not None and len(values) != count:
    raise ValueError(f"{count} {what}s but {len(values)} images; None stands for no picture")
  if not len(values):
    raise ValueError("no images: expected at least one")
  return [
    None if image is None else pictures.rgb(image, f"image {i + 1}")
    for i, image in enumerate(values)
  ]


def check_numbers(least: int, **numbers: float) -> None:
  """Raises ValueError for a number below `least`, above its `MOST`, or none at all."""
  for name, value in numbers.items():
    whole = name not in ("scale", "temperature")
    most = MOST.get(name, math.inf)
    try:
      number = operator.index(value) if whole else value + 0.0  # type: ignore[arg-type]
    except TypeError:
      number = math.nan
    if not least <= number <= most or number == math.inf:
      kind = "a whole number" if whole else "a finite number"
      limit = f"{least} or more" if most == math.inf else f"{least} to {most}"
      raise ValueError(f"{name} {value!r}: expected {kind}, {limit}")
