"""What a Nexus-Gen starts from: FLUX transformers under three names, text encoders; a run out."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import checkpoints
import jax.numpy as jnp
import nexus_files
import numpy as np
import pytest
from safetensors.numpy import save_file

from blip3o_jax import systems
from blip3o_jax import trees
from blip3o_jax.convert import exporter
from blip3o_jax.convert import importer
from blip3o_jax.convert import manifest
from blip3o_jax.convert import runs
from blip3o_jax.convert.parameters import Layers
from blip3o_jax.convert.source import Take
from blip3o_jax.convert.source import look
from blip3o_jax.models import clip_text
from blip3o_jax.models import t5_encoder
from blip3o_jax.systems import nexus_gen
from blip3o_jax.systems.nexus_gen import constants
from blip3o_jax.systems.parts import layout
from blip3o_jax.systems.parts import loading
from blip3o_jax.weights import store
from blip3o_jax.weights import table
from blip3o_jax.weights.rows import clip_text as clip_rows
from blip3o_jax.weights.rows import t5_encoder as t5_rows

BFL, DIFFUSERS, DIFFSYNTH = "bfl", "diffusers", "diffsynth"


def write(folder: Path, naming: str, order: str = "scale_shift", prefix: str = "") -> Path:
  """A FLUX transformer by itself, as those who name it so lay it out."""
  tiny = json.loads((nexus_files.TINY / "tiny.json").read_text())["dit"]
  options = {"final": order} if naming == DIFFSYNTH else {}
  values = {prefix + n: v for n, v in nexus_files.renamed(naming, **options).items()}
  if naming == DIFFUSERS:
    checkpoints.write(folder / "transformer", values, shards=2, stem="diffusion_pytorch_model")
    told = {
      "_class_name": "FluxTransformer2DModel",
      "_diffusers_version": "0.30.0",
      "patch_size": 1,
      "in_channels": 64,
      "num_layers": 2,
      "num_single_layers": 3,
      "attention_head_dim": 16,
      "num_attention_heads": 3,
      "joint_attention_dim": 96,
      "pooled_projection_dim": 24,
      "guidance_embeds": True,
      "axes_dims_rope": [4, 6, 6],
    }
    (folder / "transformer" / "config.json").write_text(json.dumps(told))
    return folder
  folder.mkdir()
  checkpoints.write(folder, values, stem="flux1-dev")
  said = {"final_norm_out": order} if naming == DIFFSYNTH else {}
  (folder / "tiny.json").write_text(json.dumps({"dit": tiny | said}))
  return folder


@pytest.fixture(scope="module")
def cfg() -> Any:
  found = nexus_gen.parts(layout.Files(nexus_files.TINY)).cfg
  return dataclasses.replace(found, parts=("visual", "generator", "editor"), stage="editing")


def filled(cfg: Any, folder: Path) -> dict[str, np.ndarray]:
  """{path: array} of the decoders' leaves that a folder fills."""
  leaves = {
    path: leaf
    for path, leaf in trees.flatten(abstract(cfg)).items()
    if path.startswith(("generator", "editor"))
  }
  found, left = loading.fill(nexus_gen, cfg, loading.resolve([str(folder)]), leaves, leaves)
  assert left
  assert not [path for path in left if "/dit/" in path]
  return {path: np.asarray(value) for path, value in found.items()}


def abstract(cfg: Any) -> Any:
  from flax import nnx

  from blip3o_jax import layers

  return nnx.to_pure_dict(nnx.state(layers.abstract(lambda rngs: nexus_gen.build(cfg, rngs))))


@pytest.mark.parametrize(
  ("naming", "order", "prefix"),
  [
    (BFL, "shift_scale", ""),
    (BFL, "shift_scale", "model.diffusion_model."),
    (DIFFUSERS, "scale_shift", ""),
    (DIFFSYNTH, "scale_shift", ""),
    (DIFFSYNTH, "shift_scale", ""),
  ],
)
def test_a_transformer_fills_both_decoders(cfg, tmp_path, warnings, naming, order, prefix):
  source = write(tmp_path / "flux", naming, order, prefix)
  assert systems.of(source) == "nexus_gen"
  wanted = nexus_files.params(nexus_files.transformer())
  found = filled(cfg, source)
  assert len(found) == 2 * len(wanted)
  for path, value in wanted.items():
    for which in ("generator", "editor"):
      np.testing.assert_array_equal(found[f"{which}/dit/{path}"], value, err_msg=path)
  said = f"in the names of {naming}, final modulation {order.replace('_', ', ')}"
  assert any(said in line for line in warnings)


