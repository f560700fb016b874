"""A picture that a model made, with what it was asked for; and the PNG that keeps both."""

from collections.abc import Mapping
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL import PngImagePlugin

from blip3o_jax import files

KEY = "blip3o"  # of the text chunk


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
  """A picture and how it came to be.

  Attributes:
    pixels: uint8[H, W, 3]. prompt: what was asked for; "" where nothing was said.
    seed: below 2**64. settings: of JSON: `verb`, the options with their values (`steps`,
      `guidance`, ...), `model`, `system`, `dtype`, `fingerprint` (of the weights) and `version` (of
      the package).
  """

  pixels: np.ndarray
  prompt: str
  seed: int
  settings: Mapping[str, Any]

  @property
  def image(self) -> Image.Image:
    """As a picture of PIL, RGB."""
    return Image.fromarray(self.pixels)

  @property
  def metadata(self) -> dict[str, Any]:
    """Prompt, seed and settings, as the PNG has them."""
    return {"prompt": self.prompt, "seed": self.seed, **self.settings}

  def png(self) -> bytes:
    """The bytes of a PNG with the metadata."""
    return encode(self.pixels, self.metadata)

  def save(self, path: str | Path) -> Path:
    """Writes a PNG that is whole or not there, and its folder; returns the path.

    Raises:
      ValueError: a name that does not end in .png: other formats would lose the metadata.
    """
    target = Path(path)
    if target.suffix.lower() != ".png":
      raise ValueError(
        f"{target}: expected a name that ends in .png, which keeps prompt and settings; "
        "`picture.image.save` writes other formats without them"
      )
    write(target, self.png())
    return target

  def __repr__(self) -> str:
    """In a line, without the pixels."""
    height, width = self.pixels.shape[:2]
    return f"Picture({width} x {height}, prompt {self.prompt!r}, seed {self.seed})"

  def _repr_png_(self) -> bytes:
    """What a notebook shows."""
    return self.png()


def encode(pixels: np.ndarray, metadata: Mapping[str, Any]) -> bytes:
  """A PNG of uint8[H, W, 3] with metadata of JSON in a text chunk of its own."""
  info, out = PngImagePlugin.PngInfo(), io.BytesIO()
  info.add_itxt(KEY, json.dumps(metadata, ensure_ascii=False))
  Image.fromarray(pixels).save(out, "PNG", pnginfo=info)
  return out.getvalue()


def write(target: Path, data: bytes) -> None:
  """Writes a file that is whole or not there, and its folder."""
  target.parent.mkdir(parents=True, exist_ok=True)
  with files.replacing(target, shared=True) as partial:
    partial.write_bytes(data)


def read(path: str | Path) -> dict[str, Any]:
  """The metadata of a PNG that this package wrote; no pixel is decoded.

  Raises:
    FileNotFoundError, IsADirectoryError: no such file. ValueError: no PNG, or one without metadata
      of this package.
  """
  target = Path(path)
  if target.is_dir():
    raise IsADirectoryError(f"{target}: is a folder; expected a PNG")
  if not target.is_file():
    raise FileNotFoundError(f"{target}: no such file")
  try:
    with Image.open(target, formats=["PNG"]) as image:
      text = image.info.get(KEY)
      if text is None:  # a chunk may stand behind the pixels
        image.load()
        text = getattr(image, "text", {}).get(KEY)
  except (OSError, SyntaxError, Image.DecompressionBombError) as error:
    raise ValueError(f"{target}: not a PNG that can be read ({error})") from None
  if text is None:
    raise ValueError(
      f"{target}: a PNG without the text chunk {KEY!r}: not made by this package, or saved again "
      "by a program that drops it"
    )
  try:
    found = json.loads(text)
  except ValueError:
    found = None
  if not isinstance(found, dict):
    raise ValueError(f"{target}: the text chunk {KEY!r} is no JSON object: {str(text)[:60]!r}")
  return files.without_nulls(found)
