"""Verbs are called with few shapes; what they draw is scored."""

import numpy as np
import pytest

from blip3o_jax.data import shapes
from blip3o_jax.miniature import scores


def test_chunks():
  assert list(scores.chunks(range(3))) == [[0, 1, 2]]
  first, last = scores.chunks(range(scores.BATCH + 2))
  assert first == list(range(scores.BATCH))
  # Filled up to one shape with its first value, so that one program is compiled.
  start = scores.BATCH
  assert last == [start, start + 1] + [start] * (scores.BATCH - 2)


class Editor:
  """Gives the picture that it is handed, or the one that was asked for; notes its calls."""

  def __init__(self, edits, right):
    self.wanted = {e.instruction: e.after for e in edits} if right else {}
    self.called = []

  def edit(self, images, instructions, seeds):
    self.called.append((len(images), tuple(seeds)))
    drawn = [shapes.render(self.wanted[i]) for i in instructions] if self.wanted else images
    return np.stack([np.asarray(image) for image in drawn])


@pytest.mark.parametrize("right", [False, True])
def test_edits_are_scored_by_kind_and_a_copy_is_none(right):
  edits = scores.edits_of(2)
  model = Editor(edits, right)
  assert [e.kind for e in edits] == [kind for kind in shapes.EDITS for _ in range(2)]
  rates, images = scores.editing(model, edits, seed=7)
  assert images.shape == (10, 64, 64, 3)
  assert model.called == [(10, tuple(range(7, 17)))]
  assert {name: rates[name]["rate"] for name in (*shapes.EDITS, "overall")} == dict.fromkeys(
    (*shapes.EDITS, "overall"), float(right)
  )
  assert scores.mean(rates, shapes.EDITS) == float(right)
