"""The oracle of tools/record.py: it agrees with the recorded reference, and ours with it."""

from collections.abc import Callable
import json
from pathlib import Path
import shutil

from commands import command
import ml_dtypes
import numpy as np
import pytest
from random_model import model as random_model
from safetensors import safe_open
from safetensors.numpy import load_file
from safetensors.numpy import save_file

from blip3o_jax.data import images
from blip3o_jax.systems.blip3o import save
from blip3o_jax.verify import compare
from blip3o_jax.verify import recordings
from blip3o_jax.verify import replay

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "data" / "tiny-blip3o"
GOLDEN = {"system": TINY / "io.safetensors", "decoder": TINY / "diffusion-decoder/io.safetensors"}
GRADIENT = "train.grad."
pytestmark = pytest.mark.torch


@pytest.fixture
def record(capsys) -> Callable[..., tuple[int, str]]:
  """record(*arguments): the exit status of tools/record.py, and what it says on stderr."""
  pytest.importorskip("torch")
  pytest.importorskip("diffusers")
  tool = command("record")

  def run(*arguments: object) -> tuple[int, str]:
    status = tool(*arguments)
    said = capsys.readouterr()
    print(said.out)  # what the test printed before, its seed among it, stays for a failure
    return status, said.err

  return run


def test_recorded_inputs_give_the_recorded_outputs(tmp_path, check, record):
  """Torch, transformers and diffusers of today against those that made the recording."""
  output = tmp_path / "again.safetensors"
  inputs = [word for file in GOLDEN.values() for word in ("--inputs", file)]
  # The reference's greedy answers left out the ids from 495 on.
  status, said = record("--model", TINY, "--output", output, "--allowed", 495, *inputs)
  assert status == 0, said
  with safe_open(output, "np") as stored:
    assert stored.metadata() == {"resize": images.RESIZE} == {"resize": "horizontal first"}
  for kind, file in GOLDEN.items():
    golden = recordings.read(file)
    again = recordings.read(output if kind == "system" else tmp_path / "again.decoder.safetensors")
    assert set(again) == set(golden)
    for call, outputs in recordings.held(golden, str(file))[1].values():
      for name in call.inputs:
        np.testing.assert_array_equal(again[name], golden[name])
      for name in outputs:
        assert again[name].dtype == golden[name].dtype, name
        check(f"torch of today: {name}", again[name], call.bar(name).float32, golden[name])


def as_released(directory: Path) -> None:
  """Weights rounded to bfloat16, and the decoder's under the names of that variant."""
  for file in list(directory.rglob("*.safetensors")):
    rounded = {name: value.astype(ml_dtypes.bfloat16) for name, value in load_file(file).items()}
    variant = file.with_suffix(".bf16.safetensors") if file.stem.startswith("diffusion") else file
    file.unlink()
    save_file(rounded, variant, metadata={"format": "pt"})


@pytest.mark.slow
def test_a_fresh_recording_of_another_model(tmp_path, sizes, record):
  """Random sizes and weights, written by our tables, read by PyTorch, recorded, and replayed."""
  model = random_model(sizes, TINY)
  print(model.cfg)
  save.save(model, TINY, tmp_path / "model")
  as_released(tmp_path / "model")
  status, said = record("--model", tmp_path / "model", "--output", tmp_path / "io.safetensors")
  assert status == 0, said
  for name in ("io.safetensors", "io.decoder.safetensors"):
    recorded = recordings.read(tmp_path / name)
    rows = list(replay.verify(tmp_path / "model", recorded, where=name))
    print("\n".join(compare.line(row, 70) for row in rows))
    outputs = {n for _, wanted in recordings.held(recorded, name)[1].values() for n in wanted}
    assert {row.name for row in rows} == outputs
    # The tolerances are the miniature's; a drawn model may round worse. Terms of a gradient may
    # cancel to far less than they are: such a one is held to the largest gradient's size.
    largest = max((np.abs(recorded[n]).max() for n in outputs if n.startswith(GRADIENT)), default=0)
    wrong = [
      row
      for row in rows
      if row.note
      or (
        row.relative_error > 2 * row.tolerance
        and not (row.name.startswith(GRADIENT) and row.max_error <= 2 * row.tolerance * largest)
      )
    ]
    assert not wrong, wrong


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (("--output", "io.npz"), "expected a name that ends in .safetensors"),
    (("--output", "io.safetensors", "--model", "tests"), "tests: no config.json; not a model"),
    (
      ("--output", "io.safetensors", "--inputs", TINY / "model-00001-of-00002.safetensors"),
      "is not a name of a recording",
    ),
  ],
)
def test_what_cannot_be_recorded(arguments, message, record):
  status, said = record("--model", TINY, *arguments)
  assert status == 1
  assert message in said


def test_options_of_this_package_cannot_be_recorded(tmp_path, record):
  shutil.copytree(TINY, tmp_path / "model")
  (shard,) = (tmp_path / "model").glob("*-00001-of-*")
  index = tmp_path / "model" / "model.safetensors.index.json"
  name = "model.down_projector.linear_1.weight"
  save_file(load_file(shard) | {name: np.zeros((2, 2), np.float32)}, shard)
  weights = json.loads(index.read_text())
  weights["weight_map"][name] = shard.name
  index.write_text(json.dumps(weights))
  unet = tmp_path / "model" / "diffusion-decoder" / "unet" / "config.json"
  unet.write_text(json.dumps(json.loads(unet.read_text()) | {"place_channels": 4}))
  for part, message in (
    ("system", f"{name} is an option"),
    ("decoder", "place_channels is an opt"),
  ):
    status, said = record(
      "--model", tmp_path / "model", "--output", tmp_path / "a.safetensors", "--part", part
    )
    assert status == 1
    assert message in said
