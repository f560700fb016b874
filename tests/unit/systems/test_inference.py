"""The verbs of a loaded model: lengths, seeds, sampling, endings; and a model saved and read."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
from PIL import Image
import pytest

from blip3o_jax import trees
from blip3o_jax.systems.blip3o import batches
from blip3o_jax.systems.blip3o import save
from blip3o_jax.systems.blip3o import verbs
from blip3o_jax.systems.parts import diffusers_files
from blip3o_jax.systems.parts import loading
from blip3o_jax.systems.parts import talking
from blip3o_jax.systems.parts import writing
from blip3o_jax.weights.safetensors import Tensors

TINY = Path(__file__).parents[2] / "data" / "tiny-blip3o"


@pytest.fixture(scope="module")
def model() -> verbs.Model:
  return verbs.load(TINY)


def test_prompts_are_padded_to_buckets(model):
  for count, bucket in ((1, 32), (32, 32), (33, 64), (448, 448)):
    found = model._batches.padded([[5] * count], batches.BUCKETS)
    tokens, segments = found["tokens"], found["segments"]
    assert tokens.shape == (1, bucket)
    assert segments.sum() == count
    assert tokens[0, -1] == 5
  with pytest.raises(ValueError, match="449 tokens is longer than the limit of 448"):
    model._batches.padded([[5] * 449], batches.BUCKETS)


def test_one_seed_an_image(model):
  texts = ["a cat", "a cat", "a cat"]
  x = np.asarray(model.features(texts, [1, 2, 1], steps=2))
  np.testing.assert_allclose(x[0], x[2], rtol=1e-4, atol=1e-5)
  assert np.abs(x[0] - x[1]).max() > 0.1
  with pytest.raises(ValueError, match="3 prompts but 2 seeds"):
    model.features(texts, [1, 2])


def test_sampling_depends_on_the_seed_alone(model):
  ask = dict(length=6, temperature=1.5)
  first = model.chat(["what is this?"], [None], seed=3, **ask)
  assert first == model.chat(["what is this?"], [None], seed=3, **ask)
  others = {model.chat(["what is this?"], [None], seed=s, **ask)[0] for s in range(4, 8)}
  assert others - set(first)
  large = {model.chat(["what is this?"], [None], seed=2**32 + s, **ask)[0] for s in range(4, 8)}
  assert large - others
  greedy = [model.chat(["what is this?"], [None], seed=s, length=6) for s in (0, 1)]
  assert greedy[0] == greedy[1]


def test_an_answer_stops_at_its_end(model):
  ids = model.tokenizer
  said = ids.encode("two dogs")
  for end in (ids.im_end, ids.pad):
    text = writing.Writing(ids, model._ends(), talking.How(), 0)
    assert not text.take([*said, end, *said])
    assert text.reply(7) == talking.Reply("two dogs", "stop", len(said) + 1, 7)
  text = writing.Writing(ids, model._ends(), talking.How(), 0)
  assert text.take(said)
  assert text.reply(7) == talking.Reply("two dogs", "length", len(said), 7)


def test_a_sampled_end_stops_the_answer(model, monkeypatch):
  """Greedy ids, then the same with the third of them as the end: nothing follows it."""
  taken: list[int] = []
  take = writing.Writing.take
  monkeypatch.setattr(writing.Writing, "take", lambda s, ids: taken.extend(ids) or take(s, ids))
  (free,) = model.talk([[talking.Message("user", ["hello"])]], length=6)
  assert (len(taken), free.tokens, free.finish) == (6, 6, "length")
  end, first = taken[2], taken.index(taken[2])
  monkeypatch.setattr(model, "_ends", lambda: (end, model.tokenizer.pad))
  (ended,) = model.talk([[talking.Message("user", ["hello"])]], length=6)
  assert (ended.tokens, ended.finish) == (first + 1, "stop")
  assert ended.text == model.tokenizer.decode(taken[:first]).strip()


def test_without_a_decoder_nothing_is_drawn(model):
  bare = verbs.Model(model.cfg, model.settings, model.system, None, model.tokenizer)
  with pytest.raises(ValueError, match="no pixel decoder"):
    bare.generate(["a cat"], [0], steps=1)


def test_two_pictures_in_one_call_as_alone(model):
  rng = np.random.default_rng(0)
  pictures = [
    Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)) for size in ((56, 84), (112, 56))
  ]
  asked = ["what is this?", "how many?"]
  together = model.chat(asked, pictures, length=3)
  alone = [model.chat([q], [p], length=3)[0] for q, p in zip(asked, pictures, strict=True)]
  assert together == alone


def test_saved_and_loaded_is_the_same(model, tmp_path):
  """Every tensor of the release comes back under its name, bit for bit, and draws the same."""
  save.save(model, TINY, tmp_path / "again")
  before, after = Tensors(TINY), Tensors(tmp_path / "again")
  assert set(after) <= set(before)
  lost = set(before) - set(after)
  assert all(_tolerated(name) for name in lost), sorted(lost)[:5]
  for name in after:
    np.testing.assert_array_equal(
      np.asarray(before.read(name), np.float32), after.read(name), err_msg=name
    )
  again = verbs.load(tmp_path / "again")
  # Only the autoencoder of latents, which files of features do not describe, may differ.
  assert dataclasses.replace(again.cfg, latents=model.cfg.latents) == model.cfg
  assert again.settings == model.settings
  flat = trees.flatten(again.system.params)
  for path, value in trees.flatten(model.system.params).items():
    np.testing.assert_array_equal(flat[path], value, err_msg=path)
  assert model.decoder is not None
  assert again.decoder is not None
  flat = trees.flatten(again.decoder.params)
  for path, value in trees.flatten(model.decoder.params).items():
    np.testing.assert_array_equal(flat[path], value, err_msg=path)
  x, y = (np.asarray(m.features(["a cat"], [4], steps=2)) for m in (model, again))
  np.testing.assert_array_equal(x, y)


def test_saved_in_half_precision(model, tmp_path):
  """Every tensor in the files is float16, and is read as float32 of the same values."""
  save.save(model, TINY, tmp_path / "half", dtype="float16")
  home = tmp_path / "half" / diffusers_files.FOLDER
  for tensors in (
    Tensors(tmp_path / "half"),
    *(Tensors(home / folder, diffusers_files.STEM) for folder in diffusers_files.FOLDERS.values()),
  ):
    assert {tensors.dtype(name) for name in tensors} == {np.dtype(np.float16)}
  again = verbs.load(tmp_path / "half")
  found = trees.flatten(again.system.params)
  for path, value in trees.flatten(model.system.params).items():
    assert found[path].dtype == np.float32
    np.testing.assert_array_equal(found[path], np.asarray(value).astype(np.float16), err_msg=path)


def test_a_value_too_large_for_half_precision(model, tmp_path):
  flat = trees.flatten(model.system.params)
  tower = {p: v for p, v in flat.items() if p.startswith("encoder/")}
  path = min(tower)
  tower[path] = np.asarray(tower[path]) + 1e5
  with pytest.raises(ValueError, match=r"gen_vision_tower\..*: float16 cannot hold 1e\+05"):
    save.write_weights(tower, tmp_path, dtype="float16")
  assert not list(tmp_path.iterdir())


def _tolerated(name: str) -> bool:
  import re

  from blip3o_jax.systems.blip3o import layout

  return any(re.fullmatch(pattern, name) for pattern in layout.LEFTOVERS)


def test_a_folder_of_something_else_is_not_overwritten(model, tmp_path):
  (tmp_path / "notes.txt").write_text("mine")
  with pytest.raises(FileExistsError, match="holds no model; nothing was written"):
    save.save(model, TINY, tmp_path)
  assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_some_parts_alone(model, tmp_path):
  flat = trees.flatten(model.system.params)
  tower = {p: v for p, v in flat.items() if p.startswith("encoder/")}
  save.write_weights(tower, tmp_path)
  names = list(Tensors(tmp_path))
  assert names
  assert all(".gen_vision_tower." in name for name in names)
  abstract = {p: jax.ShapeDtypeStruct(v.shape, v.dtype) for p, v in flat.items()}
  used = loading.resolve([str(tmp_path)])
  found, _ = loading.fill(verbs.blip3o, model.cfg, used, abstract, abstract)
  assert set(found) == set(tower)


def test_special_ids_are_written(model, tmp_path):
  save._write_json(tmp_path, model)
  written = json.loads((tmp_path / "tiny.json").read_text())["special_token_ids"]
  assert written == json.loads((TINY / "tiny.json").read_text())["special_token_ids"]
