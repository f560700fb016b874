"""tools/ship.py on the tiny model: a whole folder, its card, and what it refuses."""

import json
from pathlib import Path
import shutil
from typing import Any

from commands import command
import pytest

from blip3o_jax.miniature import shipped
from blip3o_jax.systems.blip3o import save
from blip3o_jax.systems.blip3o import verbs

TINY = Path(__file__).parents[2] / "data" / "tiny-blip3o"
RATE = {"correct": 3, "count": 4, "rate": 0.75, "low": 0.3, "high": 0.95}
STAGES = ("tower", "autoencoder", "unet", "answers", "backbone", "generator", "tuned")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
  folder = tmp_path_factory.mktemp("half") / "model"
  save.save(verbs.load(TINY), TINY, folder, dtype="float16")
  return folder


@pytest.fixture
def work(model, tmp_path) -> Path:
  """A finished working folder, as far as the tool reads it."""
  folder = tmp_path / "work"
  shutil.copytree(model, folder / "model")
  (folder / "drawings.png").write_bytes(b"picture")
  _json(folder / "parts.json", {"parts": "trained", "sha256": ""})
  for stage in STAGES:
    _json(folder / stage / "config.json", {"train": {"seed": 0, "steps": 7, "batch": 16}})
    (folder / stage / "metrics.jsonl").write_text('{"step": 3}\n{"step": 6}\n')
  versions = {"python": "3.11", "jax": "0.10.2"}
  _json(folder / "done" / "export.json", {"seconds": 1.0, "versions": versions, "cores": 2})
  drawn = {"overall": RATE, "counting": RATE, "pretrained": {"overall": RATE}, "diversity": 2.0}
  understood = {"accuracy": 0.75, "accuracy_after_generation_training": 0.75, "overall": RATE}
  report = {
    "understanding": understood,
    "generation": drawn,
    "reconstruction": {"psnr": 28.0, "scorer_accuracy": RATE},
    "scorer": {"accuracy": RATE},
    "seconds": {"tower": 12.3, "total": 20.0},
    "model": shipped.sums(folder / "model"),
  }
  _json(folder / "report.json", report)
  return folder


def _json(path: Path, value: Any) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value))


def test_a_whole_folder(work, tmp_path):
  output, picture = tmp_path / "assets" / "shapes", tmp_path / "docs" / "miniature.png"
  ship = command("ship")
  assert ship("--workdir", work, "--output", output, "--picture", picture) == 0
  assert picture.read_bytes() == b"picture"
  sums = shipped.verify(output)
  card = json.loads((output / shipped.CARD).read_text())
  assert {name: sums[name] for name in card["sha256"]} == card["sha256"]
  assert set(sums) == {*card["sha256"], shipped.CARD, shipped.PROSE}
  assert (card["seed"], card["cores"]) == (0, 2)
  assert card["versions"]["jax"] == "0.10.2"
  assert card["scores"]["generation"]["overall"] == RATE
  assert card["runs"]["tower"] == {"steps": 6, "of": 7, "batch": 16}
  networks = {"backbone", "visual", "generation", "encoder", "unet", "autoencoder"}
  assert set(card["parts"]) == {"tokenizer", *networks}
  weights = sum(part["bytes"] for part in card["parts"].values())
  files = [f for f in output.rglob("*") if f.suffix == ".safetensors"]
  heads = sum(f.stat().st_size for f in files)
  assert 0 < heads - (weights - card["parts"]["tokenizer"]["bytes"]) < 200_000  # their headers
  page = (output / shipped.PROSE).read_text()
  for line in (
    "| tower | 6 | 7 | 16 | 12 |",
    "| counting | 0.75 | 0.30 to 0.95 | 4 |",
    "28.0 dB; the same objects found in 0.75 (0.30 to 0.95, 4 in all).",
    f"| config.json | {sums['config.json']} |",
  ):
    assert line in page
  again = verbs.load(output)
  assert again.decoder is not None
  assert ship("--workdir", work, "--output", output) == 0  # it may be replaced
  assert not list(output.parent.glob(".*"))


@pytest.mark.parametrize(
  ("spoil", "message"),
  [
    (
      lambda w: (w / "report.json").unlink(),
      "report.json: absent; `launch/quickstart.sh",
    ),
    (lambda w: (w / "tuned" / "config.json").unlink(), "tuned/config.json: absent"),
    (lambda w: (w / "drawings.png").unlink(), "drawings.png: absent; the stage score writes it"),
    (lambda w: (w / "model" / "tiny.json").write_text("{}"), "is not the model that report.json"),
    (lambda w: _json(w / "parts.json", {"parts": "shipped"}), "its frozen parts are shipped"),
    (
      lambda w: _json(w / "unet" / "config.json", {"train": {"seed": 1, "steps": 1, "batch": 1}}),
      "stages of several seeds, [0, 1]",
    ),
    (lambda w: _json(w / "report.json", {"understanding": {}}), "report.json: no 'generation'"),
  ],
)
def test_what_it_refuses(work, tmp_path, capsys, spoil, message):
  spoil(work)
  assert command("ship")("--workdir", work, "--output", tmp_path / "shapes") == 1
  assert message in capsys.readouterr().err
  assert not (tmp_path / "shapes").exists()


def test_a_model_that_is_too_large_or_not_half(work, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(shipped, "BUDGET", 1000)
  assert command("ship")("--workdir", work, "--output", tmp_path / "shapes") == 1
  assert "bytes with the card, more than 1000" in capsys.readouterr().err
  save.save(verbs.load(TINY), TINY, work / "model")
  report = json.loads((work / "report.json").read_text())
  _json(work / "report.json", report | {"model": shipped.sums(work / "model")})
  assert command("ship")("--workdir", work, "--output", tmp_path / "shapes") == 1
  assert "is float32, not float16; export the model again" in capsys.readouterr().err


def test_a_folder_of_something_else_is_kept(work, tmp_path, capsys):
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "notes.txt").write_text("mine")
  assert command("ship")("--workdir", work, "--output", tmp_path / "mine") == 1
  assert "is not empty and holds no card.json" in capsys.readouterr().err
  assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]
