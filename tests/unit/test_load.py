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
  assert isinstance(model, verbs.Model)
  wanted = verbs.load(TINY).features(["a cat"], [0], steps=1)
  np.testing.assert_array_equal(model.features(["a cat"], [0], steps=1), wanted)
  small = blip3o_jax.load(dtype="bfloat16")
  assert small.cfg == verbs.load(shipped.directory(), dtype="bfloat16").cfg


def test_a_folder_of_no_system_is_refused(tmp_path):
  (tmp_path / "config.json").write_text('{"model_type": "bert"}')
  with pytest.raises(ValueError, match="bert"):
    blip3o_jax.load(tmp_path)
