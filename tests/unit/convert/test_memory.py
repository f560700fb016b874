"""A checkpoint larger than the memory that its conversion may take."""

from pathlib import Path

import checkpoints
import numpy as np
import pytest

ROOT = Path(__file__).parents[3]
ROWS = 1_600_000  # of 64 float32: 410 MB each, embedding and head


@pytest.mark.slow
def test_memory_does_not_grow_with_the_checkpoint(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(str(ROOT / "tests" / "benchmarks"))
  import conversion

  source = checkpoints.copy(tmp_path / "source", decoder=False)
  values = checkpoints.tensors()
  table = np.random.default_rng(0).normal(size=(ROWS, 64)).astype(np.float32)
  values |= {"model.embed_tokens.weight": table, "lm_head.weight": table}
  checkpoints.write(source, values, shards=2)
  checkpoints.edit(source / "config.json", vocab_size=ROWS)
  found = conversion.run(source, tmp_path / "work", keep=False)
  assert found["bytes"] > 800e6
  for verb in ("import", "export"):
    assert found[verb]["peak_bytes"] < 700e6 < found["bound_bytes"]
