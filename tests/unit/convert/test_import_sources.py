"""Every kind of source that is imported, and what becomes of its vocabulary, names and licences."""

import json
from pathlib import Path
import shutil

import checkpoints
from ml_dtypes import bfloat16
import numpy as np
import pytest
from safetensors.numpy import save_file

from blip3o_jax.convert import exporter
from blip3o_jax.convert import importer
from blip3o_jax.convert import licences
from blip3o_jax.convert.source import Take
from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.systems import blip3o
from blip3o_jax.systems.blip3o import released
from blip3o_jax.systems.blip3o import sizes as released_sizes
from blip3o_jax.systems.blip3o.prompts import SPECIAL
from blip3o_jax.systems.parts import diffusers_files
from blip3o_jax.weights import store

TINY = checkpoints.TINY
TOWER = checkpoints.TOWER


@pytest.fixture
def said():
  """The lines that a conversion says."""
  return []


def bring(source: Path, output: Path, said: list[str], **options) -> store.Arrays:
  importer.run(source, output, say=said.append, **options)
  return store.Arrays(output)


def back(converted: Path, output: Path) -> Path:
  exporter.run(converted, output, say=lambda _: None)
  return output


def whole(arrays: store.Arrays, path: str) -> np.ndarray:
  return arrays.read(path, tuple(slice(None) for _ in arrays[path]))


# Qwen2.5-VL ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("newer", [False, True], ids=["released", "transformers>=4.52"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_plain_qwen_comes_back(tmp_path, said, newer, tied):
  source = checkpoints.plain_qwen(tmp_path / "qwen", newer=newer, tied=tied)
  arrays = bring(source, tmp_path / "converted", said, vocab_size="keep")
  assert set(arrays.manifest["components"]) == {"backbone", "visual"}
  assert ("backbone/lm_head/kernel" in arrays) is not tied
  out = back(tmp_path / "converted", tmp_path / "out")
  checkpoints.same_tensors(source, out)
  for file in source.glob("*.json"):
    assert json.loads((out / file.name).read_text()) == json.loads(file.read_text()), file.name


@pytest.mark.parametrize("tied", [False, True])
def test_plain_qwen_gets_the_vocabulary(tmp_path, said, tied):
  """507 ids and three more: 600 rows are cut to 510, the new ones are the mean of the 507."""
  source = checkpoints.plain_qwen(tmp_path / "qwen", tied=tied)
  before = checkpoints.tensors(source)["model.embed_tokens.weight"]
  arrays = bring(source, tmp_path / "out", said)
  table = whole(arrays, "backbone/embed_tokens/embedding")
  assert table.shape == (510, 64)
  assert table[:507].tobytes() == before[:507].tobytes()
  mean = before[:507].astype(np.float64).mean(0).astype(bfloat16)
  for row in table[507:]:
    np.testing.assert_array_equal(row, mean)
  if not tied:
    head = checkpoints.tensors(source)["lm_head.weight"]
    kernel = whole(arrays, "backbone/lm_head/kernel")
    np.testing.assert_array_equal(kernel.T, head[:510])  # its padding rows are kept
  ids = Tokenizer.load(tmp_path / "out", SPECIAL)
  assert (ids.image_start, ids.image_end, ids.image, ids.size) == (507, 508, 509, 510)
  assert released.read(tmp_path / "out", "float32")[0].backbone.vocab_size == 510
  assert any("600 -> 510 rows" in line and "[IMG]" in line for line in said)
  written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
  assert written["additional_special_tokens"] == ["[IMG]", "[/IMG]", "<image>"]
  again = checkpoints.tensors(back(tmp_path / "out", tmp_path / "back"))
  assert again["model.embed_tokens.weight"].tobytes() == table.tobytes()
  index = json.loads((tmp_path / "back" / "model.safetensors.index.json").read_text())
  assert index["metadata"]["total_size"] == sum(v.nbytes for v in again.values())


def test_a_vocabulary_that_grows(tmp_path, said):
  source = checkpoints.plain_qwen(tmp_path / "qwen")
  arrays = bring(source, tmp_path / "out", said, vocab_size="640")
  table, head = (
    whole(arrays, f"backbone/{p}") for p in ("embed_tokens/embedding", "lm_head/kernel")
  )
  assert (table.shape, head.shape) == ((640, 64), (64, 640))
  before = checkpoints.tensors(source)
  np.testing.assert_array_equal(head.T[:600], before["lm_head.weight"])
  mean = before["lm_head.weight"][:507].astype(np.float64).mean(0).astype(bfloat16)
  np.testing.assert_array_equal(head.T[639], mean)
  np.testing.assert_array_equal(table[507], table[639])


@pytest.mark.parametrize(
  ("asked", "message"),
  [("many", "expected a number of rows, keep or auto"), ("508", "the tokenizer has 510 ids")],
)
def test_a_vocabulary_that_does_not_fit(tmp_path, said, asked, message):
  source = checkpoints.plain_qwen(tmp_path / "qwen")
  with pytest.raises(ValueError, match=message):
    bring(source, tmp_path / "out", said, vocab_size=asked)
  assert not (tmp_path / "out").exists()


