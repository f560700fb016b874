"""Files that are whole or not there, and sizes in words."""

import pytest

from blip3o_jax import files


def test_a_failed_write_leaves_the_earlier_file(tmp_path):
  path = tmp_path / "a.json"
  files.write_text(path, "first")

  def fail() -> None:
    with files.replacing(path) as partial:
      partial.write_text("half")
      raise RuntimeError("no")

  with pytest.raises(RuntimeError, match="no"):
    fail()
  assert path.read_text() == "first"
  files.write_text(path, "second")
  assert path.read_text() == "second"
  assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_sizes_and_times_in_words():
  assert [files.size(n) for n in (7, 1500, 24.1e9)] == ["7 B", "1.5 kB", "24.10 GB"]
  assert [files.duration(n) for n in (8, 125, 11400)] == ["8 s", "2 min 5 s", "3 h 10 min"]
