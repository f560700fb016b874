"""A checkpoint in and out again: the same tensors and files; and orbax reads what is stored."""

import json
from pathlib import Path
import re

import checkpoints
from ml_dtypes import bfloat16
import numpy as np
import orbax.checkpoint as ocp
import pytest

from blip3o_jax import trees
from blip3o_jax.convert import exporter
from blip3o_jax.convert import importer
from blip3o_jax.systems.blip3o import verbs
from blip3o_jax.systems.parts import diffusers_files
from blip3o_jax.weights import hashes
from blip3o_jax.weights import store
from blip3o_jax.weights import stream

TINY = checkpoints.TINY
# Of the same files, as the first conversions hashed them.
SHA256_OF_GENERATION = "42a7e113065dac9572154d499ec70f04254f7f7ba9bffc534bb34642117d3eea"
SHA256_OF_ALL = "ac25f6842d565615252da8a162d921f56f63fb712a59ed4070ce2c9c96464675"
DECODER = (diffusers_files.FOLDER, ("unet", "vae"))


def quiet(_: str) -> None:
  """Takes lines about what is done."""


def export(source: Path, output: Path, **options) -> Path:
  exporter.run(source, output, say=quiet, **options)
  return output


def test_the_recorded_checkpoint_comes_back(converted, tmp_path):
  out = export(converted, tmp_path / "out")
  checkpoints.same_tensors(TINY, out)
  for name in DECODER[1]:
    folder = Path(DECODER[0]) / name
    checkpoints.same_tensors(TINY / folder, out / folder, diffusers_files.STEM)
  for file in TINY.rglob("*.json"):
    found = out / file.relative_to(TINY)
    assert json.loads(found.read_text()) == json.loads(file.read_text()), file.name
  # Shards are even equal byte for byte.
  for file in TINY.glob("model-*.safetensors"):
    assert (out / file.name).read_bytes() == file.read_bytes()
  assert not (out / store.FOLDER).exists()
  assert not (out / store.MANIFEST).exists()


@pytest.mark.parametrize("shards", [1, 3])
def test_mixed_dtypes_come_back(tmp_path, shards):
  """Matrices in bfloat16 and float16, norms in float32, layers of one matrix in two dtypes."""
  source = checkpoints.copy(tmp_path / "source", decoder=False)
  values = checkpoints.tensors()
  for i, (name, value) in enumerate(values.items()):
    if value.ndim > 1:
      values[name] = value.astype(bfloat16 if i % 3 else np.float16)
  checkpoints.write(source, values, shards=shards)
  importer.run(source, tmp_path / "converted", say=quiet)
  checkpoints.same_tensors(source, export(tmp_path / "converted", tmp_path / "out"))


@pytest.mark.parametrize("asked", [None, "float32"])
def test_parts_of_several_dtypes_come_back(tmp_path, asked):
  """A language model in bfloat16, a UNet in float16, an autoencoder in float32."""
  source = checkpoints.copy(tmp_path / "source")
  folders = {".": ("model", bfloat16), "unet": (diffusers_files.STEM, np.float16)}
  for folder, (stem, dtype) in folders.items():
    home = source if folder == "." else source / DECODER[0] / folder
    values = {n: v.astype(dtype) for n, v in checkpoints.tensors(home, stem).items()}
    checkpoints.write(home, values, stem=stem)
  importer.run(source, tmp_path / "converted", say=quiet)
  options = {} if asked is None else {"dtype": asked}
  out = export(tmp_path / "converted", tmp_path / "out", **options)
  homes = {".": "model"} | {f"{DECODER[0]}/{name}": diffusers_files.STEM for name in DECODER[1]}
  for folder, stem in homes.items():
    if asked is None:
      checkpoints.same_tensors(source / folder, out / folder, stem)
    else:
      found = checkpoints.tensors(out / folder, stem)
      assert {str(value.dtype) for value in found.values()} == {asked}


def test_a_conversion_loads_as_the_release_does(converted):
  before, after = verbs.load(TINY), verbs.load(converted)
  assert after.cfg == before.cfg
  for one, other in ((before.system, after.system), (before.decoder, after.decoder)):
    found = trees.flatten(other.params)
    for path, value in trees.flatten(one.params).items():
      np.testing.assert_array_equal(found[path], value, err_msg=path)


