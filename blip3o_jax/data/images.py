"""Pictures as arrays, as the reference's processors make them: numpy and PIL, on the host.

Source: spec 1.8 (Qwen), 2.4 (EVA), Nexus-Gen spec 4. All resizing is PIL's antialiased filters on
uint8, bicubic unless it says bilinear, the width first and then the height (`RESIZE`).
"""

import contextlib
import hashlib
import io
import math
import os
import struct
from typing import Any
from typing import Literal

import einops
import numpy as np
from PIL import ExifTags
from PIL import Image
from PIL import ImageOps
from PIL import UnidentifiedImageError

from blip3o_jax import files
from blip3o_jax.data.records import BadRecord

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
MIN_PIXELS = 3136
MAX_PIXELS = 12_845_056
MAX_RATIO = 200
# Each pass of a resize rounds to uint8, so that the order decides up to 4 levels of a photo. The
# release's Pillow and torch take the width first, whatever the sizes; Pillow 13 by itself takes the
# height first where that shrinks more. What is made of pictures says which it was.
RESIZE = "horizontal first"
Filter = Literal["bicubic", "bilinear"]
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
# Bytes of a block of Pillow's, and of those that a thread keeps. One of another size than is needed
# is fitted by realloc, which below 128 KiB does not ask the system for pages.
_BLOCK, _KEPT = 96 << 10, 32 << 20
_WORTH = 0.9  # of the rows, at most, so that it pays to copy those that are needed

# What is often found where a picture is expected: how it begins, and what to do.
_OTHERS = (
  (b"%PDF", "a PDF; save its page as JPEG or PNG"),
  (b"<svg", "an SVG drawing; save it as PNG"),
  (b"<?xml", "an XML file, perhaps an SVG drawing; save it as PNG"),
)
_HEIF = (b"ftyphei", b"ftyphev", b"ftypmif1", b"ftypmsf1")


