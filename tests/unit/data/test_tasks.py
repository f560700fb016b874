"""Tasks: what the arrays of each hold, over tars and over arrays in memory."""

from fakes import Tokenizer
from fakes import jpeg
from fakes import npy
from fakes import write_tar
import numpy as np
import pytest

from blip3o_jax import config
from blip3o_jax.data import images
from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.records import InMemory
from blip3o_jax.data.records import Record
from blip3o_jax.data.text import chat
from blip3o_jax.systems.blip3o import tasks

TOK = Tokenizer()
SIDE = 56
EMPTY = len(chat.generation_ids(TOK, ""))
SMALL = dict(batch=2, image_size=SIDE, buckets=(EMPTY + 8, EMPTY + 200))
RNG = np.random.default_rng(0)


def image(seed):
  return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def source(count=6):
  return InMemory(
    [
      Record(image=image(i), prompt=f"ab{i}" * (1 + 5 * (i % 2)), answer=f"yes {i}", name=f"r{i}")
      for i in range(count)
    ]
  )


def test_generate():
  p = tasks.build(source(), Data(**SMALL, shuffle=False), TOK)
  assert {p.bucket_at(s) for s in range(p.steps_per_epoch)} == set(p.buckets)
  for step in range(p.steps_per_epoch):
    batch, bucket = p.batch_at(step), p.bucket_at(step)
    assert batch["tokens"].shape == batch["segments"].shape == (2, bucket)
    assert (batch["tokens"][:, -1] == TOK.image_start).all()
    assert (batch["tokens"][batch["segments"] == 0] == TOK.pad).all()
    assert batch["images"].shape == (2, SIDE, SIDE, 3)
  ids = chat.generation_ids(TOK, "ab0")
  batch = p.batch_at(0)
  np.testing.assert_array_equal(batch["tokens"][0, -len(ids) :], ids)
  np.testing.assert_array_equal(batch["images"][0], images.normalise(image(0)))


def test_lengths_hold_the_rows():
  cfg = Data(**SMALL)
  found = tasks.token_lengths(source(), cfg, TOK)
  real = [len(chat.generation_ids(TOK, r.prompt)) for r in source()._records]
  assert (found >= real).all()


def test_values_for_an_autoencoder():
  p = tasks.build(source(), Data(**SMALL, values="signed"), TOK)
  images = p.batch_at(0)["images"]
  assert images.min() == -1
  assert images.max() == 1


def test_cached_features_from_tars(tmp_path):
  x = np.random.default_rng(0).normal(size=(4, 16, 6)).astype(np.float16)
  members = {}
  for i in range(4):
    members |= {f"{i}.txt": f"caption {i}".encode(), f"{i}.npy": npy(x[i])}
  write_tar(tmp_path / "a.tar", members)
  cfg = Data(path=str(tmp_path), **SMALL, features=True, shuffle=False)
  batch = tasks.build(tasks.open_source(cfg), cfg, TOK).batch_at(0)
  assert batch["features"].dtype == np.float32
  np.testing.assert_array_equal(batch["features"], x[:2].reshape(2, 4, 4, 6))
  assert "images" not in batch
  wanting = tasks.generate_transform(Data(**SMALL, features=True), TOK, EMPTY + 8)
  with pytest.raises(BadRecord, match="r0: no cached features"):
    wanting(source()[0], RNG)


def test_a_corrupt_jpeg_in_a_tar_is_replaced_or_named(tmp_path):
  members = {}
  for i in range(4):
    data = jpeg(i)[: 100 if i == 2 else None]
    members |= {f"{i}.jpg": data, f"{i}.txt": f"caption {i}".encode()}
  write_tar(tmp_path / "a.tar", members)
  cfg = dict(path=str(tmp_path), **SMALL, shuffle=False)
  p = tasks.build(tasks.open_source(Data(**cfg)), Data(**cfg), TOK)
  batch = p.batch_at(1)
  assert np.isfinite(batch["images"]).all()
  assert p.replaced == 1
  p = tasks.build(tasks.open_source(Data(**cfg)), Data(**cfg, strict=True), TOK)
  with pytest.raises(BadRecord, match=r"a\.tar:2: the image cannot be decoded"):
    p.batch_at(1)


