"""Rows of a batch on a mesh, and the prefetch thread."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
import toy

from blip3o_jax.train import distributed


def _mesh() -> jax.sharding.Mesh:
  return distributed.make_mesh(distributed.Mesh(fsdp=1))


def _batches(start: int, stop: int) -> Iterator[tuple[int, Any]]:
  for step in range(start, stop):
    yield step, toy.Data(2).batch_at(step)


def test_prefetch_keeps_the_order():
  with distributed.Prefetch(_batches(3, 7), _mesh(), 2) as batches:
    found = list(batches)
  assert [step for step, _ in found] == [3, 4, 5, 6]
  for step, batch in found:
    np.testing.assert_array_equal(batch["x"], toy.Data(2).batch_at(step)["x"])
    assert batch["scale"].shape == ()


def test_prefetch_raises_what_the_data_raised():
  def broken() -> Iterator[tuple[int, Any]]:
    yield from _batches(0, 1)
    raise ValueError("record 17 cannot be read")

  with distributed.Prefetch(broken(), _mesh(), 2) as batches:
    stream = iter(batches)
    assert next(stream)[0] == 0
    with pytest.raises(ValueError, match="record 17"):
      next(stream)


def test_prefetch_closes_with_a_full_queue():
  batches = distributed.Prefetch(_batches(0, 1000), _mesh(), 2, depth=1)
  next(iter(batches))
  batches.close()


def test_rows_and_batch_checks():
  mesh = _mesh()
  assert distributed.local_rows(mesh, 6) == tuple(range(6))
  distributed.check_batch(mesh, 6, 3)
  with pytest.raises(ValueError, match=r"batch 6 .* mesh\.fsdp x accumulate = 1 x 1 x 4"):
    distributed.check_batch(mesh, 6, 4)


@pytest.mark.parametrize("rows", [2, 8])
def test_a_batch_of_other_rows_is_refused_by_name(rows):
  batch = toy.Data(4).batch_at(0)
  batch["mask"] = np.ones(rows, np.float32)
  with pytest.raises(ValueError, match=f"batch mask: {rows} rows, but .* hold 4 of the 4"):
    distributed.put(batch, _mesh(), 4)


def test_mesh_must_fill_the_devices():
  with pytest.raises(ValueError, match=r"config\.mesh: replica 3"):
    distributed.make_mesh(distributed.Mesh(replica=3))


def test_processes_that_read_other_data_are_named(monkeypatch):
  mine = []

  def gathered(digest):
    mine.append(digest)
    return np.stack([mine[0], digest, mine[0]])

  monkeypatch.setattr(distributed.jax, "process_count", lambda: 3)
  monkeypatch.setattr(distributed.multihost_utils, "process_allgather", gathered)
  distributed.agree("the data", "these files")
  with pytest.raises(ValueError, match="the data of process 1 is another than that of process 0"):
    distributed.agree("the data", "other files")
