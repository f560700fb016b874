"""The embedded set: determinism, what is held out, words that are true, questions with answers."""

from collections import Counter
import itertools
import re

import numpy as np
import pytest

from blip3o_jax.data import shapes
from blip3o_jax.data.shapes import scenes as scenes_module

N = 3000


@pytest.fixture(scope="module")
def prompts():
  return [p for c in shapes.CATEGORIES for p in shapes.test_prompts(c)]


@pytest.fixture(scope="module")
def world():
  return [shapes.scene(0, i, "world") for i in range(N)]


@pytest.fixture(scope="module")
def generator():
  return [shapes.scene(0, i, "generator") for i in range(N)]


def test_record_is_a_function_of_split_seed_and_index():
  assert shapes.scene(3, 7, "world") == shapes.scene(3, 7, "world")
  others = [(3, 8, "world"), (4, 7, "world"), (3, 7, "test"), (3, 7, "generator")]
  assert len({shapes.scene(*o).objects for o in [(3, 7, "world"), *others]}) == 5
  # The stream is part of the data set: a change of numpy or of the code must not move it.
  first = shapes.scene(0, 0, "generator")
  assert shapes.caption(first) == shapes.caption(first, 0)
  assert int(shapes.render(first).astype(np.int64).sum()) == pytest.approx(2845178, abs=20)


@pytest.mark.parametrize("bad", [(0, 0, "train"), (-1, 0, "test"), (0, -1, "test")])
def test_bad_record(bad):
  with pytest.raises(ValueError, match="expected"):
    shapes.scene(*bad)


def test_held_out_pairs_cover_every_shape_and_colour(generator, world):
  assert len(shapes.HELD_OUT_PAIRS) >= 6
  assert {c for c, _ in shapes.HELD_OUT_PAIRS} == set(shapes.COLORS)
  assert {s for _, s in shapes.HELD_OUT_PAIRS} == set(shapes.SHAPES)

  def pairs(scenes):
    return {(o.color, o.shape) for s in scenes for o in s.objects}

  assert pairs(world) == set(itertools.product(shapes.COLORS, shapes.SHAPES))
  assert pairs(generator) == pairs(world) - shapes.HELD_OUT_PAIRS
  validation = [shapes.scene(0, i, "validation") for i in range(500)]
  tuned = [shapes.category_caption(0, i, c)[0] for c in shapes.CATEGORIES for i in range(100)]
  assert not pairs(validation + tuned) & shapes.HELD_OUT_PAIRS


def test_objects_stay_apart_and_counts_are_spread(world):
  sizes = Counter(len(s.objects) for s in world)
  assert set(sizes) == {1, 2, 3, 4}
  assert min(sizes.values()) > 0.1 * N
  for scene in world[:500]:
    assert len({(o.row, o.col) for o in scene.objects}) == len(scene.objects)
    for o in scene.objects:
      reach = max(abs(o.x - 16 * o.col - 8), abs(o.y - 16 * o.row - 8)) + o.half
      assert reach <= 7.25 + 1e-9
  xs = [o.x % 1 for s in world for o in s.objects]
  assert len(set(xs)) > 0.99 * len(xs)  # continuous


def test_rendering_is_antialiased_and_of_the_right_area():
  scene = shapes.scene_of([{"class": "circle", "count": 1, "color": "black"}], 0, 0)
  image = shapes.render(scene).astype(np.float64)
  assert image.shape == (64, 64, 3)
  (o,) = scene.objects
  ground, ink = np.asarray(scene.background), np.asarray(o.rgb)
  alpha = (image - ground).sum(-1) / (ink - ground).sum()
  assert alpha.sum() == pytest.approx(np.pi * o.half**2, rel=0.02)
  assert ((alpha > 0.1) & (alpha < 0.9)).sum() > 10
  both = [shapes.scene(1, i) for i in range(20)]
  assert np.array_equal(shapes.render_many(both)[7], shapes.render(both[7]))


