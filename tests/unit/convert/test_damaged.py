"""Damaged input, one test a kind: an error that names what is wrong, and no output.

What a reader of safetensors finds (truncated files, headers, indices) is also in
tests/unit/weights/test_weights_files.py, what a table finds in test_weights_table.py there.
"""

from collections.abc import Callable
import errno
import json
from pathlib import Path
import shutil
import signal
import struct
import subprocess
import sys
import time

import checkpoints
import numpy as np
import pytest

from blip3o_jax.convert import exporter
from blip3o_jax.convert import importer
from blip3o_jax.convert import place
from blip3o_jax.systems import decoder_files
from blip3o_jax.systems import inference
from blip3o_jax.weights import store

ROOT = Path(__file__).parents[3]
TOOL = [sys.executable, str(ROOT / "tools" / "convert.py")]
INDEX = "model.safetensors.index.json"
SHARD = "model-00002-of-00002.safetensors"
UNET = f"{decoder_files.FOLDER}/unet"


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
  "nothing in it": (lambda s: (shutil.rmtree(s), s.mkdir()), "nothing to convert"),
  "config of another model": (
    lambda s: (s / "config.json").write_text('{"model_type": "llama"}'),
    "of no kind that is converted.*found model_type 'llama'",
  ),
  "config that is no JSON": (lambda s: (s / "config.json").write_text("{"), "not valid JSON"),
  "config without a field": (
    lambda s: checkpoints.edit(s / "config.json", num_hidden_layers=None),
    "lacks the field 'num_hidden_layers'",
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
    lambda s: (s / UNET / f"{decoder_files.STEM}.safetensors").unlink(),
    f"holds neither {decoder_files.STEM}.safetensors",
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
    ("code", "not a file of weights alone"),
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
    importer.run(path.parent, tmp_path / "out", allow_pickle=True, say=quiet)
  assert not path.with_name("ran").exists()


@pytest.mark.torch
def test_a_truncated_pickle(tmp_path):
  pytest.importorskip("torch")
  path = tower_of(tmp_path)
  shorten(path, 5000)
  with pytest.raises(ValueError, match=r"pytorch_model\.bin: not a file of weights alone"):
    importer.run(path.parent, tmp_path / "out", allow_pickle=True, say=quiet)


@pytest.mark.parametrize("file", ["../x.bin", "/x.bin"])
def test_an_index_of_pickles_that_leaves_the_directory(tmp_path, file):
  path = tower_of(tmp_path)
  text = json.dumps({"weight_map": {"cls_token": file}})
  path.with_name("pytorch_model.bin.index.json").write_text(text)
  with pytest.raises(ValueError, match="points outside the directory"):
    importer.run(path.parent, tmp_path / "out", allow_pickle=True, say=quiet)


# A converted directory ----------------------------------------------------------------------------


@pytest.fixture
def copied(converted: Path, tmp_path: Path) -> Path:
  """A copy of the converted miniature, to be damaged."""
  return Path(shutil.copytree(converted, tmp_path / "copied"))


def test_a_newer_format(copied, tmp_path):
  checkpoints.edit(copied / store.RECORD, format_version=store.FORMAT_VERSION + 1)
  for read in (inference.load, lambda d: exporter.run(d, tmp_path / "out", say=quiet)):
    with pytest.raises(ValueError, match="format_version 2 is newer than 1"):
      read(copied)


@pytest.mark.parametrize("text", ["", "[]", '{"format_version": 1}'])
def test_a_record_that_is_none(copied, text):
  (copied / store.RECORD).write_text(text)
  with pytest.raises(ValueError, match="not the record of a conversion"):
    store.read_record(copied)


def test_an_absent_component(copied):
  shutil.rmtree(copied / store.FOLDER / "visual")
  with pytest.raises(ValueError, match="names components that are absent: visual"):
    inference.load(copied)


@pytest.mark.parametrize("damage", ["short", "absent", "metadata"])
def test_a_damaged_array(copied, tmp_path, damage):
  folder = copied / store.FOLDER / "backbone" / "backbone.layers.mlp.up_proj.kernel"
  block = folder / "1.0.0"
  message = {"short": "truncated or damaged", "absent": "1.0.0: absent", "metadata": ".zarray"}
  if damage == "short":
    shorten(block, 4)
  else:
    (block if damage == "absent" else folder / ".zarray").unlink()
  for read in (inference.load, lambda d: exporter.run(d, tmp_path / "out", say=quiet)):
    with pytest.raises(ValueError, match=message[damage]):
      read(copied)
  assert not (tmp_path / "out").exists()


def test_a_conversion_of_another_model(copied):
  checkpoints.edit(copied / "config.json", vocab_size=512)
  with pytest.raises(ValueError, match=r"embed_tokens/embedding: expected \(512, 64\), found"):
    inference.load(copied)


def test_what_cannot_be_exported(source, tmp_path, converted):
  for given, message in (
    (source, "in the released layout already"),
    (tmp_path, "neither a converted directory nor that of a run"),
  ):
    with pytest.raises((ValueError, OSError), match=message):
      exporter.run(given, tmp_path.parent / f"{tmp_path.name}-out", say=quiet)
  with pytest.raises(ValueError, match="a conversion has no average and no steps"):
    exporter.run(converted, tmp_path / "out", weights="ema", say=quiet)


# Where it is written ------------------------------------------------------------------------------


def test_an_output_that_exists_is_left_alone(source, tmp_path):
  out = tmp_path / "out"
  out.mkdir()
  (out / "notes.txt").write_text("mine")
  with pytest.raises(FileExistsError, match="out: exists already; nothing was written"):
    importer.run(source, out, say=quiet)
  assert (out / "notes.txt").read_text() == "mine"
  with pytest.raises(ValueError, match="must not hold each other"):
    importer.run(source, source / "out", say=quiet)


def test_a_disk_without_room(source, tmp_path, monkeypatch):
  usage = shutil.disk_usage(tmp_path)._replace(free=50 * 10**6)
  monkeypatch.setattr(place.shutil, "disk_usage", lambda _: usage)
  with pytest.raises(OSError, match=r"50.0 MB free, but \d+.\d MB are needed; nothing was written"):
    importer.run(source, tmp_path / "out", say=quiet)
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["import", "export"])
def test_a_disk_that_fills_up(verb, source, converted, tmp_path, monkeypatch):
  """The write fails as on a full disk: the error says so, and nothing is left."""
  fail = OSError(errno.ENOSPC, "No space left on device")
  count = iter(range(10**6))

  def full(*_: object) -> None:
    if next(count) > 40:
      raise fail

  if verb == "import":
    monkeypatch.setattr(store, "_write_all", full)
  else:
    monkeypatch.setattr(exporter, "_pwrite", full)
  run, given = (importer.run, source) if verb == "import" else (exporter.run, converted)
  with pytest.raises(OSError, match="out: No space left on device, while writing; nothing is left"):
    run(given, tmp_path / "out", say=quiet)
  assert not list(tmp_path.glob("*out*")) + list(tmp_path.glob(".*out*"))


