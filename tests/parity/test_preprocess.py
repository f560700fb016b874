"""Our preprocessing against the recorded outputs of the PyTorch processors, on ten odd pictures."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

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
