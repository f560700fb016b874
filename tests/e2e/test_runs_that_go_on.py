"""`blip3o train` called again: with more data and another batch, with nothing left to do.

And what it refuses before it has made anything.
"""

from collections.abc import Callable
import io
import json
from pathlib import Path
import re
import tarfile

import numpy as np
from PIL import Image
import pytest

from blip3o_jax import cli
from blip3o_jax.data.pipeline import Data
from blip3o_jax.train import checkpoint

ROOT = Path(__file__).parents[2]
SHAPES = str(ROOT / "configs" / "shapes_autoencoder_train.py")
CONFIG = """
import dataclasses

from blip3o_jax.miniature import sizes
from blip3o_jax.data.pipeline import Data
from blip3o_jax.systems import pixels
from blip3o_jax.train.run import Train, to_config


def get_config(arg=""):
  whole = sizes.pixels_shapes()
  small = dict(latent_channels=4, channels=(4,), depth=1, groups=2, patch_size=8)
  model = dataclasses.replace(
    whole,
    train="autoencoder",
    autoencoder=dataclasses.replace(whole.autoencoder, **small),
    unet=dataclasses.replace(whole.unet, in_channels=4, out_channels=4),
  )
  data = Data(path="DATA", task="pixels", image_size=16, threads=1)
  train = Train(batch=8, trainable=("autoencoder/.*",))
  return to_config("pixels", model, train, data)
"""


def tar(folder: Path, name: str, count: int) -> None:
  """A tar of so many pictures; captions say which."""
  folder.mkdir(exist_ok=True)
  with tarfile.open(folder / name, "w") as out:
    for i in range(count):
      picture = io.BytesIO()
      Image.fromarray(np.full((16, 16, 3), i, np.uint8)).save(picture, "PNG")
      for ending, data in (("png", picture.getvalue()), ("txt", f"{name} {i}".encode())):
        info = tarfile.TarInfo(f"{i}.{ending}")
        info.size = len(data)
        out.addfile(info, io.BytesIO(data))


def test_one_run_in_several_calls(tmp_path, capsys, caplog):
  data, run, file = tmp_path / "data", tmp_path / "run", tmp_path / "config.py"
  file.write_text(CONFIG.replace("DATA", str(data)))

  def train(steps: int, batch: int = 8, status: int = 0) -> str:
    caplog.clear()
    capsys.readouterr()
    args = [f"--config={file}", f"--workdir={run}", f"--config.steps={steps}"]
    more = [f"--config.batch={batch}", "--config.log.record_ids=True"]
    assert cli.main(["train", *args, *more, "--config.log.tensorboard=False"]) == status
    said = capsys.readouterr()
    warned = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    return "\n".join([*warned, said.err if status else said.out])

  tar(data, "a.tar", 40)
  tar(data, "b.tar", 40)
  assert "finished at step 4" in train(4)
  tar(data, "c.tar", 16)
  said = train(8, batch=16)
  assert "the data changed since step 4: c.tar (16 records) is new; batch 8 -> 16. 32 samp" in said
  assert "had 32 of these 96 records, which do not come again in it" in said
  assert "goes on with the other 64 in 4 steps\n" in said
  assert "config changed since the run began: data.batch 8 -> 16" in said
  lines = [json.loads(x) for x in (run / "records/process_0.jsonl").read_text().splitlines()]
  records = [r for line in lines for r in line["records"]]
  assert [len(line["records"]) for line in lines] == [8] * 4 + [16] * 4
  assert sorted(records) == list(range(96))
  assert checkpoint.read_position(run)["samples"] == 96

  config = (run / "config.json").read_text()
  said = train(6, batch=16)
  assert "nothing was trained: the run was finished before, at step 8 (config.steps is 6)" in said
  assert "finished at step" not in said
  assert (run / "config.json").read_text() == config

  # As an earlier version wrote it: the step alone, and no checksums.
  record = json.loads((run / "checkpoints/8/step/metadata").read_text())
  old = {k: v for k, v in record.items() if k not in ("leaves", "sum", "data_sum")}
  (run / "checkpoints/8/step/metadata").write_text(json.dumps(old))
  (run / "checkpoints/8/data/metadata").write_text(json.dumps({"position": 8}))
  said = train(9, batch=8, status=1)
  assert "8: does not say which records the run has seen (an earlier version wrote it)" in said
  assert "cannot go on with batch 16 -> 8" in said
  said = train(8, batch=16)
  assert "does not say which records the run has seen: taken to be those there are now" in said