def test_no_training_text_or_picture_is_a_test_prompt(prompts, world, generator):
  held = {p["prompt"] for p in prompts}
  texts = [shapes.caption(s, v) for s in world + generator for v in range(3)]
  texts += [shapes.long_caption(s) for s in world + generator]
  texts += [shapes.category_caption(1, i, c)[1] for c in shapes.CATEGORIES for i in range(500)]
  contexts = [shapes.text_question(s, "where") for s in world]
  texts += [q.context for q in contexts if q]
  assert len(texts) > 20_000
  assert not held & set(texts)
  # Nor are the two objects of a test combination ever shown as a picture of two.
  shown = {
    frozenset((o.color, o.shape) for o in s.objects)
    for s in world + generator
    if len(s.objects) == 2
  }
  asked = [p["include"] for p in prompts if p["tag"] == "color_attribution"]
  assert not shown & {frozenset((e["color"], e["class"]) for e in include) for include in asked}
  # Nor is a test relation ever told without colours, from either side.
  told = set()
  for text in texts:
    found = re.search(r"(\w+) (left of|right of|above|below) (?:a single|a|one) (\w+)", text)
    if found and not any(c in text for c in shapes.COLORS):
      told |= {found.groups(), (found[3], scenes_module.INVERSE[found[2]], found[1])}
  asked = [p["include"] for p in prompts if p["tag"] == "position"]
  relations = {(e[1]["class"], e[1]["position"][0], e[0]["class"]) for e in asked}
  assert len(relations) >= 10
  assert len(told) == 80 - len(relations)  # every other relation is told
  assert not relations & told


def test_prompts_have_their_metadata(prompts):
  texts = [p["prompt"] for p in prompts]
  assert len(set(texts)) == len(texts)
  assert [p["index"] for p in prompts] == list(range(len(prompts)))
  for category in shapes.CATEGORIES:
    mine = shapes.test_prompts(category)
    assert len(mine) >= 100
    assert mine == shapes.test_prompts(category)
    assert {p["tag"] for p in mine} == {category}
    assert {e["class"] for p in mine for e in p["include"]} == set(shapes.SHAPES)
  for p in prompts:
    pairs = {(e.get("color"), e["class"]) for e in p["include"]}
    assert p["unseen"] == bool(pairs & shapes.HELD_OUT_PAIRS)
    for e in p["include"]:
      assert e["class"] in p["prompt"]
      assert e.get("color", "") in p["prompt"]
  unseen = Counter(p["tag"] for p in prompts if p["unseen"])
  assert unseen["colors"] >= 20
  assert unseen["color_attribution"] >= 20
  assert shapes.test_prompts("position")[0]["include"][1]["position"][0] in shapes.RELATIONS


def test_unknown_category_and_kind():
  with pytest.raises(ValueError, match="single_object"):
    shapes.test_prompts("shape")
  with pytest.raises(ValueError, match="single_object"):
    shapes.category_caption(0, 0, "shape")
  with pytest.raises(ValueError, match="exist"):
    shapes.question(shapes.scene(0, 0), "why")


@pytest.mark.parametrize("category", shapes.CATEGORIES)
def test_category_captions_ask_for_what_is_shown(category):
  for i in range(60):
    scene, text = shapes.category_caption(0, i, category)
    include = shapes.category_include(scene, category)
    assert sum(e["count"] for e in include) == len(scene.objects)
    assert (scene, text) == shapes.category_caption(0, i, category)
    for e in include:
      assert e["class"] in text
      assert e.get("color", "") in text
    colored = any(c in text for c in shapes.COLORS)
    assert colored == (category in ("colors", "color_attribution"))
    assert any(r in text for r in shapes.RELATIONS) == (category == "position")


def test_captions_count_every_object_and_are_short(world):
  numbers = {"a": 1, "one": 1, "two": 2, "three": 3, "four": 4}
  lengths = []
  for scene in world:
    text = shapes.caption(scene)
    lengths.append(len(text.split()))
    for shape in shapes.SHAPES:
      said = 0
      for m in re.finditer(
        rf"\b(a|one|two|three|four)( single)?( \w+){{0,2}}? {shape}(s|es)?\b", text
      ):
        said += numbers[m[1]]
      assert said == sum(o.shape == shape for o in scene.objects), text
  assert 7 < np.mean(lengths) < 11
  assert max(lengths) <= 24


def test_relations_in_captions_are_true(world):
  seen = 0
  for scene in world:
    found = re.search(r"(left of|right of|above|below)", text := shapes.caption(scene))
    if not found:
      continue
    seen += 1
    before, after = text.split(found[0])
    a, b = scene.objects
    if not (
      a.shape in before and b.shape in after and a.color in before + a.color * (a.color not in text)
    ):
      a, b = b, a
    if a.shape == b.shape:
      a, b = sorted((a, b), key=lambda o: o.color not in before)
    offset = {"left of": b.x - a.x, "right of": a.x - b.x, "above": b.y - a.y, "below": a.y - b.y}
    assert offset[found[0]] >= 8, text
  assert seen > 200


def test_long_captions_describe_everything(world):
  for scene in world[:500]:
    text = shapes.long_caption(scene)
    assert len(text.split()) <= 49
    for o in scene.objects:
      name = " ".join(filter(None, (o.size, o.color, o.shape)))
      row, col = (("one", "two", "three", "four")[k] for k in (o.row, o.col))
      assert f"{name} at the {o.place}" in text or f"{name} at row {row} column {col}" in text
    assert "row" not in shapes.long_caption(scene, quadrants=True)


