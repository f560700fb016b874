"""Our preprocessing against the PyTorch processors: recorded, on ten odd pictures, and called.

They are called on pictures of random sizes; 1/255 is a level.
"""

from pathlib import Path

import numpy as np
from PIL import Image
import pytest
from safetensors.numpy import load_file
from transformers import CLIPImageProcessorPil
from transformers import Qwen2VLImageProcessorPil

from blip3o_jax.data import images

DATA = Path(__file__).parents[1] / "data" / "preprocess"
EXPECTED = load_file(DATA / "expected.safetensors")
NAMES = sorted({key.split("/")[0] for key in EXPECTED})
AT_448 = [key.split("/")[0] for key in EXPECTED if key.endswith("eva448_u8")]


def picture(name):
  return images.decode((DATA / name).read_bytes(), name, friendly=False)


def test_there_are_ten_pictures():
  assert len(NAMES) == 10
  assert len(AT_448) == 2


@pytest.mark.parametrize("name", NAMES)
def test_qwen(name):
  patches, grid = images.qwen_image(picture(name), max_pixels=12_544)
  np.testing.assert_array_equal([[1, *grid]], EXPECTED[f"{name}/qwen.grid_thw"])
  np.testing.assert_allclose(patches, EXPECTED[f"{name}/qwen.pixel_values"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_eva(name):
  found = images.normalise(images.square(picture(name), 112)).transpose(2, 0, 1)
  np.testing.assert_allclose(found, EXPECTED[f"{name}/eva112"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", AT_448)
def test_eva_at_448(name):
  found = images.square(picture(name), 448)
  np.testing.assert_array_equal(found, EXPECTED[f"{name}/eva448_u8"])


@pytest.fixture
def horizontal(monkeypatch):
  """Pillow resizes the width first, as the release's versions do (`images.RESIZE`)."""
  plain = Image.Image.resize

  def resize(image, size, *args, **more):
    return plain(plain(image, (size[0], image.height), *args, **more), size, *args, **more)

  monkeypatch.setattr(Image.Image, "resize", resize)


def random_pictures(count):
  """Noise, which no other picture outdoes in how much the order and the filter matter."""
  rng = np.random.default_rng(0)
  for width, height in np.exp(rng.uniform(np.log(30), np.log(700), (count, 2))).astype(int):
    yield Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def levels(found, wanted):
  """The largest difference of normalised pictures float[3, H, W], in levels of 255."""
  assert found.shape == wanted.shape
  return (np.abs(found - wanted) * images.STD[:, None, None] * 255).max()


def test_eva_at_random_sizes(horizontal):
  """torchvision's centre, which is that of the reference, is cut out of what is resized."""
  process = CLIPImageProcessorPil(size={"shortest_edge": 112}, do_center_crop=False)
  for image in random_pictures(40):
    wanted = process(image, return_tensors="np")["pixel_values"][0]
    top, left = (round((side - 112) / 2) for side in wanted.shape[1:])
    wanted = wanted[:, top : top + 112, left : left + 112]
    found = images.normalise(images.square(image, 112)).transpose(2, 0, 1)
    assert levels(found, wanted) < 0.01, image.size


def test_qwen_at_random_sizes(horizontal):
  process = Qwen2VLImageProcessorPil(max_pixels=12_544)
  for image in random_pictures(40):
    wanted = process(image, return_tensors="np")
    patches, grid = images.qwen_image(image, max_pixels=12_544)
    np.testing.assert_array_equal([[1, *grid]], wanted["image_grid_thw"])
    channels = (
      np.asarray(v).reshape(len(v), 3, -1).swapaxes(0, 1) for v in (patches, wanted["pixel_values"])
    )
    assert levels(*channels) < 0.01, image.size
