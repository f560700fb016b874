"""Reading safetensors: slices and dtypes, and files that are not what they should be."""

import json
from pathlib import Path
import struct

from ml_dtypes import bfloat16
import numpy as np
import pytest
from safetensors.numpy import save_file

from blip3o_jax.weights import safetensors

FIRST = "model-1.safetensors"
TENSORS = {
  "a": np.arange(12, dtype=np.float32).reshape(3, 4),
  "b": np.arange(6).astype(bfloat16).reshape(2, 3),
  "c": np.arange(4, dtype=np.int64),
}


@pytest.fixture
def single(tmp_path):
  """A directory with one file."""
  save_file(TENSORS, tmp_path / "model.safetensors")
  return tmp_path


@pytest.fixture
def sharded(tmp_path):
  """A directory with two shards and their index."""
  save_file({"a": TENSORS["a"]}, tmp_path / "model-1.safetensors")
  save_file({k: TENSORS[k] for k in "bc"}, tmp_path / "model-2.safetensors")
  write_index(tmp_path, a="model-1.safetensors", b="model-2.safetensors", c="model-2.safetensors")
  return tmp_path


def write_index(folder, **weight_map):
  text = json.dumps({"metadata": {}, "weight_map": weight_map})
  (folder / "model.safetensors.index.json").write_text(text)


@pytest.mark.parametrize("kind", ["single", "sharded"])
def test_names_shapes_dtypes_and_slices(kind, request):
  tensors = safetensors.Tensors(request.getfixturevalue(kind))
  assert dict(tensors) == {"a": (3, 4), "b": (2, 3), "c": (4,)}
  assert tensors.dtype("b") == bfloat16
  for name, value in TENSORS.items():
    found = tensors.read(name)
    assert found.dtype == value.dtype
    np.testing.assert_array_equal(found, value)
  index = (slice(1, 3), slice(0, 2))
  np.testing.assert_array_equal(tensors.read("a", index), TENSORS["a"][index])


def test_one_file_by_its_own_name(single):
  assert set(safetensors.Tensors(single / "model.safetensors")) == set(TENSORS)


@pytest.mark.parametrize("name", ["other.safetensors", "other.bf16.safetensors"])
def test_the_stem_of_another_component(tmp_path, name):
  save_file(TENSORS, tmp_path / name)
  assert set(safetensors.Tensors(tmp_path, "other")) == set(TENSORS)


def test_an_absent_directory_or_file(tmp_path):
  with pytest.raises(FileNotFoundError, match="nowhere: no such file or directory"):
    safetensors.Tensors(tmp_path / "nowhere")
  with pytest.raises(FileNotFoundError, match="holds neither model"):
    safetensors.Tensors(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 30, -1])
def test_a_truncated_file(single, keep):
  file = single / "model.safetensors"
  file.write_bytes(file.read_bytes()[:keep])
  with pytest.raises(ValueError, match="truncated, "):
    safetensors.Tensors(single)


def test_a_file_with_bytes_too_many(single):
  file = single / "model.safetensors"
  file.write_bytes(file.read_bytes() + b"x")
  with pytest.raises(ValueError, match="where its header needs"):
    safetensors.Tensors(single)


def write_raw(path, header, data):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize(
  ("header", "message"),
  [
    (b"{not json", "damaged safetensors header"),
    ({"a": {"dtype": "F8_X", "shape": [8], "data_offsets": [0, 8]}}, "a is stored as F8_X"),
    ({"a": {"dtype": "F32", "shape": [5], "data_offsets": [0, 8]}}, "damaged"),
    ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "damaged"),
    (b"[1, 2]", "damaged"),
    ({"a": {"dtype": "F32"}}, "damaged"),
    ({"a": 3}, "damaged"),
  ],
)
def test_a_damaged_header(tmp_path, header, message):
  write_raw(tmp_path / "model.safetensors", header, b"\0" * 8)
  with pytest.raises(ValueError, match=message):
    safetensors.Tensors(tmp_path)


