"""Pictures as people have them: modes, hidden colours, turned photos, and files that are none."""

import hashlib
import io
from typing import Any

import numpy as np
from PIL import Image
import pytest

from blip3o_jax.data import images
from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.records import Record
from blip3o_jax.systems.parts import targets

BLACK, RED, WHITE = (0, 0, 0), (255, 0, 0), (255, 255, 255)
PALETTE = [*RED, *BLACK]


def stored(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
  out = io.BytesIO()
  image.save(out, kind, **options)
  return out.getvalue()


def full(mode: str, value: Any) -> Image.Image:
  return Image.new(mode, (4, 4), value)


def palette(index: int) -> Image.Image:
  image = full("P", index)
  image.putpalette(PALETTE)
  return image


def moving() -> bytes:
  """An animation whose first frame is red and transparent, and whose second is black."""
  first, second = palette(0), palette(1)
  options = dict(save_all=True, append_images=[second], transparency=0, disposal=2)
  return stored(first, "GIF", **options)


def deep(value: int) -> Image.Image:
  return Image.fromarray(np.full((4, 4), value * 257, np.uint16))


# name -> file, its colour with white behind it, its colour as released inference reads it
MODES = {
  "logo, black on transparent black": (lambda: stored(full("RGBA", (*BLACK, 0))), WHITE, BLACK),
  "half transparent": (lambda: stored(full("RGBA", (*RED, 128))), (255, 127, 127), RED),
  "opaque": (lambda: stored(full("RGBA", (*RED, 255))), RED, RED),
  "grey with alpha": (lambda: stored(full("LA", (0, 0))), WHITE, BLACK),
  "palette with a clear colour": (lambda: stored(palette(0), transparency=0), WHITE, RED),
  "palette with another clear colour": (lambda: stored(palette(1), transparency=0), BLACK, BLACK),
  "palette with an alpha each": (
    lambda: stored(palette(1), transparency=bytes([255, 0])),
    WHITE,
    BLACK,
  ),
  "RGB with a clear colour": (lambda: stored(full("RGB", RED), transparency=RED), WHITE, RED),
  "grey with a clear level": (lambda: stored(full("L", 0), transparency=0), WHITE, BLACK),
  "WebP": (lambda: stored(full("RGBA", (0,) * 4), "WEBP", lossless=True, exact=True), WHITE, BLACK),
  "animation": (moving, WHITE, RED),
  "16 bits": (lambda: stored(deep(128)), (128,) * 3, WHITE),
  "one bit": (lambda: stored(full("1", 1)), WHITE, WHITE),
  "CMYK": (lambda: stored(full("CMYK", (0, 0, 0, 0)), "JPEG"), WHITE, WHITE),
  "TIFF of 16 bits": (lambda: stored(deep(64), "TIFF"), (64,) * 3, WHITE),
}  # fmt: skip


@pytest.mark.parametrize("name", MODES)
def test_what_is_clear_is_white(name):
  make, wanted, released = MODES[name]
  data = make()
  for friendly, colour in ((True, wanted), (False, released)):
    found = images.decode(data, name, friendly=friendly)
    assert found.mode == "RGB"
    assert {tuple(c) for c in np.asarray(found).reshape(-1, 3).tolist()} == {colour}, friendly
  # The same in a training row, by the field of its config.
  for friendly, colour in ((True, wanted), (False, released)):
    data_config = Data(image_size=4, friendly=friendly)
    row = targets.square(Record(image=data, name=name), data_config)
    assert tuple(row[0, 0].tolist()) == colour


@pytest.mark.parametrize(
  ("mode", "values"), [("PA", (0, 0)), ("RGBa", (0, 0, 0, 0)), ("LA", (0, 0))]
)
def test_modes_that_only_memory_has(mode, values):
  image = full(mode, values)
  if mode == "PA":
    image.putpalette(PALETTE)
  assert np.asarray(images.rgb(image, "x")).min() == 255


def test_a_photo_stands_upright():
  """The corner that is red when upright is there for each of the eight orientations."""
  upright = np.zeros((6, 4, 3), np.uint8)
  upright[0, 0] = RED
  stored_as = {
    1: upright,
    2: upright[:, ::-1],
    3: upright[::-1, ::-1],
    4: upright[::-1],
    5: upright.transpose(1, 0, 2),
    6: np.rot90(upright),
    7: np.rot90(upright.transpose(1, 0, 2), 2),
    8: np.rot90(upright, -1),
  }
  for orientation, pixels in stored_as.items():
    image = Image.fromarray(np.ascontiguousarray(pixels))
    exif = image.getexif()
    exif[0x0112] = orientation
    for kind in ("PNG", "WEBP"):  # a TIFF Pillow turns by itself
      data = stored(image, kind, exif=exif, lossless=True)
      np.testing.assert_array_equal(np.asarray(images.decode(data, "x")), upright)
      released = images.decode(data, "x", friendly=False)
      np.testing.assert_array_equal(np.asarray(released), pixels)
      # Neither is turned, or turned again, by who reads it next.
      np.testing.assert_array_equal(np.asarray(images.rgb(released, "x")), pixels)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"MM\0*\0\0\0\x08\xff\xff\x01\x12", b"nothing of the kind"])
