"""Cached features: the loss of live encoding, resumed to the same bytes, refused where they differ.

All through the shipped commands, on the tiny model: a config encodes a folder of tars, and the same
config trains on the pictures and on the cache.
"""

from collections.abc import Callable
import io
import json
import os
from pathlib import Path
import resource
import signal
import socket
import subprocess
import sys
import tarfile
import time
from typing import Any

from absl import logging
import checkpoints
from commands import command
from ml_dtypes import bfloat16
import numpy as np
from PIL import Image
import pytest

from blip3o_jax import cli
from blip3o_jax.data.records import DAMAGE
from blip3o_jax.data.sources.arrayrecord import ArrayRecordSource
from blip3o_jax.data.sources.reading import Reading
from blip3o_jax.train import encoding
from blip3o_jax.train import lock

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "configs" / "shapes_objective_smoke.py"
RECORDS, DAMAGED, SIDE = 26, 5, 112
TOWER = "model.gen_vision_tower.vision_tower.model."
Told = tuple[int, str, str]  # status, stdout, stderr


def picture(number: int) -> bytes:
  rng = np.random.default_rng(number)
  height, width = rng.integers(SIDE, 2 * SIDE, 2)
  small = rng.integers(0, 256, (7, 9, 3), np.uint8)
  out = io.BytesIO()
  Image.fromarray(small).resize((int(width), int(height))).save(out, "PNG")
  return out.getvalue()


def write_tars(folder: Path, damaged: int = -1) -> Path:
  """RECORDS pictures with captions in two tars; one of them may be no picture."""
  folder.mkdir()
  for part in range(2):
    with tarfile.open(folder / f"{part}.tar", "w") as tar:
      for i in range(part, RECORDS, 2):
        image = b"no picture" if i == damaged else picture(i)
        for ending, data in (("png", image), ("txt", f"caption {i}".encode())):
          info = tarfile.TarInfo(f"{i:04d}.{ending}")
          info.size = len(data)
          tar.addfile(info, io.BytesIO(data))
  return folder


@pytest.fixture(scope="module")
def tars(tmp_path_factory) -> Path:
  return write_tars(tmp_path_factory.mktemp("encode") / "tars", DAMAGED)


def arguments(path: Path, model: Path = checkpoints.TINY) -> list[str]:
  """Of a config that reads pictures of a folder, by a model."""
  return [
    f"--config={SMOKE}:objective=mse,model={model}",
    "--config.data.source=files",
    "--config.data.split=train",
    "--config.data.records=0",
    f"--config.data.path={path}",
  ]


def encode(tars: Path, output: Path, *more: str) -> list[str]:
  small = ("--per-shard=8", "--batch-per-device=4")
  return ["encode", *arguments(tars), f"--output={output}", *small, *more]


def training(path: Path, workdir: Path, *more: str) -> list[str]:
  few = ("steps=3", "batch=8", "log.every=1", "log.tensorboard=False", "optimizer.warmup_steps=0")
  return [
    "train",
    *arguments(path),
    f"--workdir={workdir}",
    *(f"--config.{field}" for field in few),
    *more,
  ]


BACKBONE = (f"{checkpoints.TINY}#only=backbone",)


def on_cache(
  path: Path, workdir: Path, *more: str, init_from: tuple[str, ...] = BACKBONE
) -> list[str]:
  """Trains a model without an encoder, from weights that are read without one."""
  return training(
    path,
    workdir,
    "--config.model.parts=('denoiser',)",
    "--config.data.features=True",
    f"--config.init_from={init_from!r}",
    *more,
  )


@pytest.fixture
def call(capsys, monkeypatch) -> Callable[..., Told]:
  """call(words): status, stdout and stderr of a command."""
  monkeypatch.delenv("BLIP3O_TRACEBACK", raising=False)

  def run(words: list[str]) -> Told:
    capsys.readouterr()
    status = cli.main(words)
    captured = capsys.readouterr()
    return status, captured.out, captured.err

  return run


@pytest.fixture(scope="module")
def cache(tars) -> Path:
  """The cache of the tars in bfloat16."""
  output = tars.parent / "cache"
  assert cli.main(encode(tars, output)) == 0
  return output


def losses(workdir: Path) -> list[float]:
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line)["loss"] for line in lines]


def contents(folder: Path) -> dict[str, bytes]:
  """All files of a cache, but for the indices beside them."""
  return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def last(text: str) -> str:
  return text.strip().splitlines()[-1]


