"""Tasks of BLIP3-o: what the arrays of each hold, over tars, shapes and records in memory."""

import dataclasses

from fakes import TINY
from fakes import InMemory
from fakes import jpeg
from fakes import npy
from fakes import write_tar
import jax
import numpy as np
import pytest

from blip3o_jax.data import images
from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.pipeline import Pipeline
from blip3o_jax.data.pipeline import open_source
from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.records import Record
from blip3o_jax.data.shapes.source import Mixture
from blip3o_jax.data.text import chat
from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.data.text.tokenizer import train_bpe
from blip3o_jax.systems import blip3o
from blip3o_jax.systems.blip3o import prompts
from blip3o_jax.systems.blip3o import released
from blip3o_jax.systems.parts import normalising

TOK = Tokenizer.load(TINY, prompts.SPECIAL)
CFG = released.read(TINY, "float32")[0]  # patches of 14, two by two merged
SIDE = 56
EMPTY = len(prompts.generation_ids(TOK, ""))
SMALL = dict(task="generate", batch=2, image_size=SIDE, buckets=(EMPTY + 8, EMPTY + 200))
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


def pipeline(records, data, tokenizer=TOK, cfg=CFG):
  return Pipeline(records, blip3o.transforms(cfg, data, tokenizer), data)


def test_generate():
  p = pipeline(source(), Data(**SMALL, shuffle=False))
  assert {p.bucket_at(s) for s in range(p.steps_per_epoch)} == set(p.buckets)
  for step in range(p.steps_per_epoch):
    batch, bucket = p.batch_at(step), p.bucket_at(step)
    assert batch["tokens"].shape == batch["segments"].shape == (2, bucket)
    assert (batch["tokens"][:, -1] == TOK.image_start).all()
    assert (batch["tokens"][batch["segments"] == 0] == TOK.pad).all()
    assert batch["images"].shape == (2, SIDE, SIDE, 3)
  ids = prompts.generation_ids(TOK, "ab0")
  batch = p.batch_at(0)
  np.testing.assert_array_equal(batch["tokens"][0, -len(ids) :], ids)
  assert batch["images"].dtype == np.uint8
  np.testing.assert_array_equal(batch["images"][0], image(0))


def test_the_form_of_the_prompt_is_the_configs():
  closed = dataclasses.replace(CFG, prompt_form="training")
  data = Data(**SMALL | dict(buckets=(EMPTY + 20,)))
  make = blip3o.transforms(closed, data, TOK)[EMPTY + 20]
  ids = prompts.generation_ids(TOK, "ab0", form="training")
  record = source()[0]
  np.testing.assert_array_equal(make(record, RNG)["tokens"][-len(ids) :], ids)
  assert make.tokens(record) == len(ids)


def test_lengths_are_those_of_the_rows():
  make = blip3o.transforms(CFG, Data(**SMALL), TOK)[EMPTY + 8]
  real = [len(prompts.generation_ids(TOK, r.prompt)) for r in source().records]
  np.testing.assert_array_equal(source().lengths(make.counts, make.tokens), real)


def test_lengths_of_conversations_count_pictures_and_words_to_be_read():
  make = blip3o.transforms(CFG, Data(**SMALL | dict(task="understand")), TOK)[EMPTY + 8]
  short = Record(prompt="why?", answer="so")
  shown = dataclasses.replace(short, image=image(0))
  assert make.tokens(shown) == make.tokens(short) + 4 + 2
  read = Record(prompt="two red stars", extra={"reads": ("two", "red")})
  assert make.tokens(read) == len(prompts.generation_ids(TOK, "two red stars")) + 2
  drawn = Record(image=image(0), extra={"reads": ("two", "red")})
  assert make.tokens(drawn) == len(prompts.reconstruction_ids(TOK, 4)) + 2
  # Without the picture its number is enough.
  for record in (shown, drawn):
    words = dataclasses.replace(record, image=None, extra={**record.extra, "pictures": 1})
    assert make.tokens(words) == make.tokens(record)


def test_cached_features_from_tars(tmp_path):
  x = np.random.default_rng(0).normal(size=(4, 16, 6)).astype(np.float16)
  members = {}
  for i in range(4):
    members |= {f"{i}.txt": f"caption {i}".encode(), f"{i}.npy": npy(x[i])}
  write_tar(tmp_path / "a.tar", members)
  data = Data(path=str(tmp_path), **SMALL, features=True, shuffle=False)
  batch = pipeline(open_source(data), data).batch_at(0)
  assert batch["features"].dtype == np.float16
  np.testing.assert_array_equal(batch["features"], x[:2].reshape(2, 4, 4, 6))
  assert "images" not in batch
  wanting = blip3o.transforms(CFG, Data(**SMALL, features=True), TOK)[EMPTY + 8]
  with pytest.raises(BadRecord, match="r0: no cached features"):
    wanting(source()[0], RNG)


def test_a_corrupt_jpeg_in_a_tar_is_replaced_or_named(tmp_path):
  members = {}
  for i in range(4):
    data = jpeg(i)[: 100 if i == 2 else None]
    members |= {f"{i}.jpg": data, f"{i}.txt": f"caption {i}".encode()}
  write_tar(tmp_path / "a.tar", members)
  lenient = Data(path=str(tmp_path), **SMALL, shuffle=False)
  p = pipeline(open_source(lenient), lenient)
  p.batch_at(1)
  assert p.replaced == 1
  strict = dataclasses.replace(lenient, strict=True)
  p = pipeline(open_source(strict), strict)
  with pytest.raises(BadRecord, match=r"a\.tar:2: the image cannot be decoded"):
    p.batch_at(1)


