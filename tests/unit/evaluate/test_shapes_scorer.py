"""The scorer of the embedded set: measured rates, single faults, junk, intervals, sums."""

import numpy as np
import pytest

from blip3o_jax.data import shapes
from blip3o_jax.evaluate import shapes as scorer
from blip3o_jax.evaluate.shapes import check


def test_measured_rates():
  found = check.measure(150, seed=1)
  for name in ("accepted", "softened", "rejected"):
    assert min(found[name].values()) >= (0.95 if name == "softened" else 0.98), found[name]
  assert set(found["accepted"]) == set(shapes.CATEGORIES)
  assert set(found["rejected"]) == set(check.WRONGS)
  assert found["accuracy"] >= 0.99
  assert found["rejection"] >= 0.99
  for field in ("shape", "color"):
    for true, row in found["confusion"][field].items():
      assert row[true] >= 0.99 * sum(row.values())
      assert row[true] > 50


@pytest.mark.slow
def test_measured_rates_of_each_kind():
  found = check.measure(1000, seed=2)
  assert min(found["accepted"].values()) >= 0.99
  assert min(found["softened"].values()) >= 0.95
  assert min(found["rejected"].values()) >= 0.99


def test_detections_are_where_the_objects_are():
  scene = shapes.scene(0, 12, "test")
  found = scorer.detect_many(shapes.render_many([scene]))[0]
  assert len(found) == len(scene.objects)
  for o in scene.objects:
    near = min(found, key=lambda d: np.hypot(d.x - o.x, d.y - o.y))
    assert (near.shape, near.color) == (o.shape, o.color)
    assert np.hypot(near.x - o.x, near.y - o.y) < 0.3
    assert near.half == pytest.approx(o.half, rel=0.08)


def test_like_objects_side_by_side_are_two():
  include = [{"class": "square", "count": 4, "color": "blue"}]
  scenes = [shapes.scene_of(include, 3, i) for i in range(300)]
  near = [s for s in scenes if len({(o.row, o.col // 2) for o in s.objects}) < 4]
  assert len(near) > 20
  assert scorer.agree(shapes.render_many(near), near).all()


def test_reasons_name_the_mismatch():
  include = [
    {"class": "square", "count": 1, "color": "blue"},
    {"class": "star", "count": 1, "position": ["left of", 0]},
  ]
  right = shapes.scene_of(include, 0, 0)
  verdict = scorer.judge(shapes.render(right), include)
  assert verdict.correct
  assert not verdict.reasons
  other = [include[0], include[1] | {"position": ["right of", 0]}]
  wrong = scorer.judge(shapes.render(right), other)
  assert wrong.reasons == ("no star right of a square",)
  more = scorer.judge(shapes.render(right), include[:1])
  assert more.reasons == ("2 object(s), expected 1",)
  red = scorer.judge(shapes.render(right), [include[0] | {"color": "red"}, include[1]])
  assert "0 of red square, expected 1" in red.reasons
  with pytest.raises(ValueError, match="beside"):
    scorer.judge(shapes.render(right), [include[0], include[1] | {"position": ["beside", 0]}])


def test_extra_blob_is_a_mismatch():
  include = [{"class": "circle", "count": 1, "color": "red"}]
  scene = shapes.scene_of(include, 0, 1)
  image = shapes.render(scene)
  row, col = (0 if scene.objects[0].row > 1 else 50), 20
  image[row : row + 10, col : col + 30] = (25, 175, 55)
  assert scorer.judge(image, include).reasons == ("1 group(s) of pixels that are no object",)


def test_other_images_are_refused():
  for bad in (np.zeros((2, 32, 32, 3), np.uint8), np.zeros((2, 64, 64, 3), np.float32)):
    with pytest.raises(ValueError, match="expected uint8"):
      scorer.detect_many(bad)
  assert scorer.detect_many(np.zeros((0, 64, 64, 3), np.uint8)) == []


def test_score_by_category_and_split():
  prompts = [p for c in shapes.CATEGORIES for p in shapes.test_prompts(c)[:20]]
  images = shapes.render_many([shapes.scene_of(p["include"], 5, i) for i, p in enumerate(prompts)])
  whole = scorer.score(images, prompts)
  assert whole["overall"]["rate"] == 1
  images[:20] = 240  # single_object all wrong
  half = scorer.score(images, prompts)
  assert half["single_object"]["rate"] == 0
  assert half["overall"]["rate"] == pytest.approx(5 / 6)
  assert half["overall"]["low"] < 5 / 6 < half["overall"]["high"]
  unseen = [i for i, p in enumerate(prompts) if p["unseen"]]
  assert half["unseen"]["count"] == len(unseen)
  assert half["unseen"]["count"] + half["seen"]["count"] == 40
  images[unseen] = 240
  last = scorer.score(images, prompts)
  assert last["unseen"]["rate"] == 0
  assert last["seen"]["rate"] == 1
  with pytest.raises(ValueError, match="images for"):
    scorer.score(images[:3], prompts)


def test_wilson_interval():
  assert scorer.interval(0, 0) == (0, 1)
  low, high = scorer.interval(8, 10)
  assert low == pytest.approx(0.4902, abs=1e-4)
  assert high == pytest.approx(0.9433, abs=1e-4)
