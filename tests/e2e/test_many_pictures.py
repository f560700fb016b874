"""Files of prompts, a benchmark's layout, and the scorer, through the shipped miniature."""

import json

import numpy as np
from PIL import Image
import pytest
import scorers

import blip3o_jax
from blip3o_jax import cli
from blip3o_jax.use import manifest
from blip3o_jax.use import picture

PROMPTS = ("a red circle", "a blue square left of a green star", "two yellow crosses")


def test_a_file_of_prompts_gives_the_pictures_of_single_calls(tmp_path, capsys):
  (tmp_path / "p.txt").write_text("\n".join(PROMPTS))
  words = ["generate", "--prompts", str(tmp_path / "p.txt"), "--seed", "3"]
  assert cli.main([*words, "--output", str(tmp_path / "out")]) == 0
  model = blip3o_jax.load()
  wanted = model.generate(PROMPTS, 3)
  for i, one in enumerate(wanted):
    path = tmp_path / "out" / f"{i:05d}.png"
    assert np.array_equal(np.asarray(Image.open(path)), one.pixels)
    told = picture.read(path)
    assert one.metadata.items() <= told.items()
  assert [line["fingerprint"] for line in manifest.read(tmp_path / "out")] == [
    model.fingerprint
  ] * 3
  capsys.readouterr()
  assert cli.main([*words, "--output", str(tmp_path / "out")]) == 0
  assert "3 of 3 files are there already" in capsys.readouterr().err
  assert cli.main([*words, "--output", str(tmp_path / "out"), "--pixel-steps", "5"]) == 1
  assert "another pixel_steps" in capsys.readouterr().err


def test_dpg_of_the_miniature_is_read_as_four_pictures(tmp_path, capsys):
  rows = "".join(f"item{i},{text}\n" for i, text in enumerate(PROMPTS[:2]))
  (tmp_path / "dpg.csv").write_text(f"item_id,text\n{rows}")
  words = ["evaluate", "dpg", "--prompts", str(tmp_path / "dpg.csv")]
  assert cli.main([*words, "--output", str(tmp_path / "out"), "--pixel-steps", "4"]) == 0
  crops = scorers.dpg(tmp_path / "out" / "images", {"item0", "item1"}, 64)
  assert not crops.failed
  for tiles in crops.tiles.values():
    assert len({tile.tobytes() for tile in tiles}) == 4
  check = [*words, "--check", str(tmp_path / "out")]
  assert cli.main([*check, "--resolution", "64"]) == 0
  assert cli.main([*check, "--resolution", "32"]) == 1
  assert "four quarters of the first picture" in capsys.readouterr().out


@pytest.mark.slow
def test_the_scorer_of_the_embedded_set(tmp_path, capsys):
  words = ["evaluate", "shapes", "-n", "2", "--output", str(tmp_path), "--json"]
  assert cli.main(words) == 0
  told = json.loads(capsys.readouterr().out)
  assert told == json.loads((tmp_path / "scores.json").read_text())
  assert set(told["scores"]) == {"drawings", "questions"}
  overall = told["scores"]["drawings"]["overall"]
  assert overall["count"] == 12
  assert overall["low"] <= overall["rate"] <= overall["high"]
  assert overall["rate"] > 0.5
  assert cli.main(["evaluate", "shapes", "-n", "1", "--output", str(tmp_path)]) == 1
  assert "has another number: 2, and 1 is asked for" in capsys.readouterr().err
  settings = json.loads((tmp_path / "settings.json").read_text())
  assert settings["fingerprint"] == blip3o_jax.load().fingerprint
