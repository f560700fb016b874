"""What a user hands over, checked and as arrays: texts, pictures, numbers, prompts as padded rows.

Lengths, rows and patches are padded to a few sizes, so that another prompt compiles nothing.
Pictures are read as `data.images.rgb` says and shrunk where the prompt has no room for them, with a
warning.
"""

from collections.abc import Collection
from collections.abc import Iterable
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
from blip3o_jax.diffusion import flow
from blip3o_jax.models import qwen_vision
from blip3o_jax.systems.parts import buckets

PATCHES = 16  # the fewest that a picture is padded to
# Samplers visit times of tables of 1000; the language models were trained on 32768 positions.
MOST = {"steps": flow.TRAIN_STEPS, "pixel_steps": flow.TRAIN_STEPS, "length": 32_768}

Picture = Image.Image | np.ndarray
Grid = tuple[int, int]


def texts_of(values: Sequence[str], what: str, words: Sequence[str] = ()) -> list[str]:
  """Texts, as a list; for a model that knows few words in small letters, with a warning of others.

  Args:
    what: each of them is, for errors. words: all that the model knows; empty for any.

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
  if not words:
    return list(values)
  texts = [text.lower() for text in values]
  if strange := unknown(texts, words):
    logging.warning(
      "words that this model does not know (it was trained with %d), taken for others: %s%s",
      len(words),
      ", ".join(strange[:12]),
      " ..." if len(strange) > 12 else "",
    )
  return texts


def unknown(texts: Iterable[str], words: Collection[str]) -> list[str]:
  """Words of texts, in small letters, that a model of few `words` does not know; empty for any."""
  if not words:
    return []
  known = frozenset(words)
  said = " ".join(texts).lower().replace(chat.MARK, " ")
  return [w for w in dict.fromkeys(re.findall(r"[^\W_]+", said)) if w not in known]


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


def all_images(values: Sequence[Picture], count: int | None, what: str) -> list[Image.Image]:
  """As `images_of`, where none may be absent."""
  found = [image for image in images_of(values, count, what) if image is not None]
  if len(found) < len(values):
    absent = next(i for i, image in enumerate(values) if image is None)
    raise ValueError(f"image {absent + 1}: expected a picture, got None")
  return found


def check_options(verb: str, options: Iterable[str], known: Collection[str]) -> None:
  """Raises ValueError for an option that a verb of this system has not, by name."""
  if strange := [name for name in options if name not in known]:
    able = ", ".join(known) or "none"
    raise ValueError(f"this model cannot {verb} with the option {strange[0]}; it takes {able}")


def check_numbers(least: int, **numbers: float) -> None:
  """Raises ValueError for a number below `least`, above its `MOST`, or none at all."""
  for name, value in numbers.items():
    whole = name not in ("scale", "temperature", "every")
    most = MOST.get(name, math.inf)
    try:
      number = operator.index(value) if whole else value + 0.0  # type: ignore[arg-type]
    except TypeError:
      number = math.nan
    if not least <= number <= most or number == math.inf:
      kind = "a whole number" if whole else "a finite number"
      limit = f"{least} or more" if most == math.inf else f"{least} to {most}"
      raise ValueError(f"{name} {value!r}: expected {kind}, {limit}")


# Rows ---------------------------------------------------------------------------------------------


def padded(rows: Sequence[Sequence[int]], lengths: Sequence[int], pad: int) -> dict[str, Any]:
  """Tokens and segments int32[B', P] of prompts, the last one repeated up to a power of two.

  Args:
    lengths: that they are padded to. pad: the id before them.

  Raises:
    ValueError: a prompt longer than the last of `lengths`.
  """
  longest = max(len(r) for r in rows)
  if longest > lengths[-1]:
    raise ValueError(f"a prompt of {longest} tokens is longer than the limit of {lengths[-1]}")
  length, count = chat.bucket_of(longest, lengths), buckets.power(len(rows))
  tokens, segments = chat.pad_left(rows, length, pad)
  return {
    "tokens": buckets.repeat_last(tokens, count),
    "segments": buckets.repeat_last(segments, count),
  }


def patches(
  images: Sequence[Image.Image],
  rooms: Sequence[int],
  vision: qwen_vision.Config,
  *,
  min_pixels: int,
  max_pixels: int,
) -> tuple[list[np.ndarray], list[Grid]]:
  """Patches and grids of pictures, as `images.qwen_image` makes them.

  Args:
    rooms: for each of them, how many places its prompt has for it.
    min_pixels, max_pixels: bounds of each.

  Raises:
    ValueError: bounds in which nothing fits; see `images.smart_resize`.
  """
  unit, factor = (vision.patch_size * vision.merge) ** 2, vision.patch_size * vision.merge
  if max_pixels < unit:
    raise ValueError(f"max_pixels {max_pixels}: expected {unit} or more, which is one place")
  least, found = min(min_pixels, max_pixels), []
  for image, room in zip(images, rooms, strict=True):
    high, wide = pictures.smart_resize(
      image.height, image.width, factor=factor, min_pixels=least, max_pixels=max_pixels
    )
    shrunk = high * wide > room * unit > 0
    most = room * unit if shrunk else max_pixels
    cut, grid = pictures.qwen_image(
      image,
      min_pixels=min(least, most),
      max_pixels=most,
      patch_size=vision.patch_size,
      merge=vision.merge,
      temporal_patch_size=vision.temporal_patch_size,
    )
    found.append((cut, grid))
    if shrunk:
      logging.warning(
        "a picture of %d x %d is shrunk to %d x %d, in place of %d x %d, to fit the %d places "
        "that the prompt has",
        *image.size,
        *(side * vision.patch_size for side in reversed(grid)),
        *(wide, high),
        room,
      )
  return [cut for cut, _ in found], [grid for _, grid in found]


def places(grids: Sequence[Grid], vision: qwen_vision.Config) -> list[int]:
  """How many places of a prompt each picture takes."""
  return [math.prod(grid) // vision.merge**2 for grid in grids]


def positions(
  prompt: Mapping[str, np.ndarray], rows: int, grids: Sequence[Grid], image_token: int, merge: int
) -> dict[str, np.ndarray]:
  """`positions` int32[3, B', P] and `deltas` int32[B', 1] of a `padded` prompt.

  Args:
    rows: those that were given; the others repeat the last. grids: of their pictures, in order.

  Raises:
    ValueError: see `mrope.mrope_positions`.
  """
  count = len(prompt["tokens"])
  found, deltas = mrope.mrope_positions(
    prompt["tokens"][:rows], prompt["segments"][:rows], grids, image_token, merge
  )
  found = np.moveaxis(buckets.repeat_last(np.moveaxis(found, 1, 0), count), 0, 1)
  return {"positions": found, "deltas": buckets.repeat_last(deltas, count)}


def stacked(
  patches: Sequence[np.ndarray],
  grids: Sequence[Grid],
  rows: int,
  vision: qwen_vision.Config,
  least: int = PATCHES,
) -> Mapping[str, Any]:
  """`patches` and `layout` of the pictures of prompts, absent ones behind them; {} for none.

  A row that is repeated beyond `rows` looks at absent pictures, and nobody at it.

  Args:
    least: patches that a picture is padded to, a power of two.
  """
  if not grids:
    return {}
  count = buckets.power(max(rows, len(grids)))
  n = buckets.fine(max(len(p) for p in patches), max(least, vision.merge**2))
  n = -(-n // vision.merge**2) * vision.merge**2
  out = np.zeros((count, n, patches[0].shape[1]), np.float32)
  for i, p in enumerate(patches):
    out[i, : len(p)] = p
  layout = qwen_vision.layout(grids, n, vision)
  room = count - len(grids)
  layout = jax.tree.map(lambda x: np.pad(x, ((0, room), *((0, 0),) * (x.ndim - 1))), layout)
  return {"patches": out, "layout": layout}
