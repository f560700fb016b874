"""Pictures: sizes, crops, orders, bad bytes. Parity with the processors is in tests/parity."""

import io

from fakes import jpeg
import numpy as np
from PIL import Image
import pytest

from blip3o_jax import files
from blip3o_jax.data import images
from blip3o_jax.data.records import BadRecord


@pytest.mark.parametrize(
  ("size", "limits", "expected"),
  [
    ((70, 70), {}, (56, 56)),  # half to even
    ((51, 50), {}, (56, 56)),
    ((1000, 30), dict(max_pixels=12_544), (644, 28)),  # the reference floors to 0 and crashes
    ((5600, 28), {}, (5600, 28)),  # ratio 200 exactly
    ((28, 28), {}, (56, 56)),
    ((480, 640), dict(max_pixels=1_003_520), (476, 644)),
    ((20, 20), {}, (56, 56)),  # as transformers 5.24, which enlarges
    ((27, 332), {}, (28, 336)),
    ((10, 10), {}, (56, 56)),
    ((10, 1000), {}, (28, 560)),
    ((1, 1), dict(min_pixels=0), (28, 28)),
  ],
)
def test_smart_resize(size, limits, expected):
  assert images.smart_resize(*size, **limits) == expected


def test_smart_resize_refuses():
  with pytest.raises(ValueError, match="an image of"):
    images.smart_resize(28 * 201, 28)


def test_patch_order():
  h, w, p = 4, 8, 2
  x = np.arange(h * p * w * p * 3, dtype=np.float32).reshape(h * p, w * p, 3)
  out = images.patchify(x, patch_size=p, merge=2, temporal_patch_size=2)
  assert out.shape == (h * w, 3 * 2 * p * p)
  row, column = 3, 5  # block (1, 2), inside it (1, 1)
  index = ((row // 2) * (w // 2) + column // 2) * 4 + (row % 2) * 2 + column % 2
  patch = x[row * p : row * p + p, column * p : column * p + p]
  np.testing.assert_array_equal(
    out[index].reshape(3, 2, p, p), np.repeat(patch.transpose(2, 0, 1)[:, None], 2, 1)
  )


def test_square_cuts_the_centre_and_squash_does_not():
  x = np.zeros((10, 30, 3), np.uint8)
  x[:, 10:20] = 255
  image = Image.fromarray(x)
  assert images.square(image, 10).min() == 255
  assert images.square(image, 10, squash=True).min() == 0
  same = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
  np.testing.assert_array_equal(images.square(Image.fromarray(same), 8), same)
  with pytest.raises(BadRecord, match="too thin"):
    images.square(Image.new("RGB", (1, 201)), 64)


def test_leaving_out_what_is_cut_changes_no_pixel():
  rng = np.random.default_rng(0)

  def whole(image, size):
    width, height = image.size
    scaled = (
      (size, int(size * height / width)) if width <= height else (int(size * width / height), size)
    )
    left, top = (round((side - size) / 2) for side in scaled)
    for each in ((scaled[0], height), scaled):
      image = image.resize(each, Image.Resampling.BICUBIC)
    return np.asarray(image)[top : top + size, left : left + size]

  for i, (width, height) in enumerate(np.exp(rng.uniform(1, 6, (200, 2))).astype(int)):
    size = (8, 56, 112)[i % 3]
    values = (256, 2)[i % 2]  # all values, or black and white, where overshoots are cut off
    picture = rng.integers(0, values, (height, width, 3), np.uint8) * (255 // (values - 1))
    image = Image.fromarray(picture)
    assert np.array_equal(images.square(image, size), whole(image, size)), (width, height, size)


@pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 4, 6, 3), (0, 4, 3), (448, 448, 3)])
def test_normalising_by_rows_changes_no_bit(shape):
  x = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  wanted = (x.astype(np.float32) / np.float32(255) - images.MEAN) / images.STD
  np.testing.assert_array_equal(images.normalise(x), wanted)
  if x.ndim == 3 and x.size:  # a cut, as `square` gives it
    np.testing.assert_array_equal(images.normalise(x[3:9, 2:7]), wanted[3:9, 2:7])


