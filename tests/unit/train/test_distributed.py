"""Batches on a mesh and the prefetch thread."""

import numpy as np
import pytest
import toy

from blip3o_jax.train import distributed


def _mesh():
  return distributed.make_mesh(distributed.Mesh(fsdp=1))


def test_prefetch_keeps_the_order():
  data = toy.Data(2)
  with distributed.Prefetch(data, _mesh(), 3, 7) as batches:
    found = list(batches)
  assert [step for step, _ in found] == [3, 4, 5, 6]
  for step, batch in found:
    np.testing.assert_array_equal(batch["x"], data.batch_at(step)["x"])
    assert batch["scale"].shape == ()


def test_prefetch_raises_what_the_data_raised():
  class Broken(toy.Data):
    def batch_at(self, step):
      if step == 1:
        raise ValueError("record 17 cannot be read")
      return super().batch_at(step)

  with distributed.Prefetch(Broken(2), _mesh(), 0, 5) as batches:
    stream = iter(batches)
    assert next(stream)[0] == 0
    with pytest.raises(ValueError, match="record 17"):
      next(stream)


def test_prefetch_closes_with_a_full_queue():
  batches = distributed.Prefetch(toy.Data(2), _mesh(), 0, 1000, depth=1)
  next(iter(batches))
  batches.close()


def test_rows_and_batch_checks():
  mesh = _mesh()
  assert distributed.local_rows(mesh, 6) == range(6)
  distributed.check_batch(mesh, 6, 3)
  with pytest.raises(ValueError, match=r"batch 6 .* mesh\.fsdp x accumulate = 1 x 1 x 4"):
    distributed.check_batch(mesh, 6, 4)


def test_address_needs_processes():
  with pytest.raises(ValueError, match="needs processes >= 1"):
    distributed.initialize("127.0.0.1:1234")
  distributed.initialize("")


def test_mesh_must_fill_the_devices():
  with pytest.raises(ValueError, match=r"config\.mesh: replica 3"):
    distributed.make_mesh(distributed.Mesh(replica=3))
