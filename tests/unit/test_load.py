"""The package's one public function: any model by its name, with the verbs of its system."""

from pathlib import Path

import numpy as np
import pytest

import blip3o_jax
from blip3o_jax.miniature import shipped
from blip3o_jax.systems.blip3o import verbs

TINY = Path(__file__).parents[1] / "data" / "tiny-blip3o"


def test_a_directory_and_nothing_are_models():
  model = blip3o_jax.load(TINY)
  assert isinstance(model, blip3o_jax.Model)
  assert (model.name, model.system, model.dtype) == (str(TINY), "blip3o", "float32")
  (made,) = model.generate("a cat", seed=3, steps=1, pixel_steps=1)
  (wanted,) = verbs.load(TINY).generate(["a cat"], [3], steps=1, pixel_steps=1)
  np.testing.assert_array_equal(made.pixels, wanted)
  grey = np.full((40, 50, 3), 90, np.uint8)
  np.testing.assert_array_equal(model.features(grey), verbs.load(TINY).encode([grey]))
  small = blip3o_jax.load(dtype="bfloat16")
  assert (small.name, small.dtype) == (shipped.NAME, "bfloat16")
  assert small.verbs == verbs.VERBS


def test_the_miniature_by_its_name(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert blip3o_jax.load("miniature").name == shipped.NAME
  (tmp_path / "miniature").mkdir()
  (tmp_path / "miniature" / "config.json").write_text('{"model_type": "bert"}')
  with pytest.raises(ValueError, match="bert"):  # a directory of this name wins
    blip3o_jax.load("miniature")


@pytest.mark.parametrize(
  ("options", "said"),
  [
    ({"dtype": "float16"}, "dtype 'float16': expected 'float32' or 'bfloat16'"),
    ({"weights": "int4"}, "weights 'int4': expected 'float' or 'int8'"),
  ],
)
def test_types_that_there_are_not(options, said):
  with pytest.raises(ValueError, match=said):
    blip3o_jax.load(TINY, **options)


def test_a_folder_of_no_system_is_refused(tmp_path):
  (tmp_path / "config.json").write_text('{"model_type": "bert"}')
  with pytest.raises(ValueError, match="bert"):
    blip3o_jax.load(tmp_path)