@pytest.fixture
def refused(tmp_path, capsys) -> Callable[..., str]:
  """refused(*overrides): the only line of a run that must not begin; it leaves no folder."""

  def run(*overrides: str, config: str = SHAPES) -> str:
    small = [] if config != SHAPES else ["--config.data.cache=False"]
    workdir = tmp_path / "deep" / "run"
    args = [f"--config={config}", f"--workdir={workdir}", *small, *overrides]
    assert cli.main(["train", *args]) == 1
    assert not (tmp_path / "deep").exists()
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("blip3o train: ")]
    return line

  return run


@pytest.mark.parametrize(
  ("overrides", "message"),
  [
    (["data.path=/nonexistent"], "config.data: path '/nonexistent': source 'shapes' does not read"),
    (["eval_data.path=/no"], "config.eval_data: path '/no': source 'shapes' does not read it"),
    (["data.holdout=0.1"], "config.data: holdout 0.1: source 'shapes' does not read it, so leave"),
    ([f"data.friendly={not Data.friendly}"], "source 'shapes' does not read it, so leave it at"),
    (["data.batch=16"], "config.data.batch: 16 is not read; config.batch is the run's, 32"),
    (
      ["data.source=files", "data.split=train", "data.shapes.variants=2", "data.path=/x"],
      "config.data: shapes Mixture(",
    ),
    (["data.shapes.turns=3"], "turns 3: not read with questions False and turns 3"),
    (["data.shapes.descriptions=0.5"], "descriptions 0.5: not read with questions False"),
    (
      ["steps=6", "optimizer.warmup_steps=30"],
      "config: optimizer.warmup_steps 30 exceeds steps 6",
    ),
    (["init_from=('/absent',)"], "init_from '/absent': no such directory"),
    (["data.records=16"], "16 records do not fill one batch of 32"),
  ],
)
def test_refused_without_a_trace(overrides, message, refused):
  assert message in refused(*[f"--config.{o}" for o in overrides])


def test_data_that_cannot_be_used_leaves_no_folder(refused, tmp_path):
  """All pictures damaged, which the first batch shows; the error names tar and member."""
  file, data = tmp_path / "config.py", tmp_path / "data"
  file.write_text(CONFIG.replace("DATA", str(data)))
  data.mkdir()
  with tarfile.open(data / "a.tar", "w") as out:
    for i in range(16):
      for ending, size in (("png", 9), ("txt", 9)):
        info = tarfile.TarInfo(f"{i}.{ending}")
        info.size = size
        out.addfile(info, io.BytesIO(b"no bytes!"))
  said = refused("--config.data.strict=True", config=str(file))
  assert re.search(r"a\.tar:\d+: the image cannot be decoded", said)
  (tmp_path / "taken").write_text("")
  args = ["train", f"--config={file}", f"--workdir={tmp_path / 'taken'}"]
  assert cli.main(args) == 1


def test_show_needs_no_workdir(capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert cli.main(["train", f"--config={SHAPES}", "--show", "--config.batch=7"]) == 0
  assert "--config.batch=7\n" in capsys.readouterr().out
  assert not list(tmp_path.iterdir())
  with pytest.raises(SystemExit) as status:
    cli.main(["train", f"--config={SHAPES}"])
  assert status.value.code == 2
  assert "required: --workdir" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("overrides", "warm", "said"),
  [
    (["steps=6"], 1, "warmup_steps 30 -> 1, as config.steps is 6 and not 500"),
    (["steps=100"], 6, "warmup_steps 30 -> 6, as config.steps is 100 and not 500"),
    (["steps=500"], 30, ""),
    (["steps=1000"], 30, ""),
    (["steps=40", "optimizer.warmup_steps=30"], 30, ""),
    (["optimizer.warmup_steps=0", "steps=6"], 0, ""),
  ],
)
def test_a_shorter_run_warms_up_shorter(overrides, warm, said, capsys):
  args = ["train", f"--config={SHAPES}", "--show", *[f"--config.{o}" for o in overrides]]
  assert cli.main(args) == 0
  shown = capsys.readouterr()
  assert f"--config.optimizer.warmup_steps={warm}\n" in shown.out
  assert (said in shown.err) if said else not shown.err