def test_vocabulary_is_small(world, prompts):
  texts = [shapes.caption(s) for s in world] + [shapes.long_caption(s) for s in world]
  texts += [p["prompt"] for p in prompts]
  for scene in world[:1000]:
    texts += [f"{q.question} {q.answer}" for q in shapes.questions(scene)]
  assert len({word for text in texts for word in re.findall(r"\w+", text)}) <= 62


def test_questions_are_answered_by_the_scene(world):
  answers = {kind: Counter() for kind in shapes.KINDS}
  for scene in world:
    for q in shapes.questions(scene):
      answers[q.kind][q.answer] += 1
      names = [f"{o.color} {o.shape}" for o in scene.objects]
      asked = q.question.rstrip("?")
      if q.kind == "exist":
        assert (q.answer == "yes") == (asked.removeprefix("is there a ") in names)
      if q.kind == "shape":
        color = asked.split()[-2]
        assert [o.shape for o in scene.objects if o.color == color] == [q.answer]
      if q.kind == "color":
        assert [o.color for o in scene.objects if o.shape == asked.split()[-1]] == [q.answer]
      if asked == "how many objects are there":
        assert ("zero", "one", "two", "three", "four").index(q.answer) == len(names)
  assert 0.45 < answers["exist"]["yes"] / N < 0.55
  assert set(answers["count"]) == {"zero", "one", "two", "three", "four"}
  assert set(answers["shape"]) == set(shapes.SHAPES)
  assert set(answers["color"]) == set(shapes.COLORS)
  directions = {"left", "right", "above", "below"}
  quadrants = {"top left", "top right", "bottom left", "bottom right"}
  assert set(answers["where"]) == directions | quadrants
  assert sum(answers["where"][d] for d in directions) > 0.2 * answers["where"].total()
  assert shapes.questions(world[0]) == shapes.questions(world[0])


def _fits(name, o):
  words = name.split()
  return all(w in (o.color, o.shape, "object") for w in words)


def test_where_is_true_of_the_scene_and_of_its_caption(world):
  for scene in world:
    for q in (shapes.question(scene, "where"), shapes.text_question(scene, "where")):
      if not q:
        continue
      found = re.fullmatch(r"where is the (.+?)(?: from the (.+))?\?", q.question)
      (a,) = [o for o in scene.objects if _fits(found[1], o)]
      if not found[2]:
        assert q.answer == a.place
        assert not q.context or f"at the {a.place}" in q.context
        continue
      (b,) = [o for o in scene.objects if _fits(found[2], o)]
      offset = {"left": b.x - a.x, "right": a.x - b.x, "above": b.y - a.y, "below": a.y - b.y}
      assert offset[q.answer] >= 8
      assert not q.context or f"a {a.color} {a.shape}" in q.context


def test_question_at_finds_every_kind():
  for text in (False, True):
    kinds = [shapes.question_at(0, i, "world", text=text).kind for i in range(10)]
    assert kinds == list(shapes.KINDS) * 2
  asked = shapes.question_at(0, 3, "world", "color", text=True)
  assert asked.kind == "color"
  assert asked.answer in asked.context


def test_scene_of_metadata(prompts):
  for i, p in enumerate(prompts[::7]):
    scene = shapes.scene_of(p["include"], 0, i)
    assert len(scene.objects) == sum(e["count"] for e in p["include"])
  with pytest.raises(ValueError, match="may not show red star"):
    shapes.scene_of([{"class": "star", "color": "red"}], 0, 0, "generator")


def test_what_a_caption_tells():
  assert shapes.told("two red circles and a star on a white background")[:12] == (
    *("red", "circle", "no", "no") * 2,
    *("no", "star", "no", "no"),
  )
  long = "a small red circle at row two column one and a blue star at the bottom left"
  assert shapes.told(long)[:8] == ("red", "circle", "two", "one", "blue", "star", "bottom", "left")
  position = "there is a single square left of one cross"
  assert shapes.told(position)[:8] == ("no", "square", "left", "no", "no", "cross", "no", "no")
  for i in range(200):
    scene = shapes.scene(0, i, "world")
    for text in (shapes.caption(scene), shapes.long_caption(scene)):
      told = np.reshape(shapes.told(text), (4, 4))
      named = told[told[:, 1] != "no"]
      assert sorted(named[:, 1]) == sorted(o.shape for o in scene.objects)
      if "no" not in named[:, 0]:
        assert sorted(named[:, 0]) == sorted(o.color for o in scene.objects)
