"""What people have and the commands take: photos, large seeds, capital letters; and broken weights.

The right outcome beside each. What is refused without a model is in test_bad_input.py.
"""

from collections.abc import Callable
import json
from pathlib import Path
import shutil

import numpy as np
from PIL import Image
import pytest
from safetensors.numpy import load_file
from safetensors.numpy import save_file

from blip3o_jax import cli
from blip3o_jax.data import shapes

TINY = Path(__file__).parents[2] / "tests" / "data" / "tiny-blip3o"
QUICK = ("--steps", "1", "--pixel-steps", "1")
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture
def model(tmp_path) -> Path:
  """A copy of the tiny model that a test may change, which draws without a second prompt."""
  home = Path(shutil.copytree(TINY, tmp_path / "model"))
  change(home, null="zeros")
  return home


def change(home: Path, **settings: object) -> None:
  """Changes what tiny.json says of drawing."""
  values = json.loads((home / "tiny.json").read_text())
  values.setdefault("blip3o_jax", {}).update(settings)
  (home / "tiny.json").write_text(json.dumps(values))


@pytest.fixture
def call(capsys, monkeypatch) -> Callable[..., tuple[int, str, str]]:
  """call(*args): status, stdout and stderr of a command."""
  monkeypatch.delenv("BLIP3O_TRACEBACK", raising=False)

  def run(*args: object) -> tuple[int, str, str]:
    capsys.readouterr()
    status = cli.main([str(a) for a in args])
    captured = capsys.readouterr()
    return status, captured.out, captured.err

  return run


# part -> file, the tensor that gets a NaN, the command, how the error calls the part and why
BROKEN = {
  "final norm, chat": ("", "model.norm.weight", "chat", "language model", "backbone/"),
  "final norm, generate": ("", "model.norm.weight", "generate", "language model", "backbone/"),
  "denoiser": ("", "model.dit.model.norm_out.linear_2.bias", "generate", "denoiser", "denoiser/"),
  "image tower": (
    "",
    "model.gen_vision_tower.vision_tower.model.blocks.0.norm1.bias",
    "reconstruct",
    "image encoder (features)",
    "encoder/",
  ),
  "UNet": ("unet", "conv_out.bias", "generate", "UNet", "unet/"),
  "autoencoder": ("vae", "decoder.conv_out.bias", "generate", "autoencoder", "autoencoder/"),
}


@pytest.mark.parametrize("part", BROKEN)
def test_a_result_that_is_not_finite(part, model, call, tmp_path):
  """Names the part and its parameter; no black picture, no `!!!!`, no file."""
  folder, key, verb, said, path = BROKEN[part]
  home = model / "diffusion-decoder" / folder
  names = ["diffusion_pytorch_model.safetensors"] if folder else SHARDS
  files = [home / name for name in names] if folder else [model / name for name in names]
  for file in files:
    tensors = load_file(file)
    if key in tensors:
      tensors[key][0] = np.inf if part == "autoencoder" else np.nan
      save_file(tensors, file, metadata={"format": "pt"})
      break
  else:
    pytest.fail(f"no {key}")
  shown, output = tmp_path / "grey.png", tmp_path / "made" / "out.png"
  Image.new("RGB", (56, 56), (90, 90, 90)).save(shown)
  options = {
    "chat": ("what is this?", "--image", shown, "--length", "6"),
    "generate": ("a cat", "--output", output, *QUICK),
    "reconstruct": (shown, "--output", output, "--pixel-steps", "1"),
  }[verb]
  status, out, err = call(verb, *options, "--model", model)
  assert status == 1
  assert not out
  line = err.strip().splitlines()[-1]
  assert line.startswith(f"blip3o {verb}: the output of the {said} is not finite (NaN or infinity)")
  assert f"so are its parameters {path}" in line
  assert not output.parent.exists()


def test_large_seeds(model, call, tmp_path):
  """Each its own picture, of every verb."""
  found = []
  for seed in (1, 5_000_000_000, 2**32 + 1):
    output = tmp_path / f"{seed}.png"
    assert (
      call("generate", "a cat", "--model", model, "--seed", seed, "--output", output, *QUICK)[0]
      == 0
    )
    found.append(np.asarray(Image.open(output)))
  assert all((a != b).any() for i, a in enumerate(found) for b in found[:i])
  rebuilt = tmp_path / "rebuilt.png"
  options = ("--seed", 2**64 - 1, "--pixel-steps", "1", "--output", rebuilt)
  assert call("reconstruct", tmp_path / "1.png", "--model", model, *options)[0] == 0
  assert Image.open(rebuilt).size == (128 + 2 + 128, 128)  # beside what it was made of


def test_pictures_in_a_question(model, call, tmp_path):
  """Upright and on white, or as released; small ones are enlarged, large ones as asked."""
  image = Image.new("RGBA", (28, 112), (0, 0, 0, 0))  # of all here the patches fit one program
  image.paste((255, 0, 0, 255), (0, 0, 28, 30))
  exif = image.getexif()
  exif[0x0112] = 6
  image.save(tmp_path / "logo.png", exif=exif)
  flat = Image.new("RGB", image.size, "white")
  flat.paste((255, 0, 0), (0, 0, 28, 30))
  flat.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.png")
  image.convert("RGB").save(tmp_path / "released.png")

  def answer(name, *options):
    asked = ("what is this?", "--image", tmp_path / name, "--length", "6", "--model", model)
    status, out, err = call("chat", *asked, *options)
    assert (status, "Traceback" in err) == (0, False)
    return out

  assert answer("logo.png") == answer("upright.png")
  assert answer("logo.png", "--no-friendly") == answer("released.png")
  Image.new("RGB", (20, 20)).save(tmp_path / "small.png")
  Image.new("RGB", (1600, 1200)).save(tmp_path / "photo.jpg")
  for name, options in (("small.png", ()), ("photo.jpg", ("--max-pixels", 3136))):
    assert answer(name, *options)


def test_words_that_the_miniature_does_not_know(model, call, caplog, tmp_path):
  """Named in one line; capital letters are lowered; what it knows is said where one looks."""
  change(model, words=shapes.WORDS)
  made = []
  for i, text in enumerate(("a red square", "A RED Square", "a crimson circle on a city")):
    output = tmp_path / f"{i}.png"
    caplog.clear()
    assert call("generate", text, "--model", model, "--output", output, *QUICK)[0] == 0
    made.append(np.asarray(Image.open(output)))
    said = [r.getMessage() for r in caplog.records if "trained with" in r.getMessage()]
    assert [line.rpartition(": ")[2] for line in said] == (["crimson, city"] if i == 2 else [])
  np.testing.assert_array_equal(made[0], made[1])


@pytest.mark.parametrize("verb", ["generate", "chat"])
def test_the_vocabulary_is_in_the_help(verb, capsys):
  with pytest.raises(SystemExit):
    cli.main([verb, "--help"])
  shown = " ".join(capsys.readouterr().out.split())
  assert f"the miniature knows: {shapes.SUMMARY}" in shown
