"""Pictures that Nexus-Gen draws while it is trained: of what is trained, and of what it lacks."""

from collections.abc import Callable
import dataclasses
import json
from typing import Any

from flax import nnx
import nexus_files
import numpy as np
import pytest

from blip3o_jax.systems import nexus_gen
from blip3o_jax.systems.nexus_gen import model
from blip3o_jax.systems.nexus_gen import released
from blip3o_jax.train.run import Samples

CFG, _ = released.read(nexus_files.TINY, "float32")
PROMPTS = ("a red circle", "two squares")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> str:
  folder = nexus_files.copy(tmp_path_factory.mktemp("nexus") / "home")
  told = json.loads((folder / "tiny.json").read_text()) | {"blip3o_jax": {"size": 32}}
  (folder / "tiny.json").write_text(json.dumps(told))
  return str(folder)


def trained(stage: model.Stage, *parts: model.Part) -> model.Config:
  return dataclasses.replace(CFG, stage=stage, parts=parts)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("stage", "parts"),
  [
    ("language", ("visual", "language")),
    ("generation", ("generator", "autoencoder", "constants")),
  ],
)
def test_what_is_trained_draws(home: str, stage: model.Stage, parts: Any, fill: Callable[..., Any]):
  """Other weights draw other pictures; the run's own count, and not those of the directory."""
  cfg = trained(stage, *parts)
  samples = Samples(decoder=home, prompts=PROMPTS, steps=1, scale=1.0)
  draw = nexus_gen.sampler(cfg, samples, home)
  own = fill(lambda: model.build(cfg, nnx.Rngs(0)))
  found = draw(own, 1)
  assert (found.dtype, found.shape) == (np.uint8, (2, 32, 32, 3))
  np.testing.assert_array_equal(draw(own, 2), found)
  kernel = own.vision_head.kernel if stage == "language" else own.generator.adapter.linear_in.kernel
  kernel[...] = -kernel[...]
  assert (draw(own, 3) != found).mean() > 0.1


@pytest.mark.parametrize(
  ("cfg", "change", "text"),
  [
    (trained("editing", "editor"), {}, "the editing decoder paints beside a picture"),
    (trained("language", "language"), dict(pixel_steps=3), r"samples\.pixel_steps: not read"),
    (trained("language", "language"), dict(decoder=""), r"needs config\.samples\.decoder"),
    (
      dataclasses.replace(trained("generation", "generator"), null_tokens=4),
      {},
      r"constants/context is \(20, 96\), but this run's is \(4, 96\)",
    ),
  ],
)
def test_what_cannot_draw(home: str, cfg: model.Config, change: Any, text: str):
  samples = Samples(**(dict(decoder=home, prompts=PROMPTS) | change))
  with pytest.raises(ValueError, match=text):
    nexus_gen.sampler(cfg, samples, home)
