"""The folder of the shipped miniature: absent, whole, damaged; and the commands without --model."""

import json
from pathlib import Path
import shutil
from typing import Any

import numpy as np
import pytest

from blip3o_jax import cli
from blip3o_jax import systems
from blip3o_jax.convert import manifest
from blip3o_jax.data import shapes
from blip3o_jax.miniature import plans
from blip3o_jax.miniature import ship
from blip3o_jax.miniature import shipped
from blip3o_jax.systems import blip3o
from blip3o_jax.systems.parts import talking

CONFIGS = Path(__file__).parents[3] / "configs"
TINY = Path(__file__).parents[2] / "data" / "tiny-blip3o"


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
  """A small model where the shipped one is looked for, with its list of sums."""
  folder = Path(shutil.copytree(TINY, tmp_path / "shapes"))
  lines = [f"{digest}  {name}" for name, digest in shipped.sums(folder).items()]
  (folder / shipped.SUMS).write_text("\n".join(lines) + "\n")
  monkeypatch.setattr(shipped, "_ASSETS", tmp_path)
  return folder


def test_a_whole_folder(home):
  found = shipped.verify()
  assert set(found) >= {"config.json", "diffusion-decoder/unet/config.json"}
  assert shipped.SUMS not in found
  assert shipped.directory() == home


@pytest.mark.parametrize("system", shipped.systems())
def test_the_page_of_the_shipped_folder_is_that_of_its_card_and_names_its_licence(system):
  folder = shipped.directory(system)
  card = json.loads((folder / shipped.CARD).read_text())
  assert (folder / shipped.PROSE).read_text() == ship.prose(card, plans.read(CONFIGS, system))
  found = shipped.verify(folder)
  assert {name: found[name] for name in card["sha256"]} == card["sha256"]
  told = manifest.describe(folder)["components"]
  assert {facts["licence"]["name"] for facts in told.values()} == {"apache-2.0 (its card)"}


def test_an_installation_without_it(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(shipped, "_ASSETS", tmp_path)
  with pytest.raises(FileNotFoundError, match=r"without the trained miniature; .* --model DIR"):
    shipped.directory()
  assert cli.main(["generate", "a red circle"]) == 1
  assert "assets/shapes/SHA256SUMS: absent" in capsys.readouterr().err


def test_a_damaged_file_is_named(home):
  file = home / "diffusion-decoder" / "vae" / "config.json"
  file.write_text(file.read_text() + " ")
  with pytest.raises(ValueError, match=r"vae/config\.json: damaged, its sha256 is not that"):
    shipped.verify()
  file.unlink()
  with pytest.raises(FileNotFoundError, match=r"vae/config\.json: absent, but SHA256SUMS names it"):
    shipped.verify()


def test_a_file_too_many_is_named(home):
  (home / "more.json").write_text("{}")
  with pytest.raises(ValueError, match=r"more\.json: no part of the shipped miniature"):
    shipped.verify()


class Echo:
  """A model that computes nothing."""

  words, squashes = (), True

  def takes(self, verb: str, **given: Any) -> dict[str, Any]:
    return {}

  def encode(self, images: list[Any]) -> np.ndarray:
    return np.ones((len(images), 4), np.float32)

  def generate(self, texts: list[str], seeds: list[int], **options: Any) -> np.ndarray:
    return np.zeros((len(texts), 8, 8, 3), np.uint8)

  def reconstruct(self, images: list[Any], seeds: list[int], **options: Any) -> np.ndarray:
    return np.zeros((len(images), 8, 8, 3), np.uint8)

  def talk(self, conversations: list[Any], **options: Any) -> list[talking.Reply]:
    return [talking.Reply("so", "stop", 1, 1) for _ in conversations]


def test_commands_without_a_model_say_what_they_use(home, tmp_path, capsys, monkeypatch):
  loaded = []
  monkeypatch.setattr(systems, "of", lambda _: "blip3o")
  monkeypatch.setattr(blip3o, "load", lambda path, **_: loaded.append(path) or Echo())
  drawn, rebuilt = str(tmp_path / "drawn.png"), str(tmp_path / "again.png")
  told = (
    "no --model: the miniature that ships with the package (blip3o_jax/assets/shapes), which knows "
  )
  for command in (
    ["generate", "a red circle", "--output", drawn],
    ["reconstruct", drawn, "--output", rebuilt],
    ["chat", "what?"],
  ):
    assert cli.main(command) == 0
    assert capsys.readouterr().err.splitlines()[0] == told + shapes.SUMMARY
  assert loaded == [home] * 3
  assert Path(drawn).stat().st_size > 0
  assert Path(rebuilt).stat().st_size > 0
  assert cli.main(["chat", "what?", "--model", str(TINY)]) == 0
  assert "no --model" not in capsys.readouterr().err
  (home / "tiny.json").write_text("{}")
  assert cli.main(["chat", "what?"]) == 1
  assert "tiny.json: damaged" in capsys.readouterr().err