def test_the_loss_is_that_of_live_encoding(tmp_path, call):
  tars, exact = write_tars(tmp_path / "tars"), tmp_path / "exact"
  assert command("encode_features")(*encode(tars, exact, "--dtype=float32")[1:]) == 0
  assert not (exact / encoding.QUARANTINE).exists()
  live, kept = tmp_path / "live", tmp_path / "kept"
  assert call(training(tars, live))[0] == 0
  assert call(on_cache(exact, kept))[0] == 0
  assert len(losses(live)) == 3
  np.testing.assert_allclose(losses(kept), losses(live), rtol=1e-6)


def test_what_a_cache_holds(tars, cache, tmp_path):
  more = ("--dtype=float32", "--pixels", "--licence=CC0-1.0")
  assert cli.main(encode(tars, tmp_path / "exact", *more)) == 0
  rounded = ArrayRecordSource(str(cache), Reading())
  exact = ArrayRecordSource(str(tmp_path / "exact"), Reading())
  assert len(rounded) == len(exact) == RECORDS - 1
  order = [i for part in range(2) for i in range(part, RECORDS, 2) if i != DAMAGED]
  for index, number in enumerate(order):
    one, other = rounded[index], exact[index]
    assert one.prompt == other.prompt == f"caption {number}"
    assert one.image is None
    assert other.image == picture(number)
    assert one.features.dtype == bfloat16
    assert one.features.shape == (2, 2, 48)
    np.testing.assert_array_equal(one.features, other.features.astype(bfloat16))
  assert len({record.features.tobytes() for record in map(rounded.__getitem__, range(25))}) == 25
  (left,) = map(json.loads, (cache / encoding.QUARANTINE).read_text().splitlines())
  assert (left["record"], left["name"]) == (15, f"1.tar:{DAMAGED:04d}")
  assert "cannot be decoded" in left["error"]
  assert {name.rpartition(".")[2] for name in contents(cache)} == {"arrayrecord", "json", "jsonl"}
  assert cli.main(encode(tmp_path / "exact", tmp_path / "again")) == 0
  again = ArrayRecordSource(str(tmp_path / "again"), Reading())
  assert again.manifest["licence"] == "CC0-1.0"
  np.testing.assert_array_equal(again.hashes(0, 25), rounded.hashes(0, 25))
  for index in range(25):
    np.testing.assert_array_equal(again[index].features, rounded[index].features)


def test_the_same_bytes_after_an_interrupt(tars, cache, tmp_path, monkeypatch, call):
  output, given = tmp_path / "cache", encoding._given

  def stops(*args: Any) -> Any:
    for count, each in enumerate(given(*args)):
      if len(list(output.glob("*.arrayrecord"))) == 2 and count == 3:
        raise KeyboardInterrupt
      yield each

  monkeypatch.setattr(encoding, "_given", stops)
  assert call(encode(tars, output))[0] == 130
  monkeypatch.setattr(encoding, "_given", given)
  kept = {path: path.stat().st_mtime_ns for path in output.glob("*.arrayrecord")}
  assert len(kept) == 2
  status, out, err = call(encode(tars, output, "--pixels"))
  assert status == 1
  assert f"{output}: was begun otherwise: pixels False -> True" in last(err)
  assert call(encode(tars, output))[0] == 0
  assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
  assert contents(output) == contents(cache)
  before = contents(output)
  status, out, _ = call(encode(tars, output))
  assert status == 0
  assert "25 records in 4 files, features bfloat16 2 x 2 x 48" in out
  ((kind, _),) = encoding.damaged(output).items()
  assert f"left out: 1 {DAMAGE[kind]}; see {output / encoding.QUARANTINE}" in out
  assert contents(output) == before


def test_a_full_disk(tars, tmp_path, call):
  """A file may have 60 kB: no shard fits, and nothing half-written is left."""
  output, soft_hard = tmp_path / "cache", resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, soft_hard[1]))
  try:
    status, _, err = call(encode(tars, output))
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, soft_hard)
  assert status == 1
  assert "features-00000-of-00004.arrayrecord: " in last(err)
  assert [path.name for path in output.iterdir()] == ["packing.json"]
  assert call(encode(tars, output))[0] == 0


def other_encoder(folder: Path) -> Path:
  """The tiny model with one number of its tower changed."""
  home = checkpoints.copy(folder, decoder=False)
  values = checkpoints.tensors(home)
  name = next(n for n in values if n.startswith(TOWER) and n.endswith("bias"))
  values[name] = values[name].copy()
  values[name].flat[0] += 1e-3
  checkpoints.write(home, values)
  return home


