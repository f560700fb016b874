"""Whose a recording is, its bars and tolerances."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from blip3o_jax import systems
from blip3o_jax.systems.parts import recorded
from blip3o_jax.systems.parts.recorded import Bar
from blip3o_jax.systems.parts.recorded import Call
from blip3o_jax.verify import recordings
from blip3o_jax.verify import replay
from blip3o_jax.weights.safetensors import Tensors

TINY = Path(__file__).parents[2] / "data" / "tiny-blip3o"
SYSTEM, DECODER = TINY / "io.safetensors", TINY / "diffusion-decoder" / "io.safetensors"


def test_the_system_is_told_from_the_names():
  outputs = {
    "blip3o": ("eva.pooled", "eva.pixel_values"),
    "pixels": ("vae.mean", "vae.image"),
  }
  assert recordings.held(Tensors(SYSTEM), "")[0] == "blip3o"
  assert recordings.held(Tensors(DECODER), "")[0] == "pixels"
  for system, names in outputs.items():
    assert recordings.held(names, "")[0] == system
  # Two systems know both names; the call of one of them needs more.
  assert recordings.held(["vae.latent", "vae.decoded"], "")[0] == "pixels"


def test_every_system_says_what_is_recorded_of_it():
  found = {name: set(s.recorded(["gen3.noise"])) for name, s in systems.SYSTEMS.items()}
  assert found["contrast"] == set()
  assert found["pixels"] == {"unet", "encode", "decode", "loop"}
  assert found["blip3o"] == {"eva", "dit", "und", "sampler", "train", "gen3"}
  with pytest.raises(ValueError, match="no recording is of the system contrast"):
    systems.contrast.replay(TINY, "float32", {})


@pytest.mark.parametrize("file", [SYSTEM, DECODER])
def test_every_recorded_name_is_an_input_or_an_output(file):
  tensors = Tensors(file)
  _, found = recordings.held(tensors, str(file))
  inputs = {n for call, _ in found.values() for n in call.inputs}
  outputs = [n for _, wanted in found.values() for n in wanted]
  assert inputs | set(outputs) == set(tensors)
  assert len(outputs) == len(set(outputs)) == (29 if file == SYSTEM else 8)
  assert not inputs & set(outputs)


def test_all_faults_at_once():
  names = ["dit.x", "dit.velocity", "dit.velocty", "eva.pooled", "gen0.features"]
  with pytest.raises(ValueError, match=r"a.safetensors: 6 fault\(s\)") as caught:
    recordings.held(names, "a.safetensors")
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
    recordings.held(["dit.x", "dit.timestep", "dit.z"], "file")
  with pytest.raises(ValueError, match="holds no recorded output"):
    recordings.held([], "file")


def test_names_that_no_system_knows():
  with pytest.raises(ValueError, match=r"file: of none of blip3o, .*: 2 fault") as caught:
    recordings.held(["vae.men", "other"], "file")
  assert "vae.men is not a name of a recording; near: vae.mean" in str(caught.value)
  assert "other is not a name of a recording" in str(caught.value)


def test_two_systems_do_not_mix():
  with pytest.raises(ValueError, match=r"eva\.pooled is not a name of a recording"):
    recordings.held(["vae.image", "vae.mean", "eva.pooled"], "file")
  mixed = ["vae.image", "vae.mean", "eva.pooled", "eva.pixel_values"]
  with pytest.raises(ValueError, match="names are as much those of blip3o as of pixels"):
    recordings.held(mixed, "file")


def test_a_call_of_two_systems():
  """What both record alike has to come with what one of them records alone."""
  shared, own = Call(("a.x",), {"a.y": Bar(1e-6)}), Call(("b.x",), {"b.y": Bar(1e-6)})
  offers = {"one": {"a": shared}, "two": {"a": shared, "b": own}}
  with pytest.raises(ValueError, match="as much those of one as of two"):
    recorded.choose(offers, ["a.x", "a.y"], "file")
  who, held = recorded.choose(offers, ["a.x", "a.y", "b.x", "b.y"], "file")
  assert (who, list(held)) == ("two", ["a", "b"])


def bar(name: str) -> Bar:
  """Of an output of any system, gen7 among them."""
  found = (c for s in systems.SYSTEMS.values() for c in s.recorded(["gen7.noise"]).values())
  return next(call.bar(name) for call in found if call.gives(name))


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("und.greedy_tokens", 0),
    ("train.timesteps", 0),
    ("train.loss", 2e-6),
    ("gen7.query_hidden", 3e-6),
    ("gen7.features_cfg1_8steps", 5e-6),
    ("vae.decoded", 4e-6),
    ("loop.image", 2e-6),
    ("train.grad.dit.model.layers.1.gate", 1.2e-5),
  ],
)
def test_bars(name, expected):
  assert bar(name).float32 == expected
  assert tolerance(name, "float32") == 1.5 * expected


def test_a_name_that_a_call_does_not_give():
  with pytest.raises(KeyError, match="unheard"):
    systems.blip3o.recorded([])["eva"].bar("unheard.of")


def tolerance(name: str, dtype: str, given: list[tuple[str, float]] | None = None) -> float:
  return recorded.tolerance(name, bar(name), dtype, given or [])


def test_tolerances_in_bfloat16():
  assert tolerance("und.logits", "bfloat16") > 1e-2
  assert tolerance("train.grad.latent_queries", "bfloat16") > 0.1
  for name in ("und.position_ids", "loop.timesteps", "train.sigmas", "vae.decoded"):
    same = tolerance(name, "float32")
    assert tolerance(name, "bfloat16") == same


def test_tolerances_of_the_user():
  given = [recordings.parse_tolerance(text) for text in ("1e-3", "train.grad.*=0.5", "*.loss=0")]
  assert tolerance("dit.velocity", "float32", given) == 1e-3
  assert tolerance("train.grad.latent_queries", "float32", given) == 0.5
  assert tolerance("train.loss", "float32", given) == 0
  # What must be equal stays so unless it is named.
  assert tolerance("und.greedy_tokens", "float32", given) == 0
  named = [recordings.parse_tolerance("und.greedy_tokens=0.1")]
  assert tolerance("und.greedy_tokens", "float32", named) == 0.1


@pytest.mark.parametrize(
  ("text", "message"),
  [("much", "expected a number or NAME=number"), ("a=-1", "expected 0 or more"), ("nan", "0 or")],
)
def test_tolerances_that_are_none(text, message):
  with pytest.raises(ValueError, match=message):
    recordings.parse_tolerance(text)


def test_damaged_recordings_are_named_before_a_model_is_read(tmp_path):
  whole = recordings.read(DECODER)
  for change, message in (
    ({"features": np.zeros((1, 3, 48), np.float32)}, "recording: features: features of shape"),
    ({"loop.noise": np.full((1, 4, 16, 16), np.nan, np.float32)}, "the input loop.noise holds NaN"),
  ):
    with pytest.raises(ValueError, match=message):
      next(iter(replay.verify("/absent", whole | change)))
  with pytest.raises(FileNotFoundError, match="no such file"):
    recordings.read(tmp_path / "absent.safetensors")
  cut = tmp_path / "cut.safetensors"
  cut.write_bytes(DECODER.read_bytes()[:-100])
  with pytest.raises(ValueError, match="truncated"):
    recordings.read(cut)
  save_file({}, tmp_path / "empty.safetensors")
  with pytest.raises(ValueError, match="holds no recorded output"):
    recordings.check(recordings.read(tmp_path / "empty.safetensors"), "empty")