def test_orbax_reads_a_component_without_this_package(converted):
  for name, facts in store.read_manifest(converted)["components"].items():
    tree = ocp.PyTreeCheckpointer().restore(converted / store.FOLDER / name)
    flat = trees.flatten(tree)
    arrays = store.Arrays(converted, facts["modules"])
    assert set(flat) == set(arrays)
    assert sum(v.size for v in flat.values()) == facts["parameters"]
    for path, value in flat.items():
      whole = tuple(slice(None) for _ in value.shape)
      np.testing.assert_array_equal(arrays.read(path, whole), value)


def test_blocks_are_put_together(tmp_path, monkeypatch):
  """With blocks of a kilobyte most parameters are cut, some at the end of a dim."""
  monkeypatch.setattr(store, "BLOCK_BYTES", 1000)
  source = checkpoints.copy(tmp_path / "source")
  importer.run(source, tmp_path / "converted", say=quiet)
  arrays = store.Arrays(tmp_path / "converted")
  cut = [p for p in arrays if arrays.block(p)[1:] != arrays[p][1:]]
  assert len(cut) > 50
  assert any(n % b for p in cut for n, b in zip(arrays[p], arrays.block(p), strict=True))
  for name in ("backbone", "unet"):
    tree = ocp.PyTreeCheckpointer().restore(tmp_path / "converted" / store.FOLDER / name)
    for path, value in trees.flatten(tree).items():
      index = tuple(slice(n // 3, n) for n in value.shape)
      np.testing.assert_array_equal(arrays.read(path, index), value[index])
  checkpoints.same_tensors(source, export(tmp_path / "converted", tmp_path / "out"))


def test_the_fingerprint_is_of_names_and_bytes(converted, tmp_path, monkeypatch):
  """Not of how files, shards or blocks are cut; a changed number changes it."""
  monkeypatch.setattr(store, "BLOCK_BYTES", 1000)
  source = checkpoints.copy(tmp_path / "source")
  values = checkpoints.tensors()
  checkpoints.write(source, values, shards=3)
  record = importer.run(source, tmp_path / "again", say=quiet)
  before = store.read_manifest(converted)
  assert store.fingerprint(record) == store.fingerprint(before)
  values["model.latent_queries"][0, 0, 0] += 1
  checkpoints.write(source, values)
  other = importer.run(source, tmp_path / "other", say=quiet)["components"]
  changed = {
    n for n, f in other.items() if f["fingerprint"] != before["components"][n]["fingerprint"]
  }
  assert changed == {"generation"}


def test_another_dtype(converted, tmp_path):
  record = importer.run(TINY, tmp_path / "half", dtype="bfloat16", say=quiet)
  assert all(set(f["dtypes"]) == {"bfloat16"} for f in record["components"].values())
  out = checkpoints.tensors(export(tmp_path / "half", tmp_path / "out"))
  for name, value in checkpoints.tensors().items():
    assert out[name].tobytes() == value.astype(bfloat16).tobytes(), name
  out = checkpoints.tensors(export(converted, tmp_path / "cast", dtype="bfloat16"))
  for name, value in checkpoints.tensors().items():
    assert out[name].tobytes() == value.astype(bfloat16).tobytes(), name
  with pytest.raises(ValueError, match="--dtype 'int4': expected one of float32"):
    importer.run(TINY, tmp_path / "no", dtype="int4", say=quiet)


def test_other_shards(converted, tmp_path):
  out = export(converted, tmp_path / "out", max_shard_size="300kB")
  files = sorted(p.name for p in out.glob("model-*.safetensors"))
  assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
  assert len(files) > 5
  assert max(p.stat().st_size for p in out.glob("model-*")) < 320_000
  index = json.loads((out / "model.safetensors.index.json").read_text())
  again = checkpoints.tensors(out)
  assert index["metadata"]["total_size"] == sum(v.nbytes for v in again.values())
  for name, value in checkpoints.tensors().items():
    np.testing.assert_array_equal(again[name], value)
  one = export(converted, tmp_path / "one", max_shard_size="1GB")
  assert [p.name for p in one.glob("model*")] == ["model.safetensors"]
  with pytest.raises(ValueError, match="expected a size such as 5GB"):
    exporter.run(converted, tmp_path / "no", max_shard_size="large", say=quiet)


def test_values_that_are_no_numbers_are_counted(tmp_path):
  source = checkpoints.copy(tmp_path / "source", decoder=False)
  values = checkpoints.tensors()
  values["model.layers.1.mlp.up_proj.weight"][3, 4:7] = np.nan
  values["visual.blocks.2.norm1.weight"][0] = np.inf
  checkpoints.write(source, values)
  lines: list[str] = []
  record = importer.run(source, tmp_path / "out", say=lines.append)
  assert record["not_finite"] == {
    "model.layers.1.mlp.up_proj.weight": 3,
    "visual.blocks.2.norm1.weight": 1,
  }
  assert any("up_proj.weight holds 3 values that are NaN or infinite" in line for line in lines)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, bfloat16, np.float64, np.int32])
