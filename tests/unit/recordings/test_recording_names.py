"""Names, kinds, bars and tolerances of recordings."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from blip3o_jax.verify import recordings
from blip3o_jax.verify import verify
from blip3o_jax.weights.safetensors import Tensors

TINY = Path(__file__).parents[2] / "data" / "tiny-blip3o"
SYSTEM, DECODER = TINY / "io.safetensors", TINY / "diffusion-decoder" / "io.safetensors"


def test_kinds_are_told_from_names():
  assert recordings.kind_of(Tensors(SYSTEM)) == "system"
  assert recordings.kind_of(Tensors(DECODER)) == "decoder"
  assert recordings.kind_of(["null_features"]) == "decoder"
  assert recordings.kind_of(["gen3.noise"]) == "system"


@pytest.mark.parametrize("file", [SYSTEM, DECODER])
def test_every_recorded_name_is_an_input_or_an_output(file):
  tensors = Tensors(file)
  found = recordings.calls(tensors, str(file))
  inputs = {n for call, _ in found.values() for n in call.inputs}
  outputs = [n for _, wanted in found.values() for n in wanted]
  assert inputs | set(outputs) == set(tensors)
  assert len(outputs) == len(set(outputs)) == (29 if file == SYSTEM else 8)
  assert not inputs & set(outputs)


def test_all_faults_at_once():
  recorded = ["dit.x", "dit.velocity", "dit.velocty", "eva.pooled", "gen0.features"]
  with pytest.raises(ValueError, match=r"a.safetensors: 6 fault\(s\)") as caught:
    recordings.calls(recorded, "a.safetensors")
  message = str(caught.value)
  for fault in (
    "dit.timestep is missing, the input of dit.velocity",
    "dit.z is missing",
    "eva.pixel_values is missing",
    "gen0.prompt_ids is missing",
    "gen0.noise is missing",
    "dit.velocty is not a name of a recording; near: dit.velocity",
  ):
    assert fault in message


def test_nothing_to_compare():
  with pytest.raises(ValueError, match=r"holds no recorded output; expected some of dit\.timestep"):
    recordings.calls(["dit.x", "dit.timestep", "dit.z"], "file")
  with pytest.raises(ValueError, match="holds no recorded output"):
    recordings.calls([], "file")


def test_the_two_kinds_do_not_mix():
  with pytest.raises(ValueError, match=r"eva\.pooled is not a name of a recording"):
    recordings.calls(["vae.image", "vae.mean", "eva.pooled", "eva.pixel_values"], "file")


@pytest.mark.parametrize(
  ("name", "bar"),
  [
    ("und.greedy_tokens", 0),
    ("train.timesteps", 0),
    ("train.loss", 2e-6),
    ("gen7.query_hidden", 3e-6),
    ("gen7.features_cfg1_8steps", 5e-6),
    ("vae.decoded", 4e-6),
    ("loop.image", 2e-6),
    ("train.grad.dit.model.layers.1.gate", 1.2e-5),
    ("unheard.of", 1e-5),
  ],
)
def test_bars(name, bar):
  assert recordings.bar(name) == bar
  assert recordings.tolerance(name, "float32") == 1.5 * bar


def test_tolerances_in_bfloat16():
  assert recordings.tolerance("und.logits", "bfloat16") > 1e-2
  assert recordings.tolerance("train.grad.latent_queries", "bfloat16") > 0.1
  for name in ("und.position_ids", "loop.timesteps", "train.sigmas", "vae.decoded"):
    same = recordings.tolerance(name, "float32")
    assert recordings.tolerance(name, "bfloat16") == same


def test_tolerances_of_the_user():
  given = [recordings.parse_tolerance(text) for text in ("1e-3", "train.grad.*=0.5", "*.loss=0")]
  assert recordings.tolerance("dit.velocity", "float32", given) == 1e-3
  assert recordings.tolerance("train.grad.latent_queries", "float32", given) == 0.5
  assert recordings.tolerance("train.loss", "float32", given) == 0
  # What must be equal stays so unless it is named.
  assert recordings.tolerance("und.greedy_tokens", "float32", given) == 0
  named = [recordings.parse_tolerance("und.greedy_tokens=0.1")]
  assert recordings.tolerance("und.greedy_tokens", "float32", named) == 0.1


@pytest.mark.parametrize(
  ("text", "message"),
  [("much", "expected a number or NAME=number"), ("a=-1", "expected 0 or more"), ("nan", "0 or")],
)
def test_tolerances_that_are_none(text, message):
  with pytest.raises(ValueError, match=message):
    recordings.parse_tolerance(text)


def test_damaged_recordings_are_named_before_a_model_is_read(tmp_path):
  recorded = verify.read(DECODER)
  for change, message in (
    ({"features": np.zeros((1, 3, 48), np.float32)}, "features: features of shape"),
    ({"loop.noise": np.full((1, 4, 16, 16), np.nan, np.float32)}, "the input loop.noise holds NaN"),
  ):
    with pytest.raises(ValueError, match=message):
      next(iter(verify.verify("/absent", recorded | change)))
  with pytest.raises(FileNotFoundError, match="no such file"):
    verify.read(tmp_path / "absent.safetensors")
  cut = tmp_path / "cut.safetensors"
  cut.write_bytes(DECODER.read_bytes()[:-100])
  with pytest.raises(ValueError, match="truncated"):
    verify.read(cut)
  save_file({}, tmp_path / "empty.safetensors")
  with pytest.raises(ValueError, match="holds no recorded output"):
    verify.check(verify.read(tmp_path / "empty.safetensors"), "empty")
