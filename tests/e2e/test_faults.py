"""Faults, caused: kill -9 while a run saves, changed bytes, a full disk, a step given up."""

from collections.abc import Callable
import json
import os
from pathlib import Path
import random
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
import test_train_loop as runs
import toy

from blip3o_jax.train import checkpoint
from blip3o_jax.train import lock

ROOT = Path(__file__).parents[2]
EVERY = dict(checkpoint=dict(every_steps=2), log=dict(every=1, tensorboard=False))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: Any) -> str:
  return toy.released(tmp_path_factory.mktemp("weights"), runs.CFG, "encoder")


def start(
  workdir: Path, weights: str, steps: int, saved: int = 0, every: int = 1
) -> subprocess.Popen[str]:
  paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests/e2e")))
  worker, numbers = ROOT / "tests/e2e/faults_worker.py", map(str, (steps, saved, every))
  # Compiled by the first one that starts: half of the time until a process trains.
  cache = {"JAX_COMPILATION_CACHE_DIR": str(Path(weights).parent / "compiled")}
  cache |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
  return subprocess.Popen(
    [sys.executable, worker, workdir, weights, *numbers],
    env=os.environ | {"PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"} | cache,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def wait(process: subprocess.Popen[str], true: Callable[[], Any]) -> None:
  """Returns when something is true of a process that still runs."""
  until = time.monotonic() + 300
  while not true():
    assert process.poll() is None, process.communicate()[1][-2000:]
    assert time.monotonic() < until
    time.sleep(0.001)


def losses(workdir: Path) -> dict[int, float]:
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return {row["step"]: row["loss"] for row in rows if "loss" in row}


@pytest.mark.timeout(1800)
@pytest.mark.slow
def test_a_run_killed_while_it_saves_goes_on_bit_for_bit(tmp_path, weights):
  killed, rng = tmp_path / "killed", random.Random(30)
  for _ in range(30):
    before = max(checkpoint.steps(killed), default=0)
    process = start(killed, weights, 10**7)
    wait(process, lambda known=before: max(checkpoint.steps(killed), default=0) > known)
    time.sleep(rng.uniform(0, 0.3))
    process.send_signal(signal.SIGKILL)
    process.communicate()
  steps = max(checkpoint.steps(killed)) + 12
  process = start(killed, weights, steps)
  said, error = process.communicate(timeout=600)
  assert process.returncode == 0, error[-2000:]
  assert f"finished at {steps}, began at " in said
  assert "damaged" not in error, "a save that was cut short was taken for a checkpoint"
  whole = tmp_path / "whole"
  fields = dict(steps=steps, checkpoint=dict(every_steps=0), log=EVERY["log"])
  runs._run(whole, weights, **fields)
  assert losses(killed) == losses(whole)


@pytest.mark.parametrize("item", ["params", "opt", "data"])
def test_a_changed_byte_makes_the_run_fall_back_by_one(tmp_path, weights, caplog, item):
  """Of the same size, so only a checksum tells; nothing is deleted, the numbers stay the same."""
  runs._run(tmp_path, weights, **EVERY)
  expected = losses(tmp_path)
  folder = tmp_path / "checkpoints" / "4" / item
  files = [p for p in folder.rglob("*") if p.is_file() and (item == "data" or p.parent.name == "d")]
  assert files
  for file in files:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
  caplog.clear()
  done = runs._run(tmp_path, weights, **EVERY | {"steps": 6})
  assert (done.first, done.step) == (2, 6)
  said = caplog.text
  assert "the checkpoint of step 4 is damaged" in said
  assert "going on from step 2, the newest checkpoint that is whole; 4 set aside" in said
  assert (tmp_path / "checkpoints" / "damaged-4" / item).is_dir()
  assert {k: v for k, v in losses(tmp_path).items() if k <= 4} == expected


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, weights):
  process = start(tmp_path / "run", weights, 90, saved=2)
  _, error = process.communicate(timeout=300)
  assert process.returncode == 1, error[-2000:]
  last = error.strip().splitlines()[-1]
  assert str(tmp_path / "run") in last
  assert "make room" in last, error[-3000:]
  assert "Traceback" not in error
  kept = checkpoint.steps(tmp_path / "run")
  assert kept
  process = start(tmp_path / "run", weights, max(kept) + 2)
  said, error = process.communicate(timeout=300)
  assert process.returncode == 0, error[-2000:]
  assert f"began at {max(kept)}" in said


def test_more_sigterms_do_not_stop_the_save_of_the_first(tmp_path, weights):
  process = start(tmp_path, weights, 10**7, every=0)
  wait(process, lambda: (tmp_path / "metrics.jsonl").exists() and losses(tmp_path))
  process.send_signal(signal.SIGTERM)
  wait(process, lambda: list((tmp_path / "checkpoints").glob("*tmp*")))
  for _ in range(3):
    process.send_signal(signal.SIGTERM)
    time.sleep(0.002)
  said, error = process.communicate(timeout=300)
  assert process.returncode == 0, error[-2000:]
  (step,) = checkpoint.steps(tmp_path)
  assert said.startswith(f"finished at {step}, began at 0")
  checkpoint.read_record(tmp_path, step)


def test_going_back_keeps_what_is_given_up(tmp_path, weights, caplog):
  runs._run(tmp_path, weights, **EVERY)
  back = EVERY | {"steps": 6, "checkpoint": dict(every_steps=2, from_step=2)}
  done = runs._run(tmp_path, weights, **back)
  assert done.first == 2
  assert checkpoint.steps(tmp_path) == [2, 4, 6]
  assert (tmp_path / "checkpoints" / "given_up-4").is_dir()
  # The same command again goes on from what it made, not from the state that it gave up.
  assert runs._run(tmp_path, weights, **back | {"steps": 8}).first == 6
  with pytest.raises(FileNotFoundError, match="has no checkpoint of step 3, only of"):
    runs._run(tmp_path, weights, **back | {"checkpoint": dict(every_steps=2, from_step=3)})


def test_a_second_run_in_a_folder_is_refused_by_name(tmp_path, weights):
  with lock.Lock(tmp_path), pytest.raises(lock.InUseError, match=rf"in use by {os.getpid()} on "):
    runs._run(tmp_path, weights, **EVERY)
