"""Pictures as arrays, as the reference's processors make them: numpy and PIL, on the host.

Source: spec 1.8 (Qwen), 2.4 (EVA). All resizing is PIL's antialiased bicubic filter on uint8.
"""

import io
import math

import einops
import numpy as np
from PIL import Image
from PIL import ImageOps

from blip3o_jax import files
from blip3o_jax.data.records import BadRecord

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
MIN_PIXELS = 3136
MAX_PIXELS = 12_845_056
MAX_RATIO = 200


def decode(data: bytes | np.ndarray, name: str, *, friendly: bool = False) -> Image.Image:
  """An encoded picture, or a uint8[h, w, 3] array, as an RGB image of PIL.

  Args:
    data: the file's bytes; of an animation the first frame counts.
    name: how an error calls it.
    friendly: apply the EXIF orientation and scale 16-bit grey. The reference does neither, and
      clips 16 bits to white; the default follows it.

  Raises:
    BadRecord: bytes that do not decode to a picture, or an array of another kind.
  """
  if isinstance(data, np.ndarray):
    if data.dtype != np.uint8 or data.ndim != 3 or data.shape[2] != 3:
      raise BadRecord(f"{name}: an image array is uint8[h, w, 3], not {data.dtype}{data.shape}")
    return Image.fromarray(data)
  try:
    image: Image.Image = Image.open(io.BytesIO(data))
    if friendly:
      image = ImageOps.exif_transpose(image)
      if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image, np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")
  except Exception as error:  # PIL's readers raise many kinds on damaged bytes
    if what := files.stranger(bytes(data[:400])):
      raise BadRecord(f"{name}: {what}") from None
    raise BadRecord(f"{name}: the image cannot be decoded: {error}") from None


def smart_resize(
  height: int,
  width: int,
  *,
  factor: int = 28,
  min_pixels: int = MIN_PIXELS,
  max_pixels: int = MAX_PIXELS,
) -> tuple[int, int]:
  """(height, width) in multiples of `factor` nearest to the picture's, within the pixel limits.

  Each side stays at least `factor`, where the reference would crash on a thin picture (spec 1.8).

  Raises:
    ValueError: a side below `factor`, or a ratio of sides above 200.
  """
  if min(height, width) < factor:
    raise ValueError(f"an image of {width} x {height}: both sides must be at least {factor} pixels")
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
  return h, w


def patchify(
  x: np.ndarray, *, patch_size: int = 14, merge: int = 2, temporal_patch_size: int = 2
) -> np.ndarray:
  """A picture as rows of patches in the released order: blocks of merge x merge, inside them rows.

  Args:
    x: float[H, W, 3] with sides that are multiples of patch_size * merge.

  Returns:
    float[H W / patch_size^2, 3 * temporal_patch_size * patch_size^2]: one frame repeated along
    time; inside a row channel, frame, row, column.
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
  height, width = smart_resize(
    image.height,
    image.width,
    factor=patch_size * merge,
    min_pixels=min_pixels,
    max_pixels=max_pixels,
  )
  x = normalise(_resize(image, width, height))
  patches = patchify(x, patch_size=patch_size, merge=merge, temporal_patch_size=temporal_patch_size)
  return patches, (height // patch_size, width // patch_size)


def square(image: Image.Image, size: int, *, squash: bool = False) -> np.ndarray:
  """uint8[size, size, 3]: short side to `size` and the centre cut out, as torchvision (spec 2.4).

  With `squash` both sides are resized, whatever the ratio (reconstruction in the reference).

  Raises:
    BadRecord: a picture 200 times longer than wide, which would fill the memory when resized.
  """
  if squash:
    return _resize(image, size, size)
  width, height = image.size
  if max(width, height) > MAX_RATIO * min(width, height):
    raise BadRecord(f"an image of {width} x {height} is too thin to cut a square from")
  if width <= height:
    width, height = size, int(size * height / width)
  else:
    width, height = int(size * width / height), size
  left, top = (round((side - size) / 2) for side in (width, height))
  return _resize(image, width, height)[top : top + size, left : left + size]


def normalise(x: np.ndarray) -> np.ndarray:
  """uint8[..., 3] to float32 with the mean and deviation of CLIP, which EVA and Qwen share."""
  return (x.astype(np.float32) / np.float32(255) - MEAN) / STD


def signed(x: np.ndarray) -> np.ndarray:
  """uint8 to float32 in [-1, 1], as an autoencoder takes it."""
  return x.astype(np.float32) / np.float32(127.5) - np.float32(1)


def _resize(image: Image.Image, width: int, height: int) -> np.ndarray:
  if image.size != (width, height):
    image = image.resize((width, height), Image.Resampling.BICUBIC)
  return np.asarray(image)
