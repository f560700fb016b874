"""Which system a folder is of: each kind that is known, those of others, and those of two."""

import json
from pathlib import Path
import shutil

import checkpoints
import numpy as np
import pytest
from safetensors.numpy import save_file

from blip3o_jax import systems
from blip3o_jax.systems import blip3o
from blip3o_jax.systems import pixels
from blip3o_jax.systems.parts import diffusers_files
from blip3o_jax.systems.parts import layout

TINY = checkpoints.TINY
DECODER = TINY / diffusers_files.FOLDER


def qwen(folder: Path, *more: str, **config: str) -> Path:
  """A Qwen2.5-VL by its config.json, with one tensor of each name."""
  folder.mkdir()
  values = json.loads((TINY / "config.json").read_text())
  values = {k: v for k, v in values.items() if k not in ("architectures", "n_query")}
  (folder / "config.json").write_text(json.dumps(values | {"model_type": "qwen2_5_vl"} | config))
  names = ("model.embed_tokens.weight", "visual.patch_embed.proj.weight", "lm_head.weight", *more)
  save_file({name: np.zeros(1, np.float32) for name in names}, folder / "model.safetensors")
  return folder


@pytest.mark.parametrize(
  ("folder", "name"),
  [
    (TINY, "blip3o"),
    (TINY / "eva_clip_vision_tower", "blip3o"),
    (DECODER, "pixels"),
    (DECODER / "unet", "pixels"),
    (DECODER / "vae", "pixels"),
  ],
)
def test_a_folder_is_of_one_system(folder, name):
  assert systems.of(folder) == name


def test_a_plain_qwen_and_a_tower_without_a_config(tmp_path):
  assert systems.of(qwen(tmp_path / "qwen")) == "blip3o"
  (tmp_path / "eva").mkdir()
  save_file({"cls_token": np.zeros(1, np.float32)}, tmp_path / "eva" / "model.safetensors")
  assert systems.of(tmp_path / "eva") == "blip3o"


def looked_for(error: pytest.ExceptionInfo[ValueError]) -> bool:
  """Whether an error says what every system looked for."""
  return all(f"{n}: {s.LOOKS_FOR}" in str(error.value) for n, s in systems.SYSTEMS.items())


def test_a_folder_of_another_family_is_refused(tmp_path):
  """A reward model is a Qwen2.5-VL with tensors more, a MiniGPT-5 a llama with a Q-Former."""
  more = qwen(tmp_path / "more", "v_head.summary.weight")
  mini = qwen(tmp_path / "mini", "query_tokens", model_type="llama")
  for folder, found in ((more, "qwen2_5_vl"), (mini, "llama")):
    with pytest.raises(
      ValueError, match=f"no system that is known; .*model_type '{found}'"
    ) as error:
      systems.of(folder)
    assert looked_for(error)


def test_a_folder_that_two_systems_claim(monkeypatch):
  monkeypatch.setitem(systems.SYSTEMS, "other", pixels)
  with pytest.raises(ValueError, match="pixels and other both take it for theirs") as error:
    systems.of(DECODER)
  assert looked_for(error)


def test_a_folder_without_anything(tmp_path):
  with pytest.raises(FileNotFoundError, match="no files of a model that is known"):
    systems.of(tmp_path)
  with pytest.raises(FileNotFoundError, match="nowhere: no such directory"):
    systems.of(tmp_path / "nowhere")


def test_a_pixel_decoder_beside_a_model_is_seen_by_both():
  """What is shared knowledge: the same folders, read through either system."""
  found = [
    {part.kind: (part.folder, part.shapes()) for part in s.parts(layout.Files(TINY)).parts}
    for s in (blip3o, pixels)
  ]
  assert set(found[1]) == {"unet", "autoencoder"}
  for kind, facts in found[1].items():
    assert found[0][kind] == facts


def test_names_are_read_without_the_shards(tmp_path):
  shutil.copy(TINY / "model.safetensors.index.json", tmp_path)
  names = layout.Files(tmp_path).names()
  assert "model.latent_queries" in names
  assert layout.Files(tmp_path / "none").names() == frozenset()