def test_damaged_exif_says_nothing(exif):
  data = stored(full("RGB", RED), "JPEG", exif=b"Exif\0\0" + exif)
  assert images.decode(data, "x").size == (4, 4)


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (b"", "the file is empty"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
    (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC, which Pillow does not read; save it as JPEG"),
    (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing; save it as PNG"),
    (b"\n<!DOCTYPE html><html>", "a web page"),
    (b"%PDF-1.7", "a PDF"),
    (b"nothing of the kind", "of no format that Pillow knows"),
    (stored(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "no known range"),
    (stored(Image.fromarray(np.full((4, 4), 1 << 20, np.int32)), "TIFF"), "no known range"),
    (stored(full("RGB", RED), "BMP")[:40], "image"),
  ],
)
def test_files_that_are_no_picture(data, message):
  with pytest.raises(BadRecord, match=r"shard\.tar:key7: the image cannot be decoded: ") as error:
    images.decode(data, "shard.tar:key7")
  assert message in str(error.value)
  assert "BytesIO" not in str(error.value)


def test_a_picture_of_too_many_pixels(monkeypatch):
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
  with pytest.raises(BadRecord, match=r"x: the image .* exceeds limit .* Make it smaller first"):
    images.decode(stored(full("RGB", RED)), "x")


@pytest.mark.parametrize(
  ("value", "message"),
  [
    ("a.png", "expected a picture, of PIL or an array"),
    (np.zeros((4, 4), np.uint8), r"uint8\[h, w, 3\], not uint8\[4, 4\]"),
    (np.zeros((0, 4, 3), np.uint8), r"not uint8\[0, 4, 3\]"),
    (np.zeros((4, 4, 3)), "not float64"),
    (Image.new("RGB", (0, 4)), "an image of 0 x 4 pixels is empty"),
  ],
)
def test_what_is_no_picture(value, message):
  with pytest.raises(BadRecord, match=message):
    images.rgb(value, "x")


# Of Pillow 12.3, which resizes the width first. Pillow 13 by itself gives others for the first and
# the third, in up to 10 levels.
RESIZED = {
  (300, 517): "6b16c40ed675667d",
  (601, 599): "c14e734fd01d61e7",
  (448, 900): "14ffd2ba226b9ba9",
  (900, 448): "92e59b40b2793619",
}


@pytest.mark.parametrize("size", RESIZED)
def test_a_resize_does_not_depend_on_the_version_of_pillow(size):
  y, x = np.mgrid[: size[1], : size[0]]
  pixels = np.stack([(x * 7 + y * 3) % 256, (x * y) % 251, ((x // 9 + y // 5) % 2) * 255], -1)
  image = Image.fromarray(pixels.astype(np.uint8))
  found = images.square(image, 112, squash=True)
  assert hashlib.sha256(found.tobytes()).hexdigest()[:16] == RESIZED[size]
  high_first = image.resize((size[0], 112), Image.Resampling.BICUBIC)
  other = np.asarray(high_first.resize((112, 112), Image.Resampling.BICUBIC))
  assert np.abs(found.astype(int) - other).max() >= 4  # the order does count
