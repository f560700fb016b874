"""Files that are whole or not there, and sizes in words."""

import os
import stat

import jax.numpy as jnp
import numpy as np
import pytest

from blip3o_jax import files
from blip3o_jax.data.text import tokenizer
from blip3o_jax.systems.blip3o import save
from blip3o_jax.weights import safetensors


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


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_written_files_may_be_read_by_whom_the_umask_says(tmp_path, umask):
  """Weights too, which their library writes for the owner alone; whatever a source's mode is."""
  source = tmp_path / "source"
  source.mkdir()
  (source / "tokenizer.json").write_text("{}")
  (source / "tokenizer.json").chmod(0o400)
  before = os.umask(umask)
  try:
    files.write_text(tmp_path / "text.json", "{}")
    safetensors.save({"a": np.ones(3, np.float32)}, tmp_path / "model.safetensors")
    safetensors.create(tmp_path / "made.safetensors", {}, {})
    save.write_weights({"slots/embedding": jnp.ones((1, 4, 8))}, tmp_path / "own")
    tokenizer.copy_files(source, tmp_path / "own")
  finally:
    os.umask(before)
  written = [p for p in tmp_path.rglob("*.*") if p.is_file() and p.parent != source]
  assert len(written) == 5
  assert {stat.S_IMODE(p.stat().st_mode) for p in written} == {0o666 & ~umask}


@pytest.mark.parametrize(
  ("data", "said"),
  [
    (files.POINTER + b"v1\noid sha256:0\nsize 2048\n", "a git-lfs pointer, not the file of 2.0 kB"),
    (files.POINTER + b"v1\n", "a git-lfs pointer, not the file that"),
    (b"\n<!doctype HTML><title>Sign in", "a web page"),
    (b"<html>", "a web page"),
    (b"{}", ""),
    (b"", ""),
  ],
)
def test_what_stands_in_place_of_a_file(data, said):
  assert files.stranger(data).startswith(said)
  assert bool(files.stranger(data)) == bool(said)


def test_nulls_are_absent_at_any_depth(tmp_path):
  (tmp_path / "a.json").write_text('{"a": null, "b": {"c": null, "d": [1, {"e": null}]}}')
  assert files.read_json(tmp_path / "a.json") == {"b": {"d": [1, {}]}}
  (tmp_path / "a.json").write_text('{"a": 1,}')
  with pytest.raises(ValueError, match=r"a\.json: not valid JSON"):
    files.read_json(tmp_path / "a.json")
