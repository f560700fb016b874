"""The embedded set as records: which texts, with which pictures."""

from fakes import Tokenizer
import numpy as np
import pytest

from blip3o_jax.data import shapes
from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.records import InMemory
from blip3o_jax.data.shapes.source import EmbeddedSource
from blip3o_jax.data.shapes.source import Mixture
from blip3o_jax.data.text import chat
from blip3o_jax.data.text.tokenizer import train_bpe
from blip3o_jax.systems.blip3o import tasks


def test_captions_go_with_their_pictures():
  source = EmbeddedSource("generator", 40, Mixture(long_captions=0.5))
  found = [source[i] for i in range(40)]
  for i, record in enumerate(found):
    scene = shapes.scene(0, i, "generator")
    assert record.prompt in (shapes.caption(scene), shapes.long_caption(scene))
    np.testing.assert_array_equal(record.image, shapes.render(scene))
    assert not record.answer
  assert 5 < sum(r.prompt == shapes.caption(shapes.scene(0, i)) for i, r in enumerate(found)) < 35
  np.testing.assert_array_equal(source.lengths(), [len(r.prompt) for r in found])


def test_understanding_mixes_three_kinds_of_rows():
  source = EmbeddedSource(
    "world", 100, Mixture(descriptions=0.3, text_questions=0.3), questions=True
  )
  found = [source[i] for i in range(100)]
  described = [r for r in found if r.prompt == source.DESCRIBE]
  blind = [r for r in found if r.image is None]
  assert all(r.answer for r in found)
  assert 15 < len(described) < 45
  assert 15 < len(blind) < 45
  assert {r.kind for r in found} == {"caption", *shapes.KINDS}
  only = EmbeddedSource(
    "world", 20, Mixture(descriptions=0, text_questions=0, kinds=("where",)), questions=True
  )
  assert {only[i].kind for i in range(20)} == {"where"}


def test_conversations_are_about_one_scene():
  mixture = Mixture(descriptions=0.2, text_questions=0.3, turns=4)
  source = EmbeddedSource("world", 100, mixture, questions=True)
  found = [source[i] for i in range(100)]
  blind = [r for r in found if r.image is None]
  described = [r for r in found if r.turns and r.turns[-1][0] == source.DESCRIBE]
  assert 15 < len(blind) < 45
  assert 8 < len(described) < 35
  assert max(len(r.turns) for r in found) == 3
  for i, record in enumerate(found):
    scene = shapes.scene(0, i, "world")
    if record.image is not None:
      np.testing.assert_array_equal(record.image, shapes.render(scene))
    asked = [q for q, _ in ((record.prompt.rpartition(". ")[2], ""), *record.turns)]
    assert len(set(asked)) == len(asked)
    for question, answer in ((asked[0], record.answer), *record.turns):
      if question == "how many objects are there?":
        assert ("zero", "one", "two", "three", "four").index(answer) == len(scene.objects)
  first = EmbeddedSource("world", 40, Mixture(turns=2, growing=(20, 10)), questions=True)
  seen = [(first.scene(i), i) for i in range(40) if first[i].image is not None]
  counts = [
    [len(s.objects) for s, i in seen if a <= i < b] for a, b in ((0, 20), (20, 30), (30, 40))
  ]
  assert [max(c) for c in counts[:2]] == [1, 2]
  assert max(counts[2]) > 2
  lengths = [
    len((r.prompt + r.answer + "".join(q + a for q, a in r.turns)).encode()) for r in found
  ]
  np.testing.assert_array_equal(source.lengths(), lengths)


def test_prompts_to_be_read_at_the_slots(tmp_path):
  mixture = Mixture(reading=0.5, text_questions=0.2, turns=4)
  source = EmbeddedSource("world", 60, mixture, questions=True)
  found = [source[i] for i in range(60)]
  read = [r for r in found if r.reads]
  assert 15 < len(read) < 45
  for record in read:
    assert record.image is None
    assert record.reads == shapes.told(record.prompt)
  number = ("one", "two", "three", "four")
  words = [*(w for r in read for w in r.reads), *number, *shapes.COLORS, *shapes.SHAPES]
  tokenizer = train_bpe(words * 20, 400, tmp_path)
  sizes = dict(batch=len(read), image_size=0, buckets=(320,), shuffle=False)
  p = tasks.build(InMemory(read), Data(task="understand", **sizes), tokenizer)
  batch = p.batch_at(0)
  for tokens, labels, record in zip(batch["tokens"], batch["labels"], read, strict=True):
    count = len(record.reads)
    assert tuple(tokenizer.decode([i]) for i in labels[-count:]) == record.reads
    assert (labels[:-count] == chat.IGNORED).all()
    prompt = chat.generation_ids(tokenizer, record.prompt)
    np.testing.assert_array_equal(tokens[-count - len(prompt) : -count], prompt)
    assert (tokens[-count:] < chat.UNUSED[1]).all()
  seen = EmbeddedSource("world", 20, Mixture(seeing=1.0, text_questions=0, turns=2), questions=True)
  cfg = Data(task="understand", batch=20, image_size=64, patch_size=8, buckets=(320,))
  batch = tasks.build(seen, cfg, tokenizer).batch_at(0)
  assert (batch["labels"] >= 0).sum() == 20 * 16
  assert ((batch["tokens"] == tokenizer.image_pad).sum(1) == 16).all()
  for record in (seen[i] for i in range(20)):
    scene = shapes.scene(0, int(record.name.split()[-1]), "world")
    np.testing.assert_array_equal(record.image, shapes.render(scene))
    assert record.reads == shapes.shown(scene)
  first = min(scene.objects, key=lambda o: (o.row, o.col))
  wanted = (first.color, first.shape, number[first.row], number[first.col])
  assert record.reads[:4] == wanted
  with pytest.raises(ValueError, match=r"'circle' is \d tokens, but one hidden vector"):
    chat.reading_row(Tokenizer(), [1], ["circle"], [100])
  with pytest.raises(ValueError, match="1 words to be read at 2 places"):
    chat.reading_row(tokenizer, [1], ["yellow"], [100, 101])


