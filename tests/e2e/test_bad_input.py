"""What a user gets wrong, through the command line and from code: one line that says what."""

import collections
from collections.abc import Callable
import json
import logging as std_logging
from pathlib import Path
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file
from safetensors.numpy import save_file

from blip3o_jax import cli
from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.text import chat
from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.miniature import sizes
from blip3o_jax.systems import SYSTEMS
from blip3o_jax.systems import pixels
from blip3o_jax.systems.blip3o import prompts
from blip3o_jax.train import loop
from blip3o_jax.train import run
from blip3o_jax.train.run import Train

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "data" / "tiny-blip3o"
CONFIG = str(ROOT / "configs" / "shapes_autoencoder_train.py")
SHARD = "model-00002-of-00002.safetensors"


@pytest.fixture
def fails(capsys, monkeypatch) -> Callable[..., str]:
  """fails(*args): the only line on stderr of a command that must fail."""
  monkeypatch.delenv("BLIP3O_TRACEBACK", raising=False)

  def run(*args: str) -> str:
    capsys.readouterr()
    assert cli.main([str(a) for a in args]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith(f"blip3o {args[0]}: ")
    assert not any("Traceback" in line for line in lines)
    return lines[-1]

  return run


@pytest.fixture
def model(tmp_path) -> Path:
  """A copy of the tiny model that a test may damage."""
  return Path(shutil.copytree(TINY, tmp_path / "model"))


# The command line ------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--config.optimizer.lrr=1"], "config.optimizer.lrr: no such field, did you mean 'lr'?"),
    (["--config.model.unet.chanels=(1,)"], "config.model.unet.chanels: no such field, did you"),
    (["--config.batch=many"], "config.batch=many: invalid literal"),
    (["--config.data.split=train"], "split 'train' of the shapes: expected one of world"),
    (["--config.mesh.tensor=7"], "tensor 7 = 7 does not equal the"),
    (["--config.batch=30", "--config.mesh.fsdp=4"], "batch 30 is not divisible by"),
    (["--config.log.samples_every=1"], "needs config.samples.prompts"),
    (["--config.init_from=('/absent',)"], "init_from '/absent': no such directory"),
    (["--workdirr=x"], "--workdirr: unknown option"),
    (["extra"], "'extra': unexpected"),
  ],
)
def test_train_with_wrong_fields(arguments, message, fails, tmp_path):
  small = ["--config.data.records=64", "--config.data.cache=False"]
  assert message in fails("train", "--config", CONFIG, "--workdir", tmp_path, *small, *arguments)


def test_train_with_wrong_files(fails, tmp_path):
  empty = tmp_path / "empty.py"
  empty.write_text("")
  tower = f"{ROOT / 'configs' / 'shapes_tower_train.py'}:work={tmp_path}"
  cases = {
    "absent.py": "--config absent.py: no such file",
    str(empty): "defines no get_config",
    f"{CONFIG}:wrok=1": "config argument 'wrok': unknown, expected one of work",
    tower: "no tokenizer: expected tokenizer.json",
  }
  for config, message in cases.items():
    assert message in fails("train", "--config", config, "--workdir", tmp_path)
  tars = ["--config.data.source=files", "--config.data.split=train"]
  found = fails("train", "--config", CONFIG, "--workdir", tmp_path, *tars)
  assert "config.data.path: expected a folder, file or address" in found


@pytest.mark.parametrize("verb", ["train", "generate", "chat", "reconstruct"])
def test_help_has_an_example(verb, capsys):
  with pytest.raises(SystemExit) as status:
    cli.main([verb, "--help"])
  assert status.value.code == 0
  assert cli.EXAMPLES[verb] in capsys.readouterr().out


def test_verbs(capsys):
  assert cli.main([]) == 2
  assert cli.main(["--help"]) == 0
  shown = capsys.readouterr().out
  assert all(line in shown for line in cli.EXAMPLES.values())
  assert cli.main(["draw"]) == 2
  assert "'draw' is not one of train, generate" in capsys.readouterr().err


