"""A run that started from a conversion: what its checkpoint names, resumes from, and exports."""

import dataclasses
import json
from pathlib import Path
import shutil
from typing import Any

import checkpoints
import jax
import numpy as np
import pytest

from blip3o_jax import config
from blip3o_jax.convert import exporter
from blip3o_jax.convert import importer
from blip3o_jax.convert import manifest
from blip3o_jax.convert.source import Take
from blip3o_jax.data.pipeline import Data
from blip3o_jax.systems import blip3o
from blip3o_jax.systems.blip3o import released
from blip3o_jax.systems.blip3o import verbs
from blip3o_jax.systems.parts import loading
from blip3o_jax.train import checkpoint
from blip3o_jax.train import state as train_state
from blip3o_jax.train.run import Train
from blip3o_jax.train.run import parse
from blip3o_jax.train.run import to_config
from blip3o_jax.train.setup import Setup
from blip3o_jax.train.setup import first_state
from blip3o_jax.train.setup import prepare
from blip3o_jax.train.setup import resumed
from blip3o_jax.weights import store

TINY = checkpoints.TINY
TRAINED = ("denoiser/.*", "slots/.*")


def quiet(_: str) -> None:
  """Takes lines about what is done."""


def setup_of(init_from: Any, cfg: blip3o.Config, trainable=TRAINED) -> Setup:
  train = Train(trainable=trainable, init_from=tuple(map(str, init_from)), ema_decay=0.9)
  values = to_config("blip3o", cfg, train, Data(source="shapes"))
  return prepare(parse(values, {"blip3o": blip3o}), blip3o)


def run_of(workdir: Path, setup: Setup) -> Path:
  """A checkpoint of step 3: parameters one more than they began, the average two more."""
  state, _, used = first_state(setup, workdir, resumed(setup, workdir))
  state = state.replace(
    step=train_state.scalar(3, setup.mesh),
    params=jax.tree.map(lambda x: x + 1, state.params),
    ema=jax.tree.map(lambda x: x + 2, state.params),
  )
  record = config.to_dict(setup.run) | {"sources": loading.to_record(used, workdir)}
  with checkpoint.Writer(workdir, setup.run.train.checkpoint, record) as writer:
    writer.save(state)
    writer.wait()
  return workdir


@pytest.fixture
def cfg() -> blip3o.Config:
  """Of the miniature, without the encoder: as with cached features."""
  found, _ = released.read(TINY, "float32")
  return dataclasses.replace(found, parts=("denoiser",))


@pytest.fixture
def run(converted: Path, cfg: blip3o.Config, tmp_path: Path) -> Path:
  return run_of(tmp_path / "run", setup_of([converted], cfg))


def trained(name: str) -> bool:
  return name.startswith(("model.dit.", "model.latent_queries"))


@pytest.mark.parametrize(("weights", "more"), [("raw", 1), ("ema", 2)])
def test_trained_leaves_come_on_top_of_frozen_sources(run, tmp_path, weights, more):
  out = tmp_path / "out"
  exporter.run(run, out, weights=weights, say=quiet)
  before, after = checkpoints.tensors(), checkpoints.tensors(out)
  assert set(after) == set(before)
  for name, value in before.items():
    wanted = value + np.float32(more) if trained(name) else value
    np.testing.assert_array_equal(after[name], wanted, err_msg=name)
  config_json = json.loads((out / "config.json").read_text())
  assert config_json == json.loads((TINY / "config.json").read_text())
  assert verbs.load(out).decoder is not None


def test_a_dtype_for_a_run(run, tmp_path):
  exporter.run(run, tmp_path / "out", dtype="bfloat16", max_shard_size="1GB", say=quiet)
  assert {str(v.dtype) for v in checkpoints.tensors(tmp_path / "out").values()} == {"bfloat16"}
  with pytest.raises(FileNotFoundError, match="no checkpoint of step 7"):
    exporter.run(run, tmp_path / "no", step=7, say=quiet)