def reuse_memory(threads: int) -> None:
  """Lets Pillow use the memory of one picture for the next, up to 32 MiB for each thread.

  By itself it returns all of it to the system, and touching new pages takes a good part of decoding
  and resizing (docs/data.md). Whoever sets PILLOW_BLOCKS_MAX or PILLOW_BLOCK_SIZE is left alone.
  """
  if not {"PILLOW_BLOCKS_MAX", "PILLOW_BLOCK_SIZE"} & set(os.environ):
    Image.core.set_block_size(_BLOCK)
    Image.core.set_blocks_max(max(Image.core.get_blocks_max(), threads * _KEPT // _BLOCK))


def decode(data: bytes | np.ndarray, name: str, *, friendly: bool = True) -> Image.Image:
  """An encoded picture, or a uint8[h, w, 3] array, as an RGB image of PIL.

  Args:
    data: the file's bytes; of an animation the first frame counts.
    name: how an error calls it.
    friendly: see `rgb`.

  Raises:
    BadRecord: bytes that do not decode to a picture, or an array of another kind.
  """
  if isinstance(data, np.ndarray):
    return rgb(data, name)
  try:
    image = Image.open(io.BytesIO(data))
    image.load()
  except UnidentifiedImageError:  # which names an object in memory
    raise BadRecord(f"{name}: the image cannot be decoded: {_found(data)}", "picture") from None
  except Image.DecompressionBombError as error:
    raise BadRecord(
      f"{name}: the image cannot be decoded: {error} Make it smaller first.", "size"
    ) from None
  except Exception as error:  # PIL's readers raise many kinds on damaged bytes
    raise BadRecord(f"{name}: the image cannot be decoded: {error}", "picture") from None
  return rgb(image, name, friendly=friendly, copy=False)


def _found(data: bytes) -> str:
  """What bytes are that are no picture, for an error."""
  start = data[:64].lstrip().lower()
  if not data:
    return "the file is empty"
  if what := files.stranger(bytes(data[:400])):
    return what
  if data[4:12].startswith(_HEIF):
    return "HEIC, which Pillow does not read; save it as JPEG or PNG"
  known = (text for mark, text in _OTHERS if start.startswith(mark.lower()))
  return next(known, "of no format that Pillow knows (JPEG, PNG, WebP, GIF, TIFF, ...)")


def identity(data: bytes | None, friendly: bool) -> dict[str, Any]:
  """What metadata say of a picture that is shown: the sum of its file, and how it is read.

  Args:
    data: of the file; None leaves the sum out. friendly: see `rgb`; said where it is false.
  """
  digest = {} if data is None else {"image_sha256": hashlib.sha256(data).hexdigest()}
  return {**digest, **({} if friendly else {"friendly": False})}


def rgb(image: Any, name: str, *, friendly: bool = True, copy: bool = True) -> Image.Image:
  """A picture of any mode as RGB, without metadata.

  Args:
    image: of PIL, or uint8[h, w, 3].
    name: how an error calls it.
    friendly: turn it upright as EXIF says, lay what is transparent on white as transformers 5 does,
      and scale 16-bit grey. Released inference does none of these: a turned photo lies on its side,
      the hidden colours of transparent pixels appear, and 16 bits are clipped to white.
    copy: where false, it may be `image` itself that is given back, without its metadata.

  Raises:
    BadRecord: no such picture; an empty one; 32-bit values, whose range nobody knows.
  """
  if isinstance(image, np.ndarray):
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
      raise BadRecord(
        f"{name}: an image array is uint8[h, w, 3], not {image.dtype}{list(image.shape)}",
        "picture",
      )
    return Image.fromarray(image)
  if not isinstance(image, Image.Image):
    raise BadRecord(
      f"{name}: expected a picture, of PIL or an array uint8[h, w, 3], got {type(image).__name__}",
      "picture",
    )
  if 0 in image.size:
    raise BadRecord(
      f"{name}: an image of {image.width} x {image.height} pixels is empty", "picture"
    )
  try:
    out = _friendly(image, copy) if friendly else image.convert("RGB")
  except Exception as error:  # the file is read here, see `decode`
    raise BadRecord(f"{name}: the image cannot be decoded: {error}", "picture") from None
  out.info = {}  # so that nobody turns it again
  return out


def _friendly(image: Image.Image, copy: bool) -> Image.Image:
  """See `rgb`."""
  # Damaged EXIF says nothing of the picture.
  with contextlib.suppress(KeyError, OSError, SyntaxError, TypeError, ValueError, struct.error):
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # else it would be copied
      image = ImageOps.exif_transpose(image)
  clear = image.info.get("transparency")
  if image.mode[0] in "IF":
    values = np.asarray(image)
    # A PNG of 16 bits is "I" in older versions of Pillow.
    wide = not 255 < values.max() < 65536 or values.min() < 0
    if image.mode == "F" or (image.mode == "I" and wide):
      raise ValueError(f"values of 32 bits (mode {image.mode}) have no known range; save 8 or 16")
    eight = (values.astype(np.uint32) >> 8).astype(np.uint8)
    return Image.fromarray(np.where(values == clear, 255, eight).astype(np.uint8)).convert("RGB")
  if clear is not None or "A" in image.getbands() or "a" in image.getbands():
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
  return image.convert("RGB") if copy or image.mode != "RGB" else image


def smart_resize(
  height: int,
  width: int,
  *,
  factor: int = 28,
  min_pixels: int = MIN_PIXELS,
  max_pixels: int = MAX_PIXELS,
) -> tuple[int, int]:
  """(height, width) in multiples of `factor` nearest to the picture's, within the pixel limits.

  A picture with a side below `factor` is enlarged, as in transformers 5. Each side stays at least
  `factor`, where the reference would crash on a thin picture (spec 1.8).

  Raises:
    ValueError: a ratio of sides above 200.
  """
  if max(height, width) / min(height, width) > MAX_RATIO:
    raise ValueError(
      f"an image of {width} x {height}: one side exceeds {MAX_RATIO} times the other"
    )
  h, w = (factor * round(side / factor) for side in (height, width))
  if h * w > max_pixels:
    beta = math.sqrt(height * width / max_pixels)
    h, w = (max(factor, factor * math.floor(s / beta / factor)) for s in (height, width))
  elif h * w < min_pixels:
    beta = math.sqrt(min_pixels / (height * width))
    h, w = (factor * math.ceil(s * beta / factor) for s in (height, width))
  return max(factor, h), max(factor, w)


def patchify(
  x: np.ndarray, *, patch_size: int = 14, merge: int = 2, temporal_patch_size: int = 2
) -> np.ndarray:
  """A picture as rows of patches in the released order: blocks of merge x merge, inside them rows.

  Args:
    x: [H, W, 3] of any dtype, with sides that are multiples of patch_size * merge.

  Returns:
    [H W / patch_size^2, 3 * temporal_patch_size * patch_size^2] of its dtype: one frame repeated
    along time; inside a row channel, frame, row, column.
  """
  return einops.repeat(
    x,
    "(h a p) (w b q) c -> (h w a b) (c t p q)",
    a=merge,
    p=patch_size,
    b=merge,
    q=patch_size,
    t=temporal_patch_size,
  )


def qwen_image(
  image: Image.Image,
  *,
  min_pixels: int = MIN_PIXELS,
  max_pixels: int = MAX_PIXELS,
  patch_size: int = 14,
  merge: int = 2,
  temporal_patch_size: int = 2,
) -> tuple[np.ndarray, tuple[int, int]]:
  """A picture of any size as the vision tower of Qwen2.5-VL takes it (spec 1.8).

  Returns:
    patches float32[h w, 3 * temporal_patch_size * patch_size^2], and (h, w), its grid in patches.

  Raises:
    ValueError: see `smart_resize`.
  """
  x = qwen_pixels(image, factor=patch_size * merge, min_pixels=min_pixels, max_pixels=max_pixels)
  grid = (x.shape[0] // patch_size, x.shape[1] // patch_size)
  x = normalise(x)
  patches = patchify(x, patch_size=patch_size, merge=merge, temporal_patch_size=temporal_patch_size)
  return patches, grid


def qwen_pixels(
  image: Image.Image,
  *,
  factor: int = 28,
  min_pixels: int = MIN_PIXELS,
  max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
  """uint8[H, W, 3], what `qwen_image` normalises and cuts into patches.

  Raises:
    ValueError: see `smart_resize`.
  """
  height, width = smart_resize(
    image.height, image.width, factor=factor, min_pixels=min_pixels, max_pixels=max_pixels
  )
  return _resize(image, width, height)


def square(
  image: Image.Image,
  size: int,
  *,
  squash: bool = False,
  resample: Filter = "bicubic",
  nearest: bool = False,
) -> np.ndarray:
  """uint8[size, size, 3]: short side to `size` and the centre cut out, as torchvision (spec 2.4).

  Args:
    squash: both sides are resized, whatever the ratio (reconstruction in the reference).
    resample: the filter. nearest: the long side becomes the nearest whole number, not the one below
      (Nexus-Gen spec 4).

  Raises:
    BadRecord: a picture 200 times longer than wide, which would fill the memory when resized.
  """
  if squash:
    return _resize(image, size, size, resample)
  width, height = image.size
  if max(width, height) > MAX_RATIO * min(width, height):
    raise BadRecord(f"an image of {width} x {height} is too thin to cut a square from", "size")
  long, short = max(width, height), min(width, height)
  # The reference divides first in one of the two places, which decides ties.
  longer = round(long * (size / short)) if nearest else int(size * long / short)
  width, height = (size, longer) if width <= height else (longer, size)
  left, top = (round((side - size) / 2) for side in (width, height))
  kernel = _FILTERS[resample]
  # A pass takes only what is needed of the axis that the other one cuts: no pixel changes.
  first, last = _rows_read(image.height, height, top, top + size)
  if (first, last) != (0, image.height):
    wide = image.crop((0, first, image.width, last)).resize((width, last - first), kernel)
    image = Image.new("RGB", (width, image.height))
    image.paste(wide, (0, first))
  elif image.width != width:
    image = image.resize((width, image.height), kernel)
  if width > size:
    image = image.crop((left, 0, left + size, image.height))
  return _resize(image, size, height, resample)[top : top + size]


def _rows_read(rows: int, height: int, top: int, bottom: int) -> tuple[int, int]:
  """Which of a picture's `rows`, first and end, the rows from `top` to `bottom` are made of.

  When it is resized to `height`; a few more, so that no rounding matters, and all of them where
  leaving some out would gain nothing.
  """
  scale = rows / height
  reach = 2 * max(scale, 1) + 2  # of the bicubic filter, which is widened as it makes smaller
  first, last = max(0, int((top + 0.5) * scale - reach)), int((bottom - 0.5) * scale + reach) + 1
  last = min(last, rows)
  return (first, last) if last - first < _WORTH * rows else (0, rows)


def normalise(x: np.ndarray) -> np.ndarray:
  """uint8[..., W, 3] to float32 with the mean and deviation of CLIP, which EVA and Qwen share."""
  # numpy is slow where the last axis has 3: rows of 3 W take a tenth of the time.
  row = x.shape[-2] if x.ndim > 1 else 1
  out = x.astype(np.float32, order="C").reshape(-1, row * 3)
  out /= np.float32(255)
  out -= np.tile(MEAN, row)
  out /= np.tile(STD, row)
  return out.reshape(x.shape)


def signed(x: np.ndarray) -> np.ndarray:
  """uint8 to float32 in [-1, 1], as an autoencoder takes it."""
  return x.astype(np.float32) / np.float32(127.5) - np.float32(1)


def _resize(
  image: Image.Image, width: int, height: int, resample: Filter = "bicubic"
) -> np.ndarray:
  """In the order that `RESIZE` names, which Pillow of one version or another would choose."""
  for size in ((width, image.height), (width, height)):
    if image.size != size:
      image = image.resize(size, _FILTERS[resample])
  return np.asarray(image)