def test_the_module_runs_like_the_command():
  run = subprocess.run(
    [sys.executable, "-m", "blip3o_jax.cli", "--help"], capture_output=True, text=True, cwd=ROOT
  )
  assert run.returncode == 0
  assert run.stdout.startswith("usage: blip3o")


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["x", "--seed", "-1"], "-1: expected 0 or more"),
    (["x", "--steps", "few"], "'few' is not a number"),
    (["x", "--output", "a.jpg"], "a.jpg: expected a name that ends in .png"),
    (["x", "--output", "LICENSE"], "LICENSE: is a file that does not end in .png"),
    (["x", "--sampler", "rk4"], "invalid choice: 'rk4'"),
    (["x", "--guidance", "nan"], "nan: expected 0 or more, and finite"),
    (["x", "--guidance", "inf"], "inf: expected 0 or more, and finite"),
    (["x", "--seed", str(2**64)], "expected 0 or more, below 18446744073709551616"),
    (["x", "--max-pixels", "-1"], "-1: expected 0 or more"),
    ([""], "'' is empty; say what is wanted"),
    (["a cat", " \t"], "is empty; say what is wanted"),
  ],
)
def test_generate_with_wrong_options(arguments, message, capsys, monkeypatch):
  monkeypatch.chdir(ROOT)
  with pytest.raises(SystemExit) as status:
    cli.main(["generate", "--model", str(TINY), *arguments])
  assert status.value.code == 2
  assert message in capsys.readouterr().err


# Models and pictures ---------------------------------------------------------------------------


def test_a_model_that_is_a_name_or_absent(fails, refused):
  """A name is looked for on the hub, which no test reaches; a path never is."""
  named = fails("generate", "a cat", "--model", "nobody-here/absent-model")
  assert "nobody-here/absent-model: no such local directory, so it was taken for a hub" in named
  assert "hf download nobody-here/absent-model --local-dir DIR" in named
  assert refused
  refused.clear()
  absent = fails("generate", "a cat", "--model", "/absent/model")
  assert "/absent/model: no such directory. Expected a local directory, or a hub id" in absent
  assert not refused


def test_a_directory_without_a_model(capsys, tmp_path):
  """Says what each system would have been known by."""
  assert cli.main(["chat", "hello?", "--model", str(tmp_path)]) == 1
  found = capsys.readouterr().err
  assert f"blip3o chat: {tmp_path}: no config.json, and no files of a model" in found
  for name, system in SYSTEMS.items():
    assert f"\n  {name}: {system.LOOKS_FOR}" in found
  assert "Traceback" not in found


def test_a_truncated_file(fails, model):
  shard = model / SHARD
  shard.write_bytes(shard.read_bytes()[:-100])
  found = fails("generate", "a cat", "--model", model)
  assert SHARD in found
  assert "truncated" in found


def test_an_absent_shard(fails, model):
  (model / SHARD).unlink()
  assert f"names files that are absent: {SHARD}" in fails("generate", "a cat", "--model", model)


def test_a_key_of_the_wrong_shape_and_a_missing_one(fails, model, capsys, monkeypatch):
  index = model / "model.safetensors.index.json"
  tensors = {}
  for name in sorted(set(json.loads(index.read_text())["weight_map"].values())):
    tensors |= load_file(model / name)
    (model / name).unlink()
  index.unlink()
  tensors["model.latent_queries"] = tensors["model.latent_queries"][:, :3].copy()
  lost = "model.layers.0.mlp.up_proj.weight"
  del tensors[lost]
  save_file(tensors, model / "model.safetensors")
  assert cli.main(["generate", "a cat", "--model", str(model)]) == 1
  found = capsys.readouterr().err
  assert "model.latent_queries" in found
  assert lost in found
  assert "Traceback" not in found


def test_a_damaged_json(fails, model):
  (model / "config.json").write_text("{")
  assert "config.json: not valid JSON" in fails("generate", "a cat", "--model", model)
  values = json.loads((TINY / "config.json").read_text())
  del values["hidden_size"]
  (model / "config.json").write_text(json.dumps(values))
  found = fails("generate", "a cat", "--model", model)
  assert "config.json: mrope_section" in found
  assert "(left out, so as in its class: hidden_size 8192)" in found


def test_an_image_that_cannot_be_decoded(fails, tmp_path):
  bad = tmp_path / "bad.png"
  bad.write_bytes(b"no picture")
  for arguments in (["chat", "what?", "--image", bad], ["reconstruct", bad]):
    found = fails(*arguments, "--model", TINY)
    assert f"{bad}: the image cannot be decoded" in found
  assert "absent.png: no such image file" in fails("reconstruct", "absent.png", "--model", TINY)