def test_odd_values_of_every_dtype(dtype):
  values = np.arange(-300, 300).astype(dtype)
  assert stream.count_odd(values) == 0
  if dtype is not np.int32:
    values[[3, 5, 8]] = [np.nan, np.inf, -np.inf]
    assert stream.count_odd(values) == 3


@pytest.mark.parametrize(
  "perm",
  [(1, 0), (2, 3, 1, 0), (3, 2, 0, 1), (1, 2, 3, 4, 0), (4, 0, 1, 2, 3), (0, 2, 1), (0, 1), (0,)],
)
@pytest.mark.parametrize("dtype", [np.float64, bfloat16])
def test_transposes(perm, dtype):
  drawn = np.random.default_rng(0).normal(size=[70, 33, 3, 2, 4][: len(perm)])
  wide = np.zeros((*drawn.shape[:-1], 256))
  wide[..., : drawn.shape[-1]] = drawn
  values = drawn.astype(dtype)
  for given in (values, wide.astype(dtype)[..., : drawn.shape[-1]]):  # whole, and a part of rows
    found = stream.transpose(given, perm)
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, np.transpose(values, perm))


@pytest.mark.parametrize("dtype", ["", "float16"])
def test_blocks_of_many_visits(tmp_path, monkeypatch, dtype):
  """A few rows at a time: every tensor comes back, and the fingerprints stay."""
  before = importer.run(TINY, tmp_path / "whole", dtype=dtype, say=quiet)
  monkeypatch.setattr(store, "BLOCK_BYTES", 30000)
  monkeypatch.setattr(store, "PIECE_BYTES", 1000)
  monkeypatch.setattr(stream, "ROWS", 3)
  monkeypatch.setattr(stream, "BYTES", 200)
  record = importer.run(TINY, tmp_path / "converted", dtype=dtype, say=quiet)
  assert store.fingerprint(record) == store.fingerprint(before)
  one, two = (
    export(tmp_path / "whole", tmp_path / "a"),
    export(tmp_path / "converted", tmp_path / "b"),
  )
  checkpoints.same_tensors(one, two)
  if not dtype:
    checkpoints.same_tensors(TINY, two)


def test_a_fingerprint_says_which_hash_it_is(converted, tmp_path):
  """Those of earlier manifests are SHA-256 without a name; an import can still make them."""
  now = store.read_manifest(converted)
  record = importer.run(TINY, tmp_path / "old", algorithm="sha256", say=quiet)
  assert record["components"]["generation"]["fingerprint"] == SHA256_OF_GENERATION
  assert store.fingerprint(record) == SHA256_OF_ALL
  assert hashes.algorithm(store.fingerprint(record)) == "sha256"
  for text in (store.fingerprint(now), now["components"]["generation"]["fingerprint"]):
    assert re.fullmatch("blake3:[0-9a-f]{64}", text)
    assert hashes.algorithm(text) == "blake3"
  with pytest.raises(ValueError, match="hash 'md5': expected one of blake3, sha256"):
    importer.run(TINY, tmp_path / "no", algorithm="md5", say=quiet)
  assert not (tmp_path / "no").exists()