def test_a_conversion_of_a_transformer_fills_a_decoder(cfg, tmp_path):
  source = write(tmp_path / "flux", BFL)
  said: list[str] = []
  take = Take(only=["generator"])
  importer.run(source, tmp_path / "converted", take, say=said.append)
  assert any("in the names of bfl, final modulation shift, scale" in line for line in said)
  cfg = dataclasses.replace(cfg, parts=("visual", "generator"), stage="generation")
  found = filled(cfg, tmp_path / "converted")
  for path, value in nexus_files.params(nexus_files.transformer()).items():
    np.testing.assert_array_equal(found[f"generator/dit/{path}"], value, err_msg=path)
  exporter.run(tmp_path / "converted", tmp_path / "out", say=lambda _: None)
  checkpoints.same_tensors(source, tmp_path / "out", "flux1-dev")


def test_an_order_that_nobody_tells_is_asked_for(cfg, tmp_path):
  source = write(tmp_path / "flux", DIFFSYNTH)
  (source / "tiny.json").write_text("{}")
  with pytest.raises(ValueError, match=r'"final_norm_out": "scale_shift".*"shift_scale"'):
    filled(cfg, source)


def test_a_wrong_size_of_a_transformer_is_named(cfg, tmp_path):
  source = write(tmp_path / "flux", DIFFUSERS)
  checkpoints.edit(source / "transformer" / "config.json", num_single_layers=4)
  with pytest.raises(ValueError, match=r"single blocks is 4, but the tensors have 3"):
    filled(cfg, source)
  checkpoints.edit(source / "transformer" / "config.json", num_single_layers=3, patch_size=2)
  with pytest.raises(ValueError, match="patch_size 2 is not built"):
    filled(cfg, source)


# The null condition ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory, fill: Any) -> Path:
  """FLUX.1-dev's two text encoders, random, as wide as the miniature wants them."""
  home = tmp_path_factory.mktemp("encoders") / "FLUX.1-dev"
  clip = clip_text.Config(40, 77, 24, 1, 2, 32, activation="quick_gelu")
  second = t5_encoder.Config(30, 96, 1, 2, 16, 48)
  for folder, made, rows in (
    (constants.CLIP, lambda: clip_text.ClipText(clip, rngs=_rngs()), clip_rows.released_rows()),
    (constants.T5, lambda: t5_encoder.T5Encoder(second, rngs=_rngs()), t5_rows.rows()),
  ):
    (home / folder).mkdir(parents=True)
    flat = trees.flatten(_params(fill(made)))
    prefix = "text_model." if folder == constants.CLIP else ""
    tensors = {prefix + name: value for name, value in table.export(rows, flat)}
    save_file(tensors, home / folder / "model.safetensors")
  told = {"vocab_size": 40, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1}
  told |= {"num_attention_heads": 2, "max_position_embeddings": 77, "hidden_act": "quick_gelu"}
  (home / constants.CLIP / "config.json").write_text(json.dumps(told))
  told = {"vocab_size": 30, "d_model": 96, "num_layers": 1, "num_heads": 2, "d_kv": 16, "d_ff": 48}
  told |= {"feed_forward_proj": "gated-gelu"}
  (home / constants.T5 / "config.json").write_text(json.dumps(told))
  return home


def _rngs() -> Any:
  from flax import nnx

  return nnx.Rngs(0)


def _params(module: Any) -> Any:
  from flax import nnx

  return nnx.to_pure_dict(nnx.state(module))


