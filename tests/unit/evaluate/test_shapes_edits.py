"""The scorer of edits: targets are right, copies never are, all else has to stay."""

import dataclasses

import numpy as np
import pytest

from blip3o_jax.data import shapes
from blip3o_jax.evaluate.shapes import check
from blip3o_jax.evaluate.shapes import edits as scorer
from blip3o_jax.evaluate.shapes import interval


@pytest.fixture(scope="module")
def asked():
  return [shapes.edit_at(0, i, "test", kind) for kind in shapes.EDITS for i in range(60)]


@pytest.fixture(scope="module")
def targets(asked):
  return shapes.render_many([e.after for e in asked])


def test_exact_targets_are_right_also_through_a_decoder(asked, targets):
  soft = check.soften(targets, 0.6, 4, np.random.default_rng(0))
  for images in (targets, soft):
    found = scorer.score_edits(images, asked)
    assert list(found) == [*shapes.EDITS, "overall", "unseen", "seen"]
    assert {found[kind]["count"] for kind in shapes.EDITS} == {60}
    assert all(rate["rate"] == 1 for rate in found.values())
  assert found["unseen"]["count"] > 60
  assert found["unseen"]["count"] + found["seen"]["count"] == len(asked)
  assert (found["move"]["low"], found["move"]["high"]) == interval(60, 60)


def test_a_copy_of_the_input_is_never_right(asked):
  found = scorer.score_edits(shapes.render_many([e.before for e in asked]), asked)
  assert [found[kind]["correct"] for kind in shapes.EDITS] == [0] * len(shapes.EDITS)


@pytest.mark.parametrize("wrong", check.WRONG_EDITS[1:])
def test_what_is_wrong_is_rejected(wrong, asked):
  spoiled = [(s, e) for e in asked[::2] if (s := check.spoil_edit(e, wrong)) is not None]
  assert {e.kind for _, e in spoiled} == set(shapes.EDITS)
  images = shapes.render_many([scene for scene, _ in spoiled])
  verdicts = scorer.judge_edits(images, [e for _, e in spoiled])
  assert not any(v.correct for v in verdicts)
  if wrong == "background":
    assert {v.reasons for v in verdicts} == {("another background",)}
  if wrong == "size":
    assert all("did not stay as it was" in v.reasons[0] for v in verdicts)


def test_any_place_that_the_words_allow_is_right(asked):
  """A quadrant leaves the place within it open, and a place within a cell is always open."""
  roomy = [e for e in asked if len(e.cells) > 1]
  moved = []
  for e in roomy:
    taken = {(o.row, o.col) for o in e.kept} | {(e.new.row, e.new.col)}
    row, col = next(cell for cell in e.cells if cell not in taken)
    x, y = 16 * col + 8.0, 16 * row + 8.0
    there = dataclasses.replace(e.new, row=row, col=col, x=x, y=y)
    moved.append(dataclasses.replace(e.after, objects=(*e.kept, there)))
  assert {e.kind for e in roomy} == {"add", "move"}
  assert all(v.correct for v in scorer.judge_edits(shapes.render_many(moved), roomy))
  # The next quadrant is none of them.
  beyond = []
  for e in roomy:
    col = (e.new.col + 2) % 4
    there = dataclasses.replace(e.new, col=col, x=e.new.x + 16 * (col - e.new.col))
    beyond.append(dataclasses.replace(e.after, objects=(*e.kept, there)))
  free = [(e.new.row, (e.new.col + 2) % 4) not in {(o.row, o.col) for o in e.kept} for e in roomy]
  verdicts = scorer.judge_edits(shapes.render_many(beyond), roomy)
  assert sum(free) > 30
  assert not any(v.correct for v, is_free in zip(verdicts, free, strict=True) if is_free)


def test_reasons_say_what_is_missing(asked):
  edit = next(e for e in asked if e.kind == "remove" and len(e.kept) == 1)
  (kept,) = edit.kept
  blank = np.full((1, 64, 64, 3), edit.before.background, np.uint8)
  (verdict,) = scorer.judge_edits(blank, [edit])
  assert verdict.reasons == (f"the {kept.color} {kept.shape} did not stay as it was",)
  copied = scorer.judge_edits(shapes.render_many([edit.before]), [edit])[0]
  assert copied.reasons == ("1 object(s) or spots that should not be there",)
  assert scorer.judge_edits(np.zeros((0, 64, 64, 3), np.uint8), []) == []
  with pytest.raises(ValueError, match="1 images for 0 edits"):
    scorer.judge_edits(blank, [])
  with pytest.raises(ValueError, match="wrong 'blank': expected one of copy, other"):
    check.spoil_edit(edit, "blank")


def test_the_sheet_shows_input_target_and_output(asked):
  chosen = asked[::60]
  images = shapes.render_many([e.before for e in chosen])  # a model that copies
  images[0] = shapes.render(chosen[0].after)
  pictures, captions, marks = scorer.triples(images, chosen)
  assert captions[0::3] == [e.instruction for e in chosen]
  assert marks[2::3] == ["yes", "no", "no", "no", "no"]
  for i, e in enumerate(chosen):
    np.testing.assert_array_equal(pictures[3 * i], shapes.render(e.before))
    np.testing.assert_array_equal(pictures[3 * i + 1], shapes.render(e.after))
    np.testing.assert_array_equal(pictures[3 * i + 2], images[i])
  drawn = np.asarray(scorer.sheet(images, chosen))
  assert drawn.shape == (3 * (128 + 52) + 10, 6 * (128 + 10) + 10, 3)
  np.testing.assert_array_equal(drawn[10:138:2, 286:414:2], images[0])


def test_measured_rates():
  found = check.measure_edits(10, seed=1)
  assert set(found["accepted"]) == set(found["softened"]) == set(shapes.EDITS)
  assert set(found["rejected"]) == set(check.WRONG_EDITS)
  assert all(rate == 1 for group in found.values() for rate in group.values())
