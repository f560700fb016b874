"""The editing decoder of Nexus-Gen through the shipped commands: trained on what was encoded.

The loss is that of live conditions, and a cache of other weights or another form is refused.
"""

import json
from pathlib import Path
import shutil

import nexus_files
import nexus_smoke
import numpy as np
from PIL import Image
import pytest
from safetensors.numpy import load_file
from safetensors.numpy import save_file

from blip3o_jax import cli

pytestmark = pytest.mark.slow
RECORDS = 8


@pytest.fixture(scope="module")
def edits(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """A list of edits beside its pictures."""
  folder = tmp_path_factory.mktemp("edits")
  lines = []
  for i in range(RECORDS):
    names = [f"{i}_{j}.png" for j in range(2)]
    for j, name in enumerate(names):
      pixels = np.random.default_rng((i, j)).integers(0, 256, (40 + i, 56, 3), np.uint8)
      Image.fromarray(pixels).save(folder / name)
    lines.append({"instruction": f"make it {i}", "input_image": names[0], "output_image": names[1]})
  (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  return folder


def arguments(path: Path, home: Path, data: str) -> list[str]:
  return [
    f"--config={nexus_smoke.__file__}:stage=editing,home={home},data={data}",
    "--config.data.source=files",
    "--config.data.split=train",
    "--config.data.records=0",
    "--config.data.shapes.edits=()",
    f"--config.data.path={path}",
  ]


def losses(workdir: Path) -> list[float]:
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line)["loss"] for line in lines]


def test_the_loss_is_that_of_live_conditions(edits, tmp_path, capsys):
  home, cache = nexus_files.copy(tmp_path / "home"), tmp_path / "cache"
  encode = ["encode", *arguments(edits, home, "cached"), f"--output={cache}"]
  encode += ["--pixels", "--dtype=float32", "--batch-per-device=4"]
  assert cli.main(encode) == 0
  about = json.loads((cache / "manifest.json").read_text())["encoder"]
  assert about["shape"] == [1, 162, 64]
  assert about["transform"]["buckets"] == [nexus_smoke.LENGTH["editing"]]
  assert about["tokenizer"]
  for name, path, data in (("live", edits, "pixels"), ("cached", cache, "cached")):
    train = ["train", *arguments(path, home, data), f"--workdir={tmp_path / name}"]
    assert cli.main(train) == 0
  live = losses(tmp_path / "live")
  assert len(live) == 2
  assert losses(tmp_path / "cached") == pytest.approx(live, rel=1e-5)
  # Another language model: one altered weight.
  other = tmp_path / "other"
  shutil.copytree(home, other)
  file, name = other / "model-00002-of-00002.safetensors", "vision_head.weight"
  values = dict(load_file(file))
  values[name] = values[name] + np.float32(1e-3)
  save_file(values, file)
  for changed, words, text in (
    (other, [], "but that of config.init_from"),
    (home, ["--config.model.form.language=zh"], "its encoder has language en, the run's zh"),
  ):
    capsys.readouterr()
    train = ["train", *arguments(cache, changed, "cached"), f"--workdir={tmp_path / 'no'}", *words]
    assert cli.main(train) == 1
    assert text in capsys.readouterr().err
