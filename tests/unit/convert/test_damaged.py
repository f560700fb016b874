"""Damaged input, one test a kind: an error that names what is wrong, and no output.

What a reader of safetensors finds (truncated files, headers, indices) is also in
tests/unit/weights/test_weights_files.py, what a table finds in test_weights_table.py there.
"""

from collections.abc import Callable
import json
from pathlib import Path
import shutil
import struct

import checkpoints
import numpy as np
import pytest

from blip3o_jax.convert import importer
from blip3o_jax.convert.source import Take
from blip3o_jax.systems.parts import diffusers_files

INDEX = "model.safetensors.index.json"
SHARD = "model-00002-of-00002.safetensors"
UNET = f"{diffusers_files.FOLDER}/unet"


def quiet(_: str) -> None:
  """Takes lines about what is done."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
  """A copy of the miniature in two shards, to be damaged."""
  return checkpoints.copy(tmp_path / "source")


def rewrite(source: Path, change: Callable[[checkpoints.Values], None]) -> None:
  values = checkpoints.tensors(source)
  change(values)
  checkpoints.write(source, values, shards=2)


def shorten(path: Path, count: int) -> None:
  path.write_bytes(path.read_bytes()[:-count])


def header(path: Path, change: Callable[[dict], None]) -> None:
  """Changes the header of a safetensors file, in place."""
  data = path.read_bytes()
  length = struct.unpack("<Q", data[:8])[0]
  values = json.loads(data[8 : 8 + length])
  change(values)
  text = json.dumps(values).encode()
  path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def relabel(path: Path, dtype: str, width: int) -> None:
  """Calls the first matrix of a file one of another dtype; its shape then follows its bytes."""

  def change(values: dict) -> None:
    name = next(n for n, m in values.items() if n != "__metadata__" and len(m["shape"]) == 2)
    begin, end = values[name]["data_offsets"]
    values[name] |= {"dtype": dtype, "shape": [(end - begin) // width]}

  header(path, change)


def renamed(old: str, new: str) -> Callable[[checkpoints.Values], None]:
  return lambda values: values.update({new: values.pop(old)})


def cut_rows(name: str) -> Callable[[checkpoints.Values], None]:
  return lambda values: values.update({name: values[name][:-1]})


def without(start: str) -> Callable[[checkpoints.Values], None]:
  def change(values: checkpoints.Values) -> None:
    for name in [n for n in values if n.startswith(start)]:
      del values[name]

  return change


def point(source: Path, file: str) -> None:
  """Lets the index say that one tensor is in `file`."""
  values = json.loads((source / INDEX).read_text())
  values["weight_map"]["lm_head.weight"] = file
  (source / INDEX).write_text(json.dumps(values))


KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
  "no directory": (lambda s: shutil.rmtree(s), "source: no such directory"),
  "nothing in it": (lambda s: (shutil.rmtree(s), s.mkdir()), "no files of a model that is known"),
  "config of another model": (
    lambda s: (s / "config.json").write_text('{"model_type": "llama"}'),
    "no config.json with a vision_config",
  ),
  "config that is no JSON": (lambda s: (s / "config.json").write_text("{"), "not valid JSON"),
  "config without a field": (
    lambda s: checkpoints.edit(s / "config.json", num_hidden_layers=None),
    r"num_hidden_layers \(left out, its class's default\) is 80, but the tensors have 3",
  ),
  "no weights": (
    lambda s: [p.unlink() for p in s.glob("model*")],
    "holds neither model.safetensors nor",
  ),
  "truncated shard": (lambda s: shorten(s / SHARD, 100), f"{SHARD}: truncated, "),
  "truncated header": (lambda s: (s / SHARD).write_bytes(b"\x08"), f"{SHARD}: truncated, or not"),
  "header that is no JSON": (
    lambda s: (s / SHARD).write_bytes(struct.pack("<Q", 8) + b"{not jso"),
    "damaged safetensors header",
  ),
  "absent shard": (lambda s: (s / SHARD).unlink(), f"names files that are absent: {SHARD}"),
  "path out of the directory": (
    lambda s: point(s, "../secret.safetensors"),
    "lm_head.weight points outside the directory, to '../secret.safetensors'",
  ),
  "index that is none": (lambda s: (s / INDEX).write_text("[]"), "not a safetensors index"),
  "index and shard disagree": (
    lambda s: point(s, "model-00001-of-00002.safetensors"),
    "the index and the file disagree about",
  ),
  "float8": (lambda s: relabel(s / SHARD, "F8_E4M3", 1), "stored as F8_E4M3.*quantised"),
  "int8": (lambda s: relabel(s / SHARD, "I8", 1), "stored as I8.*quantised"),
  "unknown name": (
    lambda s: rewrite(s, lambda v: v.update(model_norm=np.ones(3, np.float32))),
    "unexpected model_norm",
  ),
  "misspelt name": (
    lambda s: rewrite(
      s, renamed("model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.up_prj.weight")
    ),
    r"(?s)missing model.layers.1.mlp.up_proj.weight.*nearest found: model.layers.1.mlp.up_prj"
    r".*unexpected model.layers.1.mlp.up_prj.weight \(nearest known: model.layers.{}.mlp.up_proj",
  ),
  "missing tensor": (
    lambda s: rewrite(s, without("model.norm.weight")),
    "missing model.norm.weight, needed by backbone/norm/scale",
  ),
  "missing layer": (
    lambda s: rewrite(s, without("model.layers.1.")),
    "missing model.layers.1.input_layernorm.weight",
  ),
  "missing network": (
    lambda s: rewrite(s, without("model.dit.")),
    "missing model.dit.model.patch_embedder.proj.weight",
  ),
  "half a tower": (
    lambda s: rewrite(s, without(f"{checkpoints.TOWER}blocks.2.")),
    "missing .*tower.model.blocks.2.norm1.weight",
  ),
  "wrong shape": (
    lambda s: rewrite(s, cut_rows("visual.merger.mlp.0.weight")),
    r"shape of visual.merger.mlp.0.weight: expected \(128, 128\) for .*, found \(127, 128\)",
  ),
  "vocabulary unlike the config's": (
    lambda s: checkpoints.edit(s / "config.json", vocab_size=510),
    r"config.json vocab_size is 510, but model.embed_tokens.weight is \(600, 64\)",
  ),
  "depth unlike the config's": (
    lambda s: checkpoints.edit(s / "config.json", num_hidden_layers=4),
    "config.json num_hidden_layers is 4, but the tensors have 3",
  ),
  "generator unlike the release's": (
    lambda s: (s / "tiny.json").unlink(),
    r"tiny.json dit \(or the release\) dim is 1792, but .*patch_embedder.proj.weight is \(64, 48",
  ),
  "UNet unlike its config": (
    lambda s: checkpoints.edit(s / UNET / "config.json", layers_per_block=3),
    "unet: unet config.json layers_per_block is 3, but the tensors have 2",
  ),
  "UNet that is not built": (
    lambda s: checkpoints.edit(s / UNET / "config.json", class_embed_type="timestep"),
    "class_embed_type 'timestep' is not built",
  ),
  "UNet without weights": (
    lambda s: (s / UNET / f"{diffusers_files.STEM}.safetensors").unlink(),
    f"holds neither {diffusers_files.STEM}.safetensors",
  ),
  "UNet without a config": (
    lambda s: (s / UNET / "config.json").unlink(),
    "unet: no config.json",
  ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_named_before_anything_is_written(kind, source, tmp_path):
  damage, message = KINDS[kind]
  damage(source)
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    importer.run(source, tmp_path / "out", say=quiet)
  assert [p.name for p in tmp_path.iterdir() if p.name != "source"] == []


def test_there_are_twenty_kinds():
  assert len(KINDS) >= 20


# Pickles ------------------------------------------------------------------------------------------


def tower_of(tmp_path: Path) -> Path:
  shutil.copytree(checkpoints.TINY / "eva_clip_vision_tower", tmp_path / "eva")
  return tmp_path / "eva" / "pytorch_model.bin"


def save_pickle(path: Path, what: str) -> None:
  import torch

  class Harmful:
    def __reduce__(self):
      return (Path.touch, (path.with_name("ran"),))

  made = {
    "code": {"w": Harmful()},
    "a list": [1, 2],
    "numbers": {"w": 3},
    "int8": {"w": torch.ones(3, dtype=torch.int8)},
  }[what]
  torch.save(made, path)


@pytest.mark.parametrize(
  ("what", "message"),
  [
    (
      "code",
      r"not a file of weights alone: it holds objects \(getattr\) that are made by running code",
    ),
    ("a list", "expected a dict of tensors, found list"),
    ("numbers", "'w' is int, expected a tensor"),
    ("int8", "w is stored as torch.int8.*quantised"),
  ],
)
@pytest.mark.torch
def test_a_pickle_of_something_else(tmp_path, what, message):
  pytest.importorskip("torch")
  path = tower_of(tmp_path)
  save_pickle(path, what)
  with pytest.raises(ValueError, match=message):
    importer.run(path.parent, tmp_path / "out", take=Take(allow_pickle=True), say=quiet)
  assert not path.with_name("ran").exists()


@pytest.mark.torch
def test_a_truncated_pickle(tmp_path):
  pytest.importorskip("torch")
  path = tower_of(tmp_path)
  shorten(path, 5000)
  with pytest.raises(ValueError, match=r"pytorch_model\.bin: not a file of weights alone"):
    importer.run(path.parent, tmp_path / "out", take=Take(allow_pickle=True), say=quiet)


@pytest.mark.parametrize("file", ["../x.bin", "/x.bin"])
def test_an_index_of_pickles_that_leaves_the_directory(tmp_path, file):
  path = tower_of(tmp_path)
  text = json.dumps({"weight_map": {"cls_token": file}})
  path.with_name("pytorch_model.bin.index.json").write_text(text)
  with pytest.raises(ValueError, match="points outside the directory"):
    importer.run(path.parent, tmp_path / "out", take=Take(allow_pickle=True), say=quiet)
