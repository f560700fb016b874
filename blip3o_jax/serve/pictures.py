"""Pictures as they come and go, bytes and data URLs, with limits; the refused are not decoded."""

import base64
import binascii
from collections.abc import Mapping
from collections.abc import Sequence
import io
from typing import Any
from typing import Literal
import warnings

import numpy as np
from PIL import Image

from blip3o_jax.data import images
from blip3o_jax.serve.faults import Refused
from blip3o_jax.serve.interface import Picture
from blip3o_jax.serve.settings import Limits
from blip3o_jax.use import picture as written

Format = Literal["png", "jpeg", "webp"]
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")  # that are read
QUALITY = 90  # of what loses, unless asked otherwise


def decode(data: bytes, param: str, limits: Limits) -> Image.Image:
  """The picture RGB of a file's bytes, upright, what is transparent on white.

  Raises:
    Refused: too many bytes or pixels, by the header; of another format; damaged.
  """
  if len(data) > limits.image_bytes:
    raise Refused(
      413,
      f"{param}: {len(data)} bytes, at most {limits.image_bytes}",
      param=param,
      code="too_large",
    )
  try:
    with warnings.catch_warnings(action="ignore"):  # of Pillow, about sizes and damaged EXIF
      image = Image.open(io.BytesIO(data), formats=FORMATS)
      if image.width * image.height > limits.image_pixels:
        raise Image.DecompressionBombError
      image.load()
      return images.rgb(image, param)
  except Image.DecompressionBombError:
    most = limits.image_pixels
    raise Refused(400, f"{param}: more than {most} pixels", param=param, code="too_large") from None
  except Exception:  # Pillow raises many kinds on damaged bytes, and names objects in memory
    raise Refused(
      400,
      f"{param}: no picture that can be read (PNG, JPEG, WebP or GIF)",
      param=param,
      code="invalid_image",
    ) from None


def of_data_url(url: str, param: str, limits: Limits) -> bytes:
  """The bytes of "data:image/png;base64,...".

  Raises:
    Refused: of another form, or too long.
  """
  head, comma, text = url.partition(",")
  if not comma or not head.lower().endswith(";base64"):
    raise Refused(400, f"{param}: expected data:image/...;base64,...", param=param)
  if len(text) > limits.image_bytes * 4 / 3 + 4:
    raise Refused(
      413, f"{param}: more than {limits.image_bytes} bytes", param=param, code="too_large"
    )
  try:
    return base64.b64decode(text, validate=True)
  except (binascii.Error, ValueError):
    raise Refused(400, f"{param}: not base64", param=param) from None


def encode(
  pixels: np.ndarray, form: Format, quality: int | None, metadata: Mapping[str, Any] | None = None
) -> str:
  """The bytes of a picture uint8[H, W, 3] in base64; only a PNG keeps metadata."""
  if form == "png" and metadata is not None:
    return base64.b64encode(written.encode(pixels, metadata)).decode()
  out = io.BytesIO()
  more = {} if form == "png" else {"quality": QUALITY if quality is None else quality}
  Image.fromarray(pixels).save(out, form.upper(), **more)
  return base64.b64encode(out.getvalue()).decode()


def data_url(text: str, form: Format) -> str:
  """Of bytes in base64."""
  return f"data:image/{form};base64,{text}"


def known(picture: Picture, name: str) -> dict[str, Any]:
  """What a picture says of itself, its model by the name that clients know."""
  return {**picture.metadata, "model": name}


def size(shape: Sequence[int]) -> str:
  """Of an array [H, W, ...], as the API writes it: WxH."""
  return f"{shape[1]}x{shape[0]}"