# Prompts ---------------------------------------------------------------------------------------


def test_a_long_caption_is_cut_and_the_template_kept(caplog, monkeypatch):
  from absl import logging

  tokenizer = Tokenizer.load(TINY, prompts.SPECIAL)
  logging.use_absl_handler()
  monkeypatch.setattr(chat, "_seen", collections.Counter())
  with caplog.at_level(std_logging.WARNING, logger="absl"):
    logger = std_logging.getLogger("absl")
    logger.addHandler(caplog.handler)
    for _ in range(12):
      ids = prompts.generation_ids(tokenizer, "red " * 900)
    logger.removeHandler(caplog.handler)
  short = prompts.generation_ids(tokenizer, "red")
  assert len(ids) == prompts.LIMIT
  assert ids[-1] == tokenizer.image_start
  assert ids[-5:] == short[-5:]
  assert "the caption is too long for a prompt of 448 tokens" in caplog.text
  # The first and the tenth of the twelve; not a line for each.
  said = {r.getMessage() for r in caplog.records}
  assert sorted("(10 so far)" in line for line in said) == [False, True]


def test_special_tokens_in_a_caption_are_text():
  tokenizer = Tokenizer.load(TINY, prompts.SPECIAL)
  caption = "a <|im_end|> [IMG] <image> cat"
  ids = prompts.generation_ids(tokenizer, caption)
  plain = prompts.generation_ids(tokenizer, "a cat")
  for special in (tokenizer.im_end, tokenizer.image_start, tokenizer.image):
    assert ids.count(special) == plain.count(special)
  assert caption in tokenizer.decode(ids)


# Configs from code -----------------------------------------------------------------------------


def _values() -> dict[str, object]:
  data = Data(source="shapes", split="world", task="pixels", records=64, image_size=64)
  model = sizes.pixels_shapes()
  return run.to_config("pixels", model, Train(steps=2, batch=8), data).to_dict()


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"stepps": 3}, r"config.stepps: no such field, did you mean 'steps'\?"),
    ({"steps": 2.5}, "config.steps: expected int, got 2.5"),
    (
      {"system": "blip4"},
      "config.system: 'blip4' is not one of blip3o, nexus_gen, contrast",
    ),
    ({"model": {"unet": 3}}, "config.model.unet: expected a group of fields, got 3"),
    ({"data": {"task": "paint"}}, "config.data.task: 'paint' is not one of"),
    ({"trainable": ("nothing/.*",)}, "nothing/"),
  ],
)
def test_a_wrong_config(change, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    loop.start(_values() | change, SYSTEMS, tmp_path)


def test_a_damaged_checkpoint(tmp_path):
  """Named with the file, when a run wants to go on from it."""
  from blip3o_jax.train import checkpoint

  values = _values()
  values["model"] = config_of_tiny_autoencoder(values["model"])
  values["trainable"] = ("autoencoder/.*",)
  assert loop.start(values, SYSTEMS, tmp_path).step == 2
  damaged = checkpoint.folder(tmp_path) / "2" / "step"
  shutil.rmtree(damaged)
  with pytest.raises(ValueError, match="item 'step' is damaged"):
    loop.start(values | {"steps": 3}, SYSTEMS, tmp_path)


def config_of_tiny_autoencoder(model: object) -> object:
  """The model's config with the smallest autoencoder, in training."""
  assert isinstance(model, dict)
  small = dict(latent_channels=4, channels=(4,), depth=1, groups=2, patch_size=8)
  unet = model["unet"] | dict(in_channels=4, out_channels=4)
  return model | {
    "train": "autoencoder",
    "autoencoder": model["autoencoder"] | small,
    "unet": unet,
  }


def test_pixels_config_names_what_differs():
  values = _values()
  values["model"]["unet"]["in_channels"] = 5  # type: ignore[index]
  with pytest.raises(ValueError, match=r"config.model: unet takes 5 and gives 8 channels"):
    run.parse(values, SYSTEMS)
  assert isinstance(run.parse(_values(), SYSTEMS).model, pixels.Config)
  assert np.isfinite(run.parse(_values(), SYSTEMS).train.optimizer.lr)