def test_a_head_that_is_tied_and_there_all_the_same(tmp_path, said):
  """Equal to the embedding it is written back; another one is dropped, and that is said."""
  source = checkpoints.plain_qwen(tmp_path / "qwen", tied=True)
  values = checkpoints.tensors(source)
  values["lm_head.weight"] = values["model.embed_tokens.weight"].copy()
  checkpoints.write(source, values, shards=2)
  bring(source, tmp_path / "same", said, vocab_size="keep")
  assert not any("lm_head" in line for line in said)
  checkpoints.same_tensors(source, back(tmp_path / "same", tmp_path / "back"))
  values["lm_head.weight"][5] += 1
  checkpoints.write(source, values, shards=2)
  arrays = bring(source, tmp_path / "other", said, vocab_size="keep")
  assert any(
    "dropped: lm_head.weight" in line and "not the values of model.embed_tokens.weight" in line
    for line in said
  )
  assert "backbone/lm_head/kernel" not in arrays


# The EVA tower ------------------------------------------------------------------------------------


def tower(folder: Path, *, split: bool = False) -> Path:
  """The tower alone, as safetensors; with `split` the biases of the original EVA files."""
  folder.mkdir()
  shutil.copy(TINY / "eva_clip_vision_tower" / "config.json", folder)
  values = {
    n.removeprefix(TOWER): v for n, v in checkpoints.tensors().items() if n.startswith(TOWER)
  }
  for name in [n for n in values if split and n.endswith("qkv.bias")]:
    q, _, v = np.split(values.pop(name), 3)
    stem = name.removesuffix("qkv.bias")
    values |= {f"{stem}q_bias": q, f"{stem}v_bias": v}
  checkpoints.write(folder, values)
  return folder


def test_the_tower_alone_in_a_pickle(converted, tmp_path, said):
  source = TINY / "eva_clip_vision_tower"
  with pytest.raises(ValueError, match=r"pytorch_model\.bin: a pickle.*--allow-pickle"):
    bring(source, tmp_path / "no", said)
  pytest.importorskip("torch")
  arrays = bring(source, tmp_path / "out", said, take=Take(allow_pickle=True))
  prints = [
    store.read_manifest(d)["components"]["encoder"]["fingerprint"]
    for d in (converted, tmp_path / "out")
  ]
  assert prints[0] == prints[1]
  assert set(arrays.manifest["components"]) == {"encoder"}
  out = back(tmp_path / "out", tmp_path / "back")
  assert [p.name for p in out.glob("*.safetensors")] == ["model.safetensors"]
  wanted = checkpoints.tensors(tower(tmp_path / "wanted"))
  for name, value in checkpoints.tensors(out).items():
    np.testing.assert_array_equal(value, wanted[name])


def test_the_biases_of_the_original_files(tmp_path, said):
  source = tower(tmp_path / "eva", split=True)
  arrays = bring(source, tmp_path / "out", said)
  fused = checkpoints.tensors()[f"{TOWER}blocks.1.attn.qkv.bias"]
  for i, name in enumerate("qkv"):
    bias = whole(arrays, f"encoder/tower/blocks/attn/{name}_proj/bias")[1]
    wanted = np.zeros(48) if name == "k" else fused[48 * i : 48 * i + 48]
    np.testing.assert_array_equal(bias, wanted)
  checkpoints.same_tensors(source, back(tmp_path / "out", tmp_path / "back"))


def test_a_tower_beside_the_main_files(tmp_path, said):
  source = checkpoints.copy(tmp_path / "source", decoder=False)
  values = {n: v for n, v in checkpoints.tensors().items() if not n.startswith(TOWER)}
  checkpoints.write(source, values)
  bring(source, tmp_path / "without", said)
  assert any(line.startswith("no EVA tower") for line in said)
  tower(source / "eva_clip_vision_tower")
  arrays = bring(source, tmp_path / "out", said)
  assert arrays.manifest["components"]["encoder"]["files"] == [
    "eva_clip_vision_tower/model.safetensors"
  ]
  out = back(tmp_path / "out", tmp_path / "back")
  checkpoints.same_tensors(source, out)
  checkpoints.same_tensors(source / "eva_clip_vision_tower", out / "eva_clip_vision_tower")


def test_the_towers_pickle_is_skipped_where_the_shards_hold_it(tmp_path, said):
  bring(TINY, tmp_path / "out", said)
  line = next(line for line in said if line.startswith("eva_clip_vision_tower/pytorch_model.bin"))
  assert "skipped, repeats 40 of the 40 tensors" in line
  assert not list((tmp_path / "out").rglob("*.bin"))