def test_holdout_divides_a_folder(tmp_path):
  write_tar(tmp_path / "a.tar", {f"{i}.{e}": b"x" for i in range(200) for e in ("jpg", "txt")})
  names = {}
  for split in ("train", "test"):
    part = tasks.open_source(Data(path=str(tmp_path), split=split, holdout=0.2))
    names[split] = {part[i].name for i in range(len(part))}
  assert not names["train"] & names["test"]
  assert len(names["train"] | names["test"]) == 200
  assert 20 < len(names["test"]) < 60
  assert len(tasks.open_source(Data(path=str(tmp_path)))) == 200
  assert len(tasks.open_source(Data(path=str(tmp_path), records=7))) == 7
  with pytest.raises(ValueError, match="'test' is empty"):
    tasks.open_source(Data(path=str(tmp_path), split="test"))


def test_understand():
  cfg = Data(**SMALL | dict(task="understand", batch=1, shuffle=False))
  layout = {"patch_segments": np.ones(16, np.int32)}
  text = Record(prompt="so?", answer="no", name="text")
  make = tasks.understand_transform(cfg, TOK, EMPTY + 8, layout)
  out = make(Record(image=image(0), prompt="how many?", answer="two", name="r"), RNG)
  ids = [*chat.chat_ids(TOK, "how many?", [4]), *TOK.encode("two")]
  np.testing.assert_array_equal(out["tokens"][-len(ids) :], ids)
  labels = [*TOK.encode("two"), TOK.im_end]
  np.testing.assert_array_equal(out["labels"][-len(labels) :], labels)
  assert (out["labels"][: -len(labels)] == -1).all()
  patches, grid = images.qwen_image(images.decode(image(0), "x"))
  assert grid == (4, 4)
  np.testing.assert_array_equal(out["patches"], patches)
  first = int(np.argmax(out["tokens"] == TOK.image_pad))
  start = out["positions"][0, first]
  np.testing.assert_array_equal(
    out["positions"][:, first : first + 4] - start, [[0] * 4, [0, 0, 1, 1], [0, 1, 0, 1]]
  )
  assert out["patch_segments"].all()
  blind = make(text, RNG)
  assert {k: v.shape for k, v in blind.items()} == {k: v.shape for k, v in out.items()}
  assert not blind["patches"].any()
  assert not blind["patch_segments"].any()
  assert TOK.image_pad not in blind["tokens"]
  with pytest.raises(BadRecord, match="without an answer"):
    make(Record(prompt="a caption"), RNG)
  batch = tasks.build(source(), cfg, TOK, layout=layout).batch_at(0)
  assert batch["positions"].shape[:2] == (1, 3)


def test_contrast_and_pixels():
  cfg = Data(**SMALL | dict(task="contrast", buckets=(16,)))
  batch = tasks.build(source(), cfg, TOK).batch_at(0)
  assert (batch["tokens"][:, -1] == TOK.im_end).all()
  assert batch["images"].shape == (2, SIDE, SIDE, 3)
  cfg = Data(**SMALL | dict(task="pixels", shuffle=False))
  p = tasks.build(source(), cfg, TOK)
  assert p.batch_at(0).keys() == {"images"}
  np.testing.assert_array_equal(p.batch_at(0)["images"][1], images.signed(image(1)))
  assert p.steps_per_epoch == 3
  both = Record(image=image(0), features=np.zeros((2, 2, 6), np.float16))
  out = tasks.pixels_transform(Data(**SMALL, features=True))(both, RNG)
  assert {k: v.shape for k, v in out.items()} == {"images": (SIDE, SIDE, 3), "features": (2, 2, 6)}


def test_sizes_and_buckets_are_checked_before_the_first_batch():
  with pytest.raises(ValueError, match="does not hold the prompt's template"):
    tasks.build(source(), Data(batch=2, buckets=(16,)), TOK)
  with pytest.raises(ValueError, match="not a multiple of patch_size x merge = 28"):
    tasks.build(source(), Data(batch=2, task="understand", image_size=60), TOK)


def test_every_field_is_a_flag():
  values = config.to_config(Data())
  values.batch, values.buckets = 16, (64, 160)
  assert config.build(Data, values) == Data(batch=16, buckets=(64, 160))
  with pytest.raises(ValueError, match="did you mean 'buckets'"):
    config.build(Data, {"bucket": (64,)})
