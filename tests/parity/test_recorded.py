"""The recorded PyTorch numbers, replayed as tools/verify.py does it: every output, both files."""

from pathlib import Path

import numpy as np
import pytest

from blip3o_jax.systems.parts import recorded as bars
from blip3o_jax.verify import compare
from blip3o_jax.verify import recordings
from blip3o_jax.verify import replay

TINY = Path(__file__).parents[1] / "data" / "tiny-blip3o"
FILES = {"": TINY / "io.safetensors", "decoder.": TINY / "diffusion-decoder" / "io.safetensors"}


@pytest.fixture(scope="module", params=FILES, ids=["system", "decoder"])
def replayed(request) -> tuple[str, dict[str, np.ndarray], list[tuple[str, np.ndarray, bars.Bar]]]:
  """(prefix, recorded, ours with their bars) of one file."""
  recorded = recordings.read(FILES[request.param])
  return request.param, recorded, list(replay.replayed(TINY, recorded))


def test_every_output(replayed, check):
  prefix, recorded, ours = replayed
  for name, value, bar in ours:
    check(prefix + name, value, bar.float32, recorded[name])


def test_one_altered_value_of_any_output_is_seen(replayed):
  """The test of the test: a whole number off by one, or 1 % of the root mean square."""
  _, recorded, ours = replayed
  rng = np.random.default_rng(0)
  for name, value, bar in ours:
    wrong = recorded[name].copy()
    place = tuple(int(rng.integers(n)) for n in wrong.shape)
    whole = np.issubdtype(wrong.dtype, np.integer)
    wrong[place] += 1 if whole else 0.01 * np.sqrt(np.mean(np.square(wrong)))
    row = compare.compare(name, value, wrong, bars.tolerance(name, bar, "float32"))
    assert not row.ok, name
