"""A batch put together row by row."""

import jax
import numpy as np
import pytest

from blip3o_jax.data.batch import Batch
from blip3o_jax.data.batch import Memory


def test_rows_come_in_any_order():
  batch = Batch(3)
  for row in (2, 0):
    batch.put(row, {"x": np.full((2, 2), row, np.float16), "n": np.int32(row)})
    assert not batch.is_done
  batch.put(1, {"x": np.full((2, 2), 1, np.float16), "n": np.int32(1)})
  assert batch.is_done
  found = batch.taken()
  assert {name: (x.dtype, x.shape) for name, x in found.items()} == {
    "x": (np.float16, (3, 2, 2)),
    "n": (np.int32, (3,)),
  }
  assert found["x"][:, 0, 0].tolist() == found["n"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
  ("other", "match"),
  [
    ({"x": np.zeros(3)}, r"x: records of one batch have different shapes, \[\(2,\), \(3,\)\]"),
    ({"x": np.zeros(2, np.float16)}, "x: .* different types, float16 and float64"),
    ({"x": np.zeros(2), "y": np.zeros(2)}, "y: in some records of a batch, and not in others"),
    ({}, "x: in some records of a batch"),
  ],
)
def test_rows_that_differ_are_named(other, match):
  batch = Batch(2)
  batch.put(0, {"x": np.zeros(2)})
  with pytest.raises(ValueError, match=match):
    batch.put(1, other)


def test_the_first_row_that_failed_is_told():
  batch = Batch(3)
  for row in (2, 1):
    batch.fail(row, OSError(f"row {row}"))
  batch.put(0, {"x": np.zeros(2)})
  assert batch.is_done
  with pytest.raises(OSError, match="row 1"):
    batch.taken()


def test_memory_comes_back_when_nobody_sees_it():
  memory, shape = Memory(), (1 << 20,)
  first = memory.empty(shape, np.dtype(np.uint8))
  place, view = first.ctypes.data, first[7:].reshape(-1)
  del first
  second = memory.empty(shape, np.dtype(np.uint8))
  assert not np.shares_memory(view, second)
  held = jax.device_put(second[: 1 << 19])  # may be the same memory, on a CPU
  second[:] = 3
  expected = np.asarray(held).copy()
  del view, second
  third, fourth = (memory.empty(shape, np.dtype(np.uint8)) for _ in range(2))
  assert place in (third.ctypes.data, fourth.ctypes.data)
  third[:], fourth[:] = 5, 6
  np.testing.assert_array_equal(np.asarray(held), expected)
  assert memory.empty((4, 2), np.dtype(np.float32)).shape == (4, 2)