def test_an_index_that_names_an_absent_shard(sharded):
  (sharded / "model-2.safetensors").unlink()
  with pytest.raises(FileNotFoundError, match=r"index.json names files .* absent: model-2"):
    safetensors.Tensors(sharded)


@pytest.mark.parametrize(
  "file", ["../model-1.safetensors", "/etc/passwd", "sub/x.safetensors", ".."]
)
def test_an_index_that_leaves_the_directory(sharded, file):
  write_index(sharded, a=file)
  with pytest.raises(ValueError, match="a points outside the directory"):
    safetensors.Tensors(sharded)


@pytest.mark.parametrize(
  "weight_map",
  [
    dict(a="model-1.safetensors", b="model-2.safetensors"),  # c is in the file alone
    # a is in another file than it says
    dict(a="model-2.safetensors", b="model-2.safetensors", c="model-2.safetensors", x=FIRST),
  ],
)
def test_an_index_that_disagrees_with_its_shards(sharded, weight_map):
  write_index(sharded, **weight_map)
  with pytest.raises(ValueError, match="the index and the file disagree about"):
    safetensors.Tensors(sharded)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"weight_map": 1}', '{"weight_map": ["a"]}'])
def test_an_index_that_is_none(tmp_path, text):
  (tmp_path / "model.safetensors.index.json").write_text(text)
  with pytest.raises(ValueError, match="not a safetensors index"):
    safetensors.Tensors(tmp_path)


def test_the_recorded_miniature_is_there():
  root = Path(__file__).parents[2] / "data" / "tiny-blip3o"
  assert len(safetensors.Tensors(root)) > 100


# Which files, and which copy ----------------------------------------------------------------------


def test_names_that_no_file_holds_are_told_apart(sharded):
  write_index(sharded, a=FIRST, x=FIRST)
  tensors = safetensors.Tensors(sharded)
  assert (set(tensors), tensors.absent) == ({"a"}, {"x"})


def test_of_two_copies_the_index_says_which_counts(sharded):
  stale = {"a": TENSORS["a"] + 1, "b": TENSORS["b"]}
  save_file(stale | {"c": TENSORS["c"]}, sharded / "model-2.safetensors")
  tensors = safetensors.Tensors(sharded)
  np.testing.assert_array_equal(tensors.read("a"), TENSORS["a"])
  assert (len(tensors), tensors.hidden) == (3, 1)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_shards_without_an_index(tmp_path, first, variant):
  for i, name in enumerate(TENSORS, first):
    save_file({name: TENSORS[name]}, tmp_path / f"model{variant}-{i:05d}-of-00003.safetensors")
  tensors = safetensors.Tensors(tmp_path)
  assert set(tensors) == set(TENSORS)
  np.testing.assert_array_equal(tensors.read("c"), TENSORS["c"])


def test_shards_without_an_index_that_are_not_all_there(tmp_path):
  save_file({"a": TENSORS["a"]}, tmp_path / "model-00002-of-00003.safetensors")
  wanted = r"no index, and of the 3 shards .* model-00001-of-00003.safetensors, model-00003-of"
  with pytest.raises(FileNotFoundError, match=wanted):
    safetensors.Tensors(tmp_path)


def test_two_sets_of_shards(tmp_path):
  for name in ("model-00001-of-00001", "model-00001-of-00002"):
    save_file({"a": TENSORS["a"]}, tmp_path / f"{name}.safetensors")
  with pytest.raises(ValueError, match="two sets of shards, of 1 files, of 2 files"):
    safetensors.Tensors(tmp_path)


def test_an_index_beside_a_single_file(sharded):
  """Its shards gone, it was left behind; else there are two sets. It may name the file itself."""
  save_file({"a": TENSORS["a"] + 1}, sharded / "model.safetensors")
  with pytest.raises(ValueError, match=r"two sets of weights, model.safetensors and the shards of"):
    safetensors.Tensors(sharded)
  for file in sharded.glob("model-*.safetensors"):
    file.unlink()
  np.testing.assert_array_equal(safetensors.Tensors(sharded).read("a"), TENSORS["a"] + 1)
  write_index(sharded, a="model.safetensors")
  assert safetensors.Tensors(sharded).index is not None
