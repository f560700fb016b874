"""The whole system on the tiny checkpoint: batches, and the verbs from prompt to picture."""

from pathlib import Path

import numpy as np
import pytest

from blip3o_jax.systems.blip3o import verbs

TINY = Path(__file__).parents[1] / "data" / "tiny-blip3o"
CHANNELS_LAST = (0, 2, 3, 1)


@pytest.fixture(scope="module")
def model():
  return verbs.load(TINY)


def test_an_image_does_not_depend_on_its_batch(model):
  texts = ["a cat", "two dogs on a long red bench", "sky"]
  together = np.asarray(model.features(texts, [1, 2, 3], steps=4))
  alone = np.asarray(model.features(texts[1:2], [2], steps=4))
  np.testing.assert_allclose(together[1:2], alone, rtol=2e-4, atol=2e-5)


def test_verbs_give_pictures_and_text(model):
  image = model.generate(["a cat"], [0], steps=2, pixel_steps=2)
  assert image.shape == (1, 128, 128, 3)
  assert image.dtype == np.uint8
  picture = image[0]
  assert model.reconstruct([picture], [0], pixel_steps=2).shape == (1, 128, 128, 3)
  answers = model.chat(["what is this?", "hello"], [picture, None], length=4)
  assert all(isinstance(a, str) for a in answers)