def test_value_ranges():
  x = np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)
  np.testing.assert_array_equal(images.signed(x), [[[-1] * 3, [1] * 3]])
  mean, std = images.MEAN, images.STD
  np.testing.assert_allclose(images.normalise(x), [[-mean / std, (1 - mean) / std]], rtol=1e-6)


@pytest.mark.parametrize("data", [b"", b"not a picture", jpeg(0)[:200]])
def test_undecodable_bytes_name_the_file(data):
  with pytest.raises(BadRecord, match=r"shard\.tar:key7: the image cannot be decoded"):
    images.decode(data, "shard.tar:key7")


def test_arrays_are_checked():
  x = np.full((4, 4, 3), 7, np.uint8)
  np.testing.assert_array_equal(np.asarray(images.decode(x, "x")), x)
  with pytest.raises(BadRecord, match="uint8"):
    images.decode(x.astype(np.float32), "x")


def test_friendly_reads_exif_and_16_bits():
  image = Image.new("RGB", (6, 4))
  exif = image.getexif()
  exif[0x0112] = 6  # rotated by a quarter
  out = io.BytesIO()
  image.save(out, "JPEG", exif=exif)
  assert images.decode(out.getvalue(), "x", friendly=False).size == (6, 4)
  assert images.decode(out.getvalue(), "x").size == (4, 6)
  deep = io.BytesIO()
  Image.fromarray(np.full((4, 4), 128 * 257, np.uint16)).save(deep, "PNG")
  assert np.asarray(images.decode(deep.getvalue(), "x", friendly=False)).max() == 255
  assert set(np.asarray(images.decode(deep.getvalue(), "x")).flat) == {128}


def test_a_pointer_in_place_of_a_picture():
  with pytest.raises(BadRecord, match=r"x\.jpg: .*a git-lfs pointer, not the file"):
    images.decode(files.POINTER + b"v1\noid sha256:00\nsize 1000\n", "x.jpg")


@pytest.fixture
def pillow(monkeypatch):
  """Pillow's memory as it is by itself, and again so at the end."""
  core = Image.core
  before = core.get_block_size(), core.get_blocks_max()
  monkeypatch.delenv("PILLOW_BLOCKS_MAX", raising=False)
  monkeypatch.delenv("PILLOW_BLOCK_SIZE", raising=False)
  core.set_blocks_max(0)
  yield core
  core.set_block_size(before[0])
  core.set_blocks_max(before[1])


def test_memory_of_one_picture_serves_the_next(pillow):
  small, large = (jpeg(side, side, side) for side in (96, 700))
  files = [small, large, small, large, small]
  wanted = [images.square(images.decode(data, "x"), 64) for data in files]
  assert not pillow.get_stats()["blocks_cached"]
  images.reuse_memory(2)
  kept = pillow.get_blocks_max() * pillow.get_block_size()
  assert 63 << 20 < kept <= 64 << 20
  pillow.reset_stats()
  for data, pixels in zip(files, wanted, strict=True):
    np.testing.assert_array_equal(images.square(images.decode(data, "x"), 64), pixels)
  assert pillow.get_stats()["reused_blocks"] > len(files)
  images.reuse_memory(1)  # another loader in the process takes nothing from the first
  assert pillow.get_blocks_max() * pillow.get_block_size() == kept


def test_memory_that_a_person_set_stays(pillow, monkeypatch):
  monkeypatch.setenv("PILLOW_BLOCKS_MAX", "0")
  images.reuse_memory(2)
  assert pillow.get_blocks_max() == 0


def test_a_picture_of_a_person_is_not_changed():
  image = Image.new("RGB", (4, 4))
  image.info["comment"] = "theirs"
  out = images.rgb(image, "x")
  assert out is not image
  assert not out.info
  assert image.info == {"comment": "theirs"}
