"""One comparison: errors, shapes, NaN, single values; and the summary."""

import json
import math

import numpy as np
import pytest

from blip3o_jax.verify import compare


def test_relative_and_largest_error():
  recorded = np.array([3.0, 0.0, -4.0])
  row = compare.compare("x", recorded + np.array([0, 0.05, 0]), recorded, 0.02)
  assert row.relative_error == pytest.approx(0.01)
  assert row.max_error == pytest.approx(0.05)
  assert row.ok
  assert not compare.compare("x", recorded + np.array([0, 0.05, 0]), recorded, 0.009).ok


def test_equality():
  ids = np.array([[1, 2], [3, 4]])
  assert compare.compare("ids", ids.astype(np.int32), ids, 0).ok
  assert not compare.compare("ids", ids + np.eye(2, dtype=int), ids, 0).ok


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_a_number_fails(bad):
  fine = np.ones(3)
  wrong = np.array([1.0, bad, 1.0])
  for found, recorded in ((wrong, fine), (fine, wrong), (wrong, wrong)):
    row = compare.compare("x", found, recorded, 1e9)
    assert not row.ok
    assert "NaN or infinity" in row.note
    assert math.isnan(row.relative_error)


def test_another_shape_fails_without_an_exception():
  row = compare.compare("x", np.zeros((2, 1)), np.zeros((2, 3)), 1.0)
  assert not row.ok
  assert row.note == "found shape (2, 1)"
  assert row.shape == (2, 3)
  with pytest.raises(ValueError, match="shapes"):
    compare.relative_error(np.zeros((2, 1)), np.zeros((2, 3)))


def test_zeros():
  assert compare.compare("x", np.zeros(3), np.zeros(3), 0).ok
  assert compare.relative_error(np.ones(3), np.zeros(3)) == math.inf
  assert compare.compare("x", np.zeros((0, 3)), np.zeros((0, 3)), 0).ok


def test_one_wrong_value_does_not_hide_in_a_large_tensor():
  recorded = np.random.default_rng(0).normal(size=(300, 300))
  found = recorded.copy()
  found[17, 4] += 1e-3
  row = compare.compare("x", found, recorded, 1e-5)
  assert row.relative_error < 1e-5
  assert not row.ok
  assert row.note.startswith("at [17, 4] ours is")


def test_a_large_value_may_be_off_by_its_own_size():
  recorded = np.ones(100_000)
  recorded[5] = 1e6
  found = recorded.copy()
  found[5] *= 1 + 5e-6
  assert compare.compare("x", found, recorded, 1e-5).ok


def test_summary_is_json():
  rows = [
    compare.compare("a", np.ones(2), np.ones(2), 0),
    compare.compare("b", np.array(np.nan), np.array(1.0), 1),
  ]
  text = json.dumps(compare.summary(rows), allow_nan=False)
  found = json.loads(text)
  assert found["ok"] is False
  assert found["tensors"]["a"] == {
    "relative_error": 0, "max_error": 0, "shape": [2], "tolerance": 0, "ok": True
  }  # fmt: skip
  assert found["tensors"]["b"]["relative_error"] is None
  assert compare.summary(rows[:1])["ok"] is True
  assert compare.summary([])["ok"] is False


def test_the_table_has_a_verdict_a_line():
  row = compare.compare("some.name", np.ones((2, 3)), 2 * np.ones((2, 3)), 0.1)
  line = compare.line(row, 12)
  assert line.startswith("some.name     (2, 3)")
  assert "5.00e-01" in line
  assert "FAILED" in line
  assert len(compare.header(12).split()) == 6