# UNet and autoencoder -----------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["", ".bf16", ".fp16"])
def test_one_network_in_the_diffusers_layout(tmp_path, said, variant):
  stem = diffusers_files.STEM
  for name, component in (("unet", "unet"), ("vae", "autoencoder")):
    source = tmp_path / name
    source.mkdir()
    home = TINY / diffusers_files.FOLDER / name
    shutil.copy(home / "config.json", source)
    dtype = {"": np.float32, ".bf16": bfloat16, ".fp16": np.float16}[variant]
    values = {n: v.astype(dtype) for n, v in checkpoints.tensors(home, stem).items()}
    save_file(values, source / f"{stem}{variant}.safetensors")
    arrays = bring(source, tmp_path / f"{name}-out", said)
    assert set(arrays.manifest["components"]) == {component}
    out = back(tmp_path / f"{name}-out", tmp_path / f"{name}-back")
    assert (out / f"{stem}{variant}.safetensors").is_file()
    checkpoints.same_tensors(source, out, stem)


def test_a_decoder_alone_in_variant_shards(tmp_path, said):
  """The folder above unet and vae; the UNet in shards of the variant bf16."""
  source, stem = tmp_path / "decoder", diffusers_files.STEM
  shutil.copytree(TINY / diffusers_files.FOLDER, source, ignore=shutil.ignore_patterns("io.*"))
  values = checkpoints.tensors(source / "unet", stem)
  checkpoints.write(source / "unet", values, shards=2, stem=f"{stem}.bf16")
  for name in (f"{stem}.safetensors", f"{stem}.bf16.safetensors.index.json"):
    path = source / "unet" / name
    if path.suffix == ".json":
      path.rename(source / "unet" / f"{stem}.safetensors.index.bf16.json")
    else:
      path.unlink(missing_ok=True)
  bring(source, tmp_path / "out", said)
  out = back(tmp_path / "out", tmp_path / "back")
  assert (out / "unet" / f"{stem}.safetensors.index.bf16.json").is_file()
  for name in ("unet", "vae"):
    checkpoints.same_tensors(source / name, out / name, stem)
  assert (out / "scheduler" / "scheduler_config.json").is_file()


# What is left out, and what is taken --------------------------------------------------------------


def test_the_leftover_autoencoder_is_dropped_and_said(tmp_path, said):
  source = checkpoints.copy(tmp_path / "source", decoder=False)
  extra = {f"model.vae.decoder.{i}.weight": np.ones(3, np.float32) for i in range(5)}
  checkpoints.write(source, checkpoints.tensors() | extra, shards=2)
  arrays = bring(source, tmp_path / "out", said)
  assert any("dropped: model.vae, 5 tensor(s), the autoencoder of an earlier" in s for s in said)
  assert arrays.manifest["dropped"] == {"model.vae": 5}
  out = back(tmp_path / "out", tmp_path / "back")
  index = json.loads((out / "model.safetensors.index.json").read_text())
  assert index["metadata"]["total_size"] == sum(v.nbytes for v in checkpoints.tensors(out).values())
  assert set(checkpoints.tensors(out)) == set(checkpoints.tensors())


def test_some_components_alone(tmp_path, said):
  arrays = bring(TINY, tmp_path / "out", said, take=Take(only=["generation", "unet"]))
  assert set(arrays.manifest["components"]) == {"generation", "unet"}
  with pytest.raises(ValueError, match="'dit' is no component; there are backbone, visual"):
    bring(TINY, tmp_path / "no", said, take=Take(only=["dit"]))


def test_licences_travel(tmp_path, said):
  source = checkpoints.copy(tmp_path / "source", decoder=False)
  (source / "LICENSE").write_text("as is")
  (source / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\n")
  arrays = bring(source, tmp_path / "out", said)
  assert arrays.manifest["licences"] == {"files": "LICENSE", "card": "apache-2.0"}
  told = {facts["licence"]["name"] for facts in arrays.manifest["components"].values()}
  assert told == {"apache-2.0 (its card)"}
  assert not any("licence unknown" in line for line in said)
  (source / "README.md").unlink()
  bring(source, tmp_path / "bare", said)
  assert any("backbone: licence unknown here" in line for line in said)
  out = back(tmp_path / "out", tmp_path / "back")
  assert (out / "LICENSE").read_text() == "as is"
  assert "backbone: apache-2.0 (its card)\n" in (out / exporter.LICENCES).read_text()
  out = back(tmp_path / "bare", tmp_path / "bare-back")
  assert "backbone: unknown\n" in (out / exporter.LICENCES).read_text()


@pytest.mark.parametrize(("size", "commercial"), [("4b", False), ("8b", True)])
def test_a_non_commercial_licence_is_said(size, commercial):
  cfg = released_sizes.released(size)
  found = blip3o.licence("backbone", cfg, 0)
  assert found.commercial is commercial
  facts = {"licence": {"name": found.name, "commercial": found.commercial}}
  lines = licences.lines({"backbone": facts})
  assert bool(lines) is not commercial
  assert all("NON-COMMERCIAL" in line for line in lines)
