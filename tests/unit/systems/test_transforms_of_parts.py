"""What contrast and pixels make of a record."""

from fakes import TINY
import numpy as np
import pytest

from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.pipeline import Pipeline
from blip3o_jax.data.pipeline import open_source
from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.records import Record
from blip3o_jax.data.text import chat
from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.miniature import sizes
from blip3o_jax.systems import contrast
from blip3o_jax.systems import pixels

TOK = Tokenizer.load(TINY, contrast.SPECIAL)
SHAPES = dict(source="shapes", split="world", records=24, batch=8, image_size=64)
RNG = np.random.default_rng(0)


def image(seed=0, side=64):
  return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def test_contrast_has_a_caption_and_its_end():
  data = Data(**SHAPES, task="contrast", buckets=(16, 32))
  made = contrast.transforms(sizes.contrast_shapes(), data, TOK)
  p = Pipeline(open_source(data), made, data)
  batch = p.batch_at(0)
  assert batch.keys() == {"tokens", "segments", "images"}
  assert (batch["tokens"][:, -1] == TOK.im_end).all()
  assert batch["images"].shape == (8, 64, 64, 3)
  record = Record(image=image(), prompt="a star", name="r")
  out = made[16](record, RNG)
  ids = [*TOK.encode("a star"), TOK.im_end]
  assert made[16].tokens(record) == len(ids)
  assert out["tokens"].tolist() == [TOK.pad] * (16 - len(ids)) + ids
  assert out["segments"].tolist() == [0] * (16 - len(ids)) + [1] * len(ids)
  np.testing.assert_array_equal(out["images"], image())
  assert made[16].counts == made[32].counts
  assert TOK.fingerprint in made[16].counts


def test_a_long_caption_of_contrast_is_cut_before_its_end(monkeypatch):
  lines = []
  monkeypatch.setattr(chat.logging, "warning", lambda text, *args: lines.append(text % args))
  data = Data(**SHAPES, task="contrast", buckets=(16,))
  make = contrast.transforms(sizes.contrast_shapes(), data, TOK)[16]
  record = Record(image=image(), prompt="a star " * 30)
  ids = [*TOK.encode(record.prompt)[:15], TOK.im_end]
  assert make(record, RNG)["tokens"].tolist() == ids
  assert make.tokens(record) > 16
  assert "the caption is too long" in lines[0]


def test_pixels_has_a_picture_and_features_beside_it():
  data = Data(**SHAPES, task="pixels", shuffle=False)
  p = Pipeline(open_source(data), pixels.transforms(sizes.pixels_shapes(), data, None), data)
  assert p.steps_per_epoch == 3
  batch = p.batch_at(1)
  assert batch.keys() == {"images"}
  record = open_source(data)[9]
  assert batch["images"].dtype == np.uint8
  np.testing.assert_array_equal(batch["images"][1], record.image)
  cached = Data(**SHAPES, task="pixels", features=True)
  make = pixels.transforms(sizes.pixels_shapes(), cached, None)[64]
  both = Record(image=image(), features=np.zeros((2, 2, 6), np.float16), name="r")
  out = make(both, RNG)
  assert {k: v.shape for k, v in out.items()} == {"images": (64, 64, 3), "features": (2, 2, 6)}
  assert out["features"].dtype == np.float16
  for record, match in (
    (Record(image=image(), name="r"), "r: no cached features"),
    (Record(name="r"), "r: no image"),
    (Record(image=np.zeros((1, 201, 3), np.uint8), name="r"), "r: an image of 201 x 1 is too thin"),
  ):
    with pytest.raises(BadRecord, match=match):
      make(record, RNG)


def test_another_task_is_refused_by_its_name():
  with pytest.raises(ValueError, match=r"config\.data\.task: 'generate' is not one of pixels"):
    pixels.transforms(sizes.pixels_shapes(), Data(task="generate"), None)
  with pytest.raises(ValueError, match=r"config\.data\.task: '' is not one of contrast"):
    contrast.transforms(sizes.contrast_shapes(), Data(), TOK)
  with pytest.raises(ValueError, match=r"config\.tokenizer: task 'contrast' needs a directory"):
    contrast.transforms(sizes.contrast_shapes(), Data(task="contrast"), None)