def test_a_run_on_a_released_directory(cfg, tmp_path):
  source = checkpoints.copy(tmp_path / "source")
  (source / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
  run = run_of(tmp_path / "run", setup_of([source], cfg))
  exporter.run(run, tmp_path / "out", say=quiet)
  told = (tmp_path / "out" / exporter.LICENCES).read_text().splitlines()
  assert {line.partition(": ")[2] for line in told} == {"apache-2.0 (its card)"}
  after = checkpoints.tensors(tmp_path / "out")
  for name, value in checkpoints.tensors().items():
    np.testing.assert_array_equal(after[name], value + 1 if trained(name) else value)


def test_a_run_of_another_size_says_so(converted, cfg, tmp_path):
  """Twice the blocks in the generator, all new: tiny.json tells it, and the files are cut anew."""
  wide = dataclasses.replace(
    cfg, denoiser=dataclasses.replace(cfg.denoiser, depth=4), slots=6, projector="linear"
  )
  trainable = (*TRAINED, "projector/.*")
  source = f"{converted}#only=backbone+visual+encoder"
  run = run_of(tmp_path / "run", setup_of([source], wide, trainable))
  exporter.run(run, tmp_path / "out", say=quiet)
  found = verbs.load(tmp_path / "out").cfg
  assert (found.denoiser.depth, found.slots, found.projector) == (4, 6, "linear")
  names = set(checkpoints.tensors(tmp_path / "out"))
  assert "model.dit.model.layers.3.gate" in names
  assert "model.down_projector.linear_1.weight" in names


def test_a_pretraining_from_plain_qwen_becomes_a_blip3o(converted, tmp_path):
  """Qwen2.5-VL, the tower and the pixel decoder from elsewhere, a new generator: one model."""
  qwen, decoder = tmp_path / "qwen", tmp_path / "decoder"
  importer.run(checkpoints.plain_qwen(tmp_path / "source"), qwen, say=quiet)
  importer.run(TINY, decoder, take=Take(only=["encoder", "unet", "autoencoder"]), say=quiet)
  shutil.copy(TINY / "tiny.json", qwen)
  base, _ = released.read(qwen, "float32")
  assert base.backbone.vocab_size == 510
  setup = setup_of([decoder, qwen], dataclasses.replace(base, parts=("denoiser",)))
  exporter.run(run_of(tmp_path / "run", setup), tmp_path / "out", say=quiet)
  values = json.loads((tmp_path / "out" / "config.json").read_text())
  assert (values["model_type"], values["vocab_size"]) == ("blip3o_qwen", 510)
  found = verbs.load(tmp_path / "out")
  assert found.decoder is not None
  assert found.tokenizer.image_start == 507


def test_a_run_without_a_model_beneath(tmp_path, cfg):
  cfg = dataclasses.replace(cfg, parts=("visual", "head", "denoiser"), prompt_gradient="full")
  run = run_of(tmp_path / "run", setup_of([], cfg, (".*",)))
  with pytest.raises(ValueError, match="none of its sources is a model; give --tokenizer DIR"):
    exporter.run(run, tmp_path / "no", say=quiet)
  exporter.run(run, tmp_path / "out", tokenizer=TINY, say=quiet)
  names = set(checkpoints.tensors(tmp_path / "out"))
  assert names == {n for n in checkpoints.tensors() if not n.startswith(checkpoints.TOWER)}
  assert released.read(tmp_path / "out", "float32")[0].denoiser == cfg.denoiser


def test_a_run_names_its_frozen_weights_by_their_bytes(run, converted, cfg, tmp_path):
  """A conversion made again, cut otherwise and with other files beside it, is the same source."""
  record = checkpoint.read_record(run)
  (facts,) = record["sources"]
  assert facts["sha"] == store.fingerprint(store.read_manifest(converted))
  moved = tmp_path / "again"
  shutil.copytree(converted, moved)
  (moved / "notes.txt").write_text("new")
  facts["path"] = str(moved)
  (found,) = loading.recorded(run, record)
  assert found.sha == facts["sha"]
  checkpoints.edit(
    moved / store.MANIFEST,
    components={"backbone": {"fingerprint": f"blake3:{'0' * 64}"}},
  )
  with pytest.raises(ValueError, match="whose files changed since"):
    loading.recorded(run, record)
  facts["sha"] = "0" * 64  # as an earlier version recorded it
  with pytest.raises(ValueError, match=r"cannot be compared; import it with --hash sha256$"):
    loading.recorded(run, record)
  setup = setup_of([converted], cfg)
  state, frozen, _ = first_state(setup, run, resumed(setup, run))
  assert int(state.step) == 3
  np.testing.assert_array_equal(
    frozen["backbone"]["embed_tokens"]["embedding"],
    checkpoints.tensors()["model.embed_tokens.weight"],
  )


# What is in it ------------------------------------------------------------------------------------


def test_what_is_in_a_directory(run, converted):
  kinds = {}
  for directory in (TINY, converted, run):
    found = manifest.describe(directory)
    kinds[found["kind"].split(",")[0]] = found
    text = "\n".join(manifest.lines(found))
    assert "generation" in text
    assert "dit.dim: 64, 4b has 1792" in text
  one, two, three = kinds.values()
  assert list(kinds) == ["released layout", "converted", "run of blip3o"]
  for name, facts in one["components"].items():
    again = two["components"][name]
    assert {k: again[k] for k in ("leaves", "parameters", "bytes", "dtypes")} == {
      k: facts[k] for k in ("leaves", "parameters", "bytes", "dtypes")
    }
    assert len(again["fingerprint"]) == len("blake3:") + 64
  assert (three["step"], three["average"], set(three["components"])) == (3, True, {"generation"})
  assert json.loads(json.dumps(kinds)) == kinds


def test_what_is_in_none(tmp_path):
  with pytest.raises(FileNotFoundError, match="no files of a model that is known"):
    manifest.describe(tmp_path)
