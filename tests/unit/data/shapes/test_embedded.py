"""The embedded set as records: which texts, with which pictures."""

import numpy as np
import pytest

from blip3o_jax.data import shapes
from blip3o_jax.data.shapes.source import DESCRIBE
from blip3o_jax.data.shapes.source import EmbeddedSource
from blip3o_jax.data.shapes.source import Mixture


def test_captions_go_with_their_pictures():
  source = EmbeddedSource("generator", 40, Mixture(long_captions=0.5))
  found = [source[i] for i in range(40)]
  for i, record in enumerate(found):
    scene = shapes.scene(0, i, "generator")
    assert record.prompt in (shapes.caption(scene), shapes.long_caption(scene))
    np.testing.assert_array_equal(record.image, shapes.render(scene))
    assert not record.answer
  assert 5 < sum(r.prompt == shapes.caption(shapes.scene(0, i)) for i, r in enumerate(found)) < 35
  np.testing.assert_array_equal(
    source.lengths("", lambda r: len(r.prompt)), [len(r.prompt) for r in found]
  )


def test_understanding_mixes_three_kinds_of_rows():
  mixture = Mixture(questions=True, descriptions=0.3, text_questions=0.3)
  source = EmbeddedSource("world", 100, mixture)
  found = [source[i] for i in range(100)]
  described = [r for r in found if r.prompt == DESCRIBE]
  blind = [r for r in found if r.image is None]
  assert all(r.answer for r in found)
  assert 15 < len(described) < 45
  assert 15 < len(blind) < 45
  assert {r.kind for r in found} == {"caption", *shapes.KINDS}
  mixture = Mixture(questions=True, descriptions=0, text_questions=0, kinds=("where",))
  only = EmbeddedSource("world", 20, mixture)
  assert {only[i].kind for i in range(20)} == {"where"}


def test_conversations_are_about_one_scene():
  mixture = Mixture(questions=True, descriptions=0.2, text_questions=0.3, turns=4)
  source = EmbeddedSource("world", 100, mixture)
  found = [source[i] for i in range(100)]
  blind = [r for r in found if r.image is None]
  described = [r for r in found if r.turns and r.turns[-1][0] == DESCRIBE]
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
  first = EmbeddedSource("world", 40, Mixture(questions=True, turns=2, growing=(20, 10)))
  seen = [(first.scene(i), i) for i in range(40) if first[i].image is not None]
  counts = [
    [len(s.objects) for s, i in seen if a <= i < b] for a, b in ((0, 20), (20, 30), (30, 40))
  ]
  assert [max(c) for c in counts[:2]] == [1, 2]
  assert max(counts[2]) > 2
  words = [source.words(i) for i in range(len(source))]
  assert [(w.prompt, w.answer, w.turns) for w in words] == [
    (r.prompt, r.answer, r.turns) for r in found
  ]
  assert [w.extra.get("pictures", 0) for w in words] == [r.image is not None for r in found]
  assert all(w.image is None for w in words)


def test_words_to_be_read_stand_beside_the_record():
  mixture = Mixture(questions=True, reading=0.4, seeing=0.3, text_questions=0.2, turns=4)
  source = EmbeddedSource("world", 60, mixture)
  found = [source[i] for i in range(60)]
  read = [r for r in found if r.kind == "reading"]
  assert 12 < len(read) < 36
  for record in read:
    assert record.image is None
    assert record.extra == {"reads": shapes.told(record.prompt)}
  seen = [r for r in found if r.kind == "seeing"]
  assert 8 < len(seen) < 30
  number = ("one", "two", "three", "four")
  for record in seen:
    scene = shapes.scene(0, int(record.name.split()[-1]), "world")
    np.testing.assert_array_equal(record.image, shapes.render(scene))
    assert record.extra == {"reads": shapes.shown(scene)}
    first = min(scene.objects, key=lambda o: (o.row, o.col))
    wanted = (first.color, first.shape, number[first.row], number[first.col])
    assert record.extra["reads"][:4] == wanted
  assert all(not r.extra for r in found if r.kind not in ("reading", "seeing"))


def test_places_stand_beside_records_with_a_picture():
  mixture = Mixture(questions=True, seeing=0.3, places=0.6, text_questions=0.2, turns=2)
  source = EmbeddedSource("world", 60, mixture)
  found = [source[i] for i in range(60)]
  placed = [r for r in found if "places" in r.extra]
  assert all(r.image is not None for r in placed)
  assert {r.kind == "seeing" for r in placed} == {True, False}
  shown = sum(r.image is not None for r in found)
  assert 0.3 * shown < len(placed) < 0.9 * shown
  rows = [["one"] * 4, ["two"] * 4, ["three"] * 4, ["four"] * 4]
  for record in placed:
    names = np.array(record.extra["places"]).reshape(4, 4).tolist()
    assert names in (rows, [["a", "b", "c", "d"]] * 4)
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