def test_another_encoder_is_refused(cache, tmp_path, call):
  home = other_encoder(tmp_path / "other")
  status, _, err = call(on_cache(cache, tmp_path / "run", init_from=(f"{home}#only=backbone",)))
  assert status == 1
  made = json.loads((cache / "manifest.json").read_text())["encoder"]["fingerprint"]
  assert f"{cache}: its features are of the encoder {made}, but that of config.init_from " in err
  assert not (tmp_path / "run").exists()


def test_what_cannot_be_checked_is_said(cache, tmp_path, call, monkeypatch):
  """Nothing in init_from holds an encoder: the run ends later, for want of its language model."""
  lines: list[str] = []
  monkeypatch.setattr(logging, "warning", lambda text, *args: lines.append(text % args))
  status, _, err = call(on_cache(cache, tmp_path / "run", init_from=()))
  assert status == 1
  made = json.loads((cache / "manifest.json").read_text())["encoder"]["fingerprint"]
  why = f"of the encoder {made}, which cannot be checked: config.init_from is empty"
  assert lines == [f"{cache}: its features are {why}"]
  assert "are in none of init_from" in err


@pytest.mark.parametrize(
  ("field", "text"),
  [
    ("data.image_size=56", "encoded with image_size 112, config.data.image_size is 56"),
    ("data.squash=True", "encoded with squash False, config.data.squash is True"),
    ("data.friendly=False", "encoded with friendly True, config.data.friendly is False"),
    ("model.features.pool=8", "its encoder has pool 4, the run's 8"),
  ],
)
def test_another_transform_is_refused(cache, tmp_path, call, field, text):
  more = [f"--config.{field}"]
  if "pool" in field:
    more += ["--config.model.denoiser.grid=1", "--config.model.slots=1"]
  status, _, err = call(on_cache(cache, tmp_path / "run", *more))
  assert status == 1
  assert text in last(err)


def test_the_config_of_cached_features_encodes_too(tars, cache, tmp_path):
  cached = on_cache(tars, tmp_path / "run")[1:]
  small = ("--per-shard=8", "--batch-per-device=4")
  words = [word for word in cached if not word.startswith("--workdir")]
  assert cli.main(["encode", *words, f"--output={tmp_path / 'cache'}", *small]) == 0
  assert contents(tmp_path / "cache") == contents(cache)


@pytest.mark.parametrize(
  ("more", "text"),
  [
    (
      "--config.init_from=()",
      "config.init_from (it is empty): holds no encoder with all of the 20",
    ),
    ("--config.data.image_size=56", "config.data.image_size: 56, but the encoder takes 112"),
    ("--config.data.path=absent", "absent"),
    ("--output=memory://x", "--output memory://x: expected a local folder"),
  ],
)
def test_what_cannot_be_encoded(tars, tmp_path, call, more, text):
  status, _, err = call(encode(tars, tmp_path / "cache", more))
  assert status == 1
  assert text in last(err)
  assert not (tmp_path / "cache").exists()


def test_one_at_a_time(tars, tmp_path, call):
  (tmp_path / "cache").mkdir()
  with lock.Lock(tmp_path / "cache"):
    status, _, err = call(encode(tars, tmp_path / "cache"))
  assert status == os.EX_TEMPFAIL
  assert f"blip3o encode: {tmp_path / 'cache'}: in use by {os.getpid()}" in last(err)


# Processes that are killed, and several at once -------------------------------------------------


def started(words: list[str]) -> subprocess.Popen[str]:
  return subprocess.Popen(
    [sys.executable, "-m", "blip3o_jax.cli", *words],
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


@pytest.mark.slow
@pytest.mark.parametrize("finished", [1, 2, 3])
def test_the_same_bytes_after_kill(tars, cache, tmp_path, finished):
  output = tmp_path / "cache"
  process = started(encode(tars, output))
  while process.poll() is None and len(list(output.glob("*.arrayrecord"))) < finished:
    time.sleep(0.001)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert cli.main(encode(tars, output)) == 0
  assert contents(output) == contents(cache)


@pytest.mark.slow
def test_two_processes_make_the_same(tars, cache, tmp_path):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    join = (f"--coordinator=127.0.0.1:{free.getsockname()[1]}", "--processes=2")
  output = tmp_path / "cache"
  both = [started(encode(tars, output, *join, f"--process={i}")) for i in range(2)]
  for process in both:
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
  assert contents(output) == contents(cache)