def test_understand():
  data = Data(**SMALL | dict(task="understand", batch=1, shuffle=False))
  text = Record(prompt="so?", answer="no", name="text")
  make = blip3o.transforms(CFG, data, TOK)[EMPTY + 8]
  out = make(Record(image=image(0), prompt="how many?", answer="two", name="r"), RNG)
  ids = [*chat.chat_ids(TOK, "how many?", [4], system=prompts.SYSTEM), *TOK.encode("two")]
  np.testing.assert_array_equal(out["tokens"][-len(ids) :], ids)
  labels = [*TOK.encode("two"), TOK.im_end]
  np.testing.assert_array_equal(out["labels"][-len(labels) :], labels)
  assert (out["labels"][: -len(labels)] == -1).all()
  patches, grid = images.qwen_image(images.decode(image(0), "x"))
  assert grid == (4, 4)
  assert out["patches"].dtype == np.uint8
  (found,) = jax.jit(normalising.clip_patches)(out["patches"])
  np.testing.assert_allclose(found, patches, rtol=0, atol=1e-6)
  first = int(np.argmax(out["tokens"] == TOK.image_pad))
  start = out["positions"][0, first]
  np.testing.assert_array_equal(
    out["positions"][:, first : first + 4] - start, [[0] * 4, [0, 0, 1, 1], [0, 1, 0, 1]]
  )
  assert out["patch_segments"].shape == (1, 16)
  assert out["patch_segments"].all()
  assert out["patch_positions"].shape == (1, 16, 2)
  blind = make(text, RNG)
  assert {k: v.shape for k, v in blind.items()} == {k: v.shape for k, v in out.items()}
  assert not blind["patches"].any()
  assert not blind["patch_segments"].any()
  assert TOK.image_pad not in blind["tokens"]
  with pytest.raises(BadRecord, match="without an answer"):
    make(Record(prompt="a caption"), RNG)
  batch = pipeline(source(), data).batch_at(0)
  assert batch["positions"].shape[:2] == (1, 3)


def shapes_rows(tmp_path, mixture, **sizes):
  """Records of the embedded set with a tokenizer of their words: (records, batch, tokenizer)."""
  fields = dict(source="shapes", split="world", task="understand", records=60, batch=60)
  data = Data(**fields | sizes, shapes=mixture, buckets=(320,), shuffle=False)
  records = open_source(data)
  found = [records[i] for i in range(60)]
  words = [w for r in found for key in ("reads", "places") for w in r.extra.get(key, ())]
  tokenizer = train_bpe(words * 20, 400, tmp_path, prompts.SPECIAL)
  return found, pipeline(records, data, tokenizer).batch_at(0), tokenizer


def test_prompts_to_be_read_at_the_slots(tmp_path):
  mixture = Mixture(questions=True, reading=0.5, seeing=0.5, text_questions=0, turns=2)
  found, batch, tokenizer = shapes_rows(tmp_path, mixture, image_size=112)
  assert {r.kind for r in found} == {"reading", "seeing"}
  for tokens, labels, record in zip(batch["tokens"], batch["labels"], found, strict=True):
    reads = record.extra["reads"]
    count = len(reads)
    assert tuple(tokenizer.decode([i]) for i in labels[-count:]) == reads
    assert (labels[:-count] == chat.IGNORED).all()
    prompt = prompts.generation_ids(tokenizer, record.prompt)
    if record.image is not None:
      prompt = prompts.reconstruction_ids(tokenizer, 16)
    np.testing.assert_array_equal(tokens[-count - len(prompt) : -count], prompt)
    assert (tokens[-count:] < prompts.UNUSED[1]).all()
    assert (tokens == tokenizer.image_pad).sum() == 16 * (record.image is not None)


def test_places_are_named_at_the_pictures_own_tokens(tmp_path):
  mixture = Mixture(questions=True, seeing=0.3, places=0.6, text_questions=0.2, turns=2)
  found, batch, tokenizer = shapes_rows(tmp_path, mixture, image_size=112)
  for tokens, labels, record in zip(batch["tokens"], batch["labels"], found, strict=True):
    at = labels[tokens == tokenizer.image_pad]
    if "places" in record.extra:
      assert tuple(tokenizer.decode([i]) for i in at) == record.extra["places"]
    else:
      assert (at == chat.IGNORED).all()


def test_rows_without_pictures_have_no_patches(tmp_path):
  mixture = Mixture(questions=True, text_questions=1.0, descriptions=0.0, turns=2)
  _, batch, tokenizer = shapes_rows(tmp_path, mixture, image_size=0)
  assert batch.keys() == {"tokens", "segments", "labels", "positions"}
  data = Data(task="understand", image_size=0, buckets=(320,))
  with pytest.raises(BadRecord, match=r"r: shows a picture, but data\.image_size is 0"):
    blip3o.transforms(CFG, data, tokenizer)[320](Record(image=image(0), name="r"), RNG)


def test_sizes_and_buckets_are_checked_before_the_first_batch():
  for data, match in (
    (Data(task="generate", buckets=(16,)), "does not hold the prompt's template"),
    (Data(task="understand", buckets=(16,)), "does not hold the chat template"),
    (Data(task="understand", image_size=60), r"image_size: 60 is not a multiple of .* = 28"),
    (Data(task="contrast"), r"data\.task: 'contrast' is not one of generate, edit"),
  ):
    with pytest.raises(ValueError, match=match):
      blip3o.transforms(CFG, data, TOK)
  with pytest.raises(ValueError, match=r"config\.tokenizer: task 'generate' needs a directory"):
    blip3o.transforms(CFG, Data(task="generate"), None)