def test_an_import_makes_the_null_condition(encoders, tmp_path):
  source = nexus_files.copy(tmp_path / "source", null=False)
  (source / "FLUX.1-dev").symlink_to(encoders)
  described = nexus_gen.parts(layout.Files(source))
  assert described.cfg.parts[-1] == "constants"
  said: list[str] = []
  importer.run(source, tmp_path / "converted", Take(only=["constants"]), say=said.append)
  assert any("null_condition.safetensors: computed from" in line for line in said)
  arrays = store.Arrays(tmp_path / "converted")
  exporter.run(tmp_path / "converted", tmp_path / "out", say=lambda _: None)
  written = checkpoints.tensors(tmp_path / "out", "null_condition")
  assert {name: v.shape for name, v in written.items()} == {"pooled": (24,), "context": (20, 96)}
  for name, value in written.items():
    whole = tuple(slice(0, n) for n in value.shape)
    np.testing.assert_array_equal(arrays.read(f"constants/{name}", whole), value)
  assert np.ptp(written["context"], 0).min() > 0.01  # the token that ends it is not the padding
  np.testing.assert_array_equal(written["pooled"], constants.pooled(encoders / constants.CLIP))


def test_the_tool_writes_the_same_file(encoders, tmp_path, capsys):
  from tools import null_condition

  out = tmp_path / "null_condition.safetensors"
  folders = ["--clip", str(encoders / constants.CLIP), "--t5", str(encoders / constants.T5)]
  assert null_condition.main([*folders, "--tokens", "20", "--output", str(out)]) == 0
  found = checkpoints.tensors(tmp_path, "null_condition")
  np.testing.assert_array_equal(found["context"], constants.context(encoders / constants.T5, 20))
  assert null_condition.main([*folders[:3], str(tmp_path), "--output", str(out)]) == 1
  assert "no config.json of a text encoder" in capsys.readouterr().err


# A run -------------------------------------------------------------------------------------------


def base_of(folder: Path) -> tuple[layout.Base, Any]:
  """A directory as a run names it, and its leaves."""
  found = look(folder)
  entries = [manifest.entry(found.system, p, set(p.tensors)) for p in found.parts]
  whole = found.cfg is not None and any(not p["folder"] for p in entries)
  return layout.Base(folder, tuple(entries), whole), found.leaves


def test_a_run_that_began_with_a_qwen_and_a_flux(cfg, tmp_path, monkeypatch):
  """The generation decoder is written; the editor, which has a transformer alone, is not."""
  qwen = nexus_files.plain_qwen(tmp_path / "qwen")
  flux = write(tmp_path / "flux", BFL)
  cfg = dataclasses.replace(cfg, parts=("visual", "generator"), stage="generation")
  bases, leaves = zip(*(base_of(folder) for folder in (qwen, flux)), strict=True)
  fresh = {p: s for p, s in trees.flatten(abstract(cfg)).items() if p.startswith("generator/")}
  trained = Trained({p: np.full(s.shape, 0.5, np.float32) for p, s in fresh.items()})
  every = Layers([(each, set(each)) for each in (*leaves, trained)])
  export = nexus_gen.exported(cfg, bases, list(every), None)
  parts = tuple({"system": "nexus_gen", **part} for part in export.parts)
  kept = Layers([(every, set(every) - export.dropped)])
  found = runs.Found(
    "nexus_gen",
    kept,
    dataclasses.replace(export, parts=parts),
    cfg,
    frozenset(fresh),
    nexus_gen.COMPONENTS,
    {},
  )
  with monkeypatch.context() as patch:
    patch.setattr(exporter.runs, "of_run", lambda *_: found)
    patch.setattr(exporter.checkpoint, "is_run", lambda _: True)
    exporter.run(tmp_path / "run", tmp_path / "out", say=lambda _: None)
  out = tmp_path / "out"
  assert sorted(p.name for p in out.glob("*.safetensors")) == [
    "generation_decoder.safetensors",
    "model.safetensors",
  ]
  written = checkpoints.tensors(out, "generation_decoder")
  assert set(written) == set(nexus_files.decoder())
  assert all((value == 0.5).all() for value in written.values())
  checkpoints.same_tensors(qwen, out)
  assert systems.of(out) == "nexus_gen"  # by tiny.json, which the run's sizes are in
  again = nexus_gen.parts(layout.Files(out)).cfg
  assert again.parts == ("visual", "generator")
  assert (again.flux, again.merger_depth, again.slots) == (cfg.flux, 1, 81)


class Trained(dict):
  """Leaves in memory, as `Layers` reads them."""

  def __getitem__(self, path: str) -> tuple[int, ...]:
    return super().__getitem__(path).shape

  def dtype(self, path: str) -> np.dtype:
    return super().__getitem__(path).dtype

  def read(self, path: str, index: Any) -> np.ndarray:
    return np.asarray(jnp.asarray(super().__getitem__(path))[index])