def test_places_are_named_at_the_pictures_own_tokens(tmp_path):
  mixture = Mixture(seeing=0.3, places=0.6, text_questions=0.2, turns=2)
  source = EmbeddedSource("world", 60, mixture, questions=True)
  found = [source[i] for i in range(60)]
  placed = [r for r in found if r.places]
  assert all(r.image is not None for r in placed)
  assert {r.kind == "seeing" for r in placed} == {True, False}
  shown = sum(r.image is not None for r in found)
  assert 0.3 * shown < len(placed) < 0.9 * shown
  words = [text for r in found for text in (r.prompt, r.answer, *r.reads, *r.places)]
  tokenizer = train_bpe(words * 20, 400, tmp_path)
  sizes = dict(batch=60, image_size=64, patch_size=8, buckets=(320,), shuffle=False)
  cfg = Data(task="understand", **sizes)
  batch = tasks.build(source, cfg, tokenizer).batch_at(0)
  for tokens, labels, record in zip(batch["tokens"], batch["labels"], found, strict=True):
    at = labels[tokens == tokenizer.image_pad]
    if not record.places:
      assert (at == chat.IGNORED).all()
      continue
    names = np.array([tokenizer.decode([i]) for i in at]).reshape(4, 4)
    rows = [["one"] * 4, ["two"] * 4, ["three"] * 4, ["four"] * 4]
    assert names.tolist() in (rows, [["a", "b", "c", "d"]] * 4)
  with pytest.raises(ValueError, match=r"places 0\.5: .* only with several"):
    Mixture(places=0.5)


def test_a_kind_that_is_named_again_is_asked_more_often():
  scenes = [shapes.scene(0, i, "world") for i in range(200)]
  scenes = [s for s in scenes if len(s.objects) == 4]
  kinds = (*shapes.KINDS, "where", "where")
  asked = [q.kind for s in scenes for q in shapes.conversation(s, 4, kinds=kinds)]
  plain = [q.kind for s in scenes for q in shapes.conversation(s, 4)]
  assert asked.count("where") > 1.4 * plain.count("where")


def test_categories_in_turn():
  source = EmbeddedSource("generator", 12, Mixture(categories=("counting", "position")))
  assert [source[i].kind for i in range(4)] == ["counting", "position"] * 2


@pytest.mark.parametrize("task", ["generate", "understand", "contrast", "pixels"])
def test_batches_of_every_task(task):
  cfg = Data(
    source="shapes",
    split="world",
    records=24,
    task=task,
    batch=8,
    image_size=64,
    patch_size=8,
    buckets=(320,),
  )
  p = tasks.build(tasks.open_source(cfg), cfg, Tokenizer())
  assert p.steps_per_epoch == 3
  batch = p.batch_at(2)
  assert all(len(value) == 8 for value in batch.values())


def test_wrong_choices():
  with pytest.raises(ValueError, match="expected one of world, generator"):
    EmbeddedSource("train", 4, Mixture())
  with pytest.raises(ValueError, match="has no end"):
    EmbeddedSource("world", 0, Mixture())
  with pytest.raises(ValueError, match="none of single_object"):
    Mixture(categories=("color",))
  with pytest.raises(ValueError, match=r"turns 0, growing .*expected 1"):
    Mixture(turns=0)
  with pytest.raises(ValueError, match=r"at most 1, 2, \.\.\. 3 objects"):
    Mixture(turns=2, growing=(1, 1, 1, 1))
  with pytest.raises(ValueError, match="together exceed 1"):
    Mixture(descriptions=0.6, text_questions=0.6)
  with pytest.raises(ValueError, match=r"reading 0\.5, .* only with several"):
    Mixture(reading=0.5)
  with pytest.raises(ValueError, match="reading, seeing and text_questions together"):
    Mixture(turns=2, reading=0.7, text_questions=0.6)
  with pytest.raises(IndexError):
    EmbeddedSource("world", 4, Mixture())[4]