def test_a_killed_conversion_leaves_nothing_that_looks_finished(source, tmp_path):
  """Killed in the middle; the next one to the same place starts clean."""
  out, partial = tmp_path / "out", tmp_path / ".out.partial"
  slow = (
    "import time\nfrom blip3o_jax.convert import importer, pieces\n"
    "copy = pieces.copy\n"
    "def late(*args):\n  time.sleep(0.05)\n  return copy(*args)\n"
    f"pieces.copy = late\nimporter.run({str(source)!r}, {str(out)!r})\n"
  )
  process = subprocess.Popen([sys.executable, "-c", slow], cwd=ROOT, stderr=subprocess.DEVNULL)
  until = time.monotonic() + 100
  while not list(partial.glob("weights/*/*/0*")) and time.monotonic() < until:
    assert process.poll() is None
    time.sleep(0.02)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert partial.is_dir()
  assert not out.exists()
  assert not store.is_converted(partial)
  (partial / "stale.txt").write_text("of the killed one")
  importer.run(source, out, say=quiet)
  assert not partial.exists()
  assert not (out / "stale.txt").exists()
  assert set(store.read_record(out)["components"]) == set(store.COMPONENTS.values())


def test_the_command_says_errors_in_one_line(source, tmp_path):
  (source / SHARD).unlink()
  command = [*TOOL, "import", "--source", str(source), "--output", str(tmp_path / "out")]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 1
  assert done.stderr.startswith("error: ")
  assert SHARD in done.stderr
  assert "Traceback" not in done.stderr
