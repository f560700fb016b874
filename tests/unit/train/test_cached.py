"""Whether a run may train on cached features, by what their manifests say."""

import dataclasses
from typing import Any

from ml_dtypes import bfloat16
import numpy as np
import pytest

from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.records import Record
from blip3o_jax.data.records import Source
from blip3o_jax.data.sources.arrayrecord import ArrayRecordSource
from blip3o_jax.data.sources.mixed import Mixed
from blip3o_jax.data.sources.mixed import Piece
from blip3o_jax.miniature import sizes
from blip3o_jax.models import autoencoder
from blip3o_jax.systems import SYSTEMS
from blip3o_jax.systems import blip3o
from blip3o_jax.train import cached
from blip3o_jax.train import encoder
from blip3o_jax.train.run import Run
from blip3o_jax.train.run import Train

MODEL = dataclasses.replace(sizes.blip3o_shapes(), parts=("denoiser",))
DATA = Data(path="anywhere", task="generate", features=True, image_size=64)
ABOUT: dict[str, Any] = {
  "fingerprint": "blake3:00",
  "parameters": "float32",
  "design": cached._plain(blip3o.encoder(MODEL).design),
  "shape": [4, 4, 16],
  "dtype": "bfloat16",
  "transform": cached.transform(DATA),
}


class Index:
  def __init__(self, home: str):
    self.home = home

  def __len__(self) -> int:
    return 3


def packed(home: str, about: dict[str, Any] | None = ABOUT, features: int = 3) -> Source:
  """A packed set as far as its manifest goes."""
  source = object.__new__(ArrayRecordSource)
  source.index = Index(home)  # type: ignore[assignment]
  fields = {"features": features} if features else {}
  source.manifest = {"shards": [{"fields": {}}, {"fields": fields}]}
  source.manifest |= {} if about is None else {"encoder": about}
  return source


def caches(name: str = "blip3o", model: Any = MODEL) -> cached.Caches:
  return cached.Caches(Run(name, model, Train(), DATA, DATA), SYSTEMS[name])


def test_one_that_fits(warnings):
  caches().check(packed("a"), DATA)
  (line,) = warnings
  assert line == (
    "a: its features are of the encoder blake3:00, which cannot be checked: config.init_from is "
    "empty"
  )


def test_sets_of_two_encoders(warnings):
  other = packed("b", ABOUT | {"fingerprint": "blake3:11"})
  match = "b: its features are of the encoder blake3:11, those of a of blake3:00; a run trains on"
  with pytest.raises(ValueError, match=match):
    caches().check(Mixed([Piece(packed("a")), Piece(other)]), DATA)
  both = caches()  # of training, and held out
  both.check(packed("a"), DATA)
  with pytest.raises(ValueError, match=match):
    both.check(other, DATA)


def test_sets_that_say_nothing(warnings):
  with pytest.raises(ValueError, match=r"a: holds no cached features, and config\.data\.features"):
    caches().check(packed("a", None, features=0), DATA)
  caches().check(packed("a", None), DATA)
  assert warnings == ["a: nothing says which encoder made its features"]


@pytest.mark.parametrize(
  ("about", "text"),
  [
    ({"shape": [2, 2, 16]}, r"its features have the shape \[2, 2, 16\], the run's \[4, 4, 16\]"),
    (
      {"transform": ABOUT["transform"] | {"resize": "vertical first"}},
      "encoded with resize 'vertical first', this package's is 'horizontal first'",
    ),
    ({"design": ABOUT["design"] | {"whiten": 0}}, "its encoder has whiten 0, the run's 16"),
    ({"design": {"target": "latents"}}, "its encoder has target latents, the run's features"),
  ],
)
def test_what_does_not_fit(about, text):
  with pytest.raises(ValueError, match=f"a: .*{text}"):
    caches().check(packed("a", ABOUT | about), DATA)


def test_a_system_whose_pictures_are_others():
  """The pixel decoder's pictures have a size of their own; how they were cut must be the same."""
  pixels = caches("pixels", sizes.pixels_shapes())
  pixels.check(packed("a"), dataclasses.replace(DATA, image_size=256))
  with pytest.raises(ValueError, match="encoded with squash False"):
    pixels.check(packed("a"), dataclasses.replace(DATA, squash=True))
  with pytest.raises(ValueError, match=r"shape \[8, 8, 16\], the run's \[4, 4, 16\]"):
    pixels.check(packed("a", ABOUT | {"shape": [8, 8, 16]}), DATA)
  tower = caches("contrast", sizes.contrast_shapes())
  with pytest.raises(ValueError, match="its features have no place in this run's batches"):
    tower.check(packed("a"), DATA)


def test_the_encoder_of_a_model():
  """Its design is what decides features; how it is trained through is not."""
  tower = dataclasses.replace(MODEL.features.tower, remat="full")
  features = dataclasses.replace(MODEL.features, tower=tower)
  found = blip3o.encoder(dataclasses.replace(MODEL, features=features))
  assert (found.modules, found.shape) == (("encoder",), (4, 4, 16))
  assert found.cfg.parts == ("denoiser", "encoder")
  picture = np.zeros((3, 5, 3), np.uint8)
  row = found.rows(DATA, None)(Record(image=picture))
  assert {name: value.shape for name, value in row.items()} == {"images": (64, 64, 3)}
  with pytest.raises(ValueError, match="image_size: 56, but the encoder takes 64"):
    found.rows(dataclasses.replace(DATA, image_size=56), None)
  assert found.design == blip3o.encoder(MODEL).design
  assert found.design["tower"]["dtype"] == "float32"
  assert "remat" not in str(found.design)
  latents = autoencoder.Config(latent_channels=16)
  drawn = blip3o.encoder(dataclasses.replace(MODEL, target="latents", latents=latents))
  assert drawn.shape == (4, 4, 16)
  assert drawn.rows(dataclasses.replace(DATA, image_size=32), None)
  assert drawn.design["scaling_factor"] == latents.scaling_factor
  assert drawn.design["target"] == "latents"


def test_fingerprints():
  leaves = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.ones((), bfloat16)}
  found = encoder.fingerprint(leaves)
  assert found.startswith("blake3:")
  assert found == encoder.fingerprint(dict(reversed(leaves.items())))
  changed = leaves["b"].copy()
  changed[1, 2] += 1
  others = [{"b": changed}, {"b": leaves["b"].reshape(3, 2)}, {"a": np.ones((), np.float32)}]
  assert len({found, *(encoder.fingerprint(leaves | each) for each in others)}) == 4
