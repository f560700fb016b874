"""The writer of a converted component: whole, or an error that names the parameter."""

import json

import numpy as np
import pytest

from blip3o_jax.weights import store


def test_blocks_may_come_in_any_order(tmp_path):
  writer = store.Writer(tmp_path / "weights" / "part")
  writer.add("a/kernel", (3, 2), np.dtype("float32"), (2, 2))
  values = np.arange(6, dtype=np.float32).reshape(3, 2)
  writer.write("a/kernel", (2, 0), values[2:])
  writer.write("a/kernel", (0, 0), values[:2])
  writer.close()
  manifest = {"format_version": store.FORMAT_VERSION, "components": {"part": {"fingerprint": ""}}}
  (tmp_path / store.MANIFEST).write_text(json.dumps(manifest))
  np.testing.assert_array_equal(
    store.Arrays(tmp_path).read("a/kernel", (slice(0, 3), slice(0, 2))), values
  )


@pytest.mark.parametrize("written", [0, 1])
def test_a_block_that_was_not_written_is_an_error(tmp_path, written):
  writer = store.Writer(tmp_path / "part")
  writer.add("a/kernel", (2, 2), np.dtype("float32"), (1, 2))
  for i in range(written):
    writer.write("a/kernel", (i, 0), np.ones((1, 2), np.float32))
  with pytest.raises(ValueError, match=rf"a/kernel has {written} of 2 blocks"):
    writer.close()
  assert not (tmp_path / "part" / "_METADATA").exists()
