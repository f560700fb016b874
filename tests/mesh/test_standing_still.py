"""`blip3o train` that stands still ends with its stacks; it goes on, and says what was lost."""

from collections.abc import Callable
import json
from pathlib import Path
import signal
import socket
import subprocess
import time
from typing import Any

import pytest
import simulated

from blip3o_jax.train import goodput
from blip3o_jax.train import profiling
from blip3o_jax.train import starts
from blip3o_jax.train import watchdog

SECONDS = 3  # of the watchdog; a picture takes longer


def _lines(run: Path) -> list[dict[str, Any]]:
  file = run / "metrics.jsonl"
  return [json.loads(x) for x in file.read_text().splitlines()] if file.exists() else []


def _until(process: subprocess.Popen[str], true: Callable[[], Any]) -> None:
  until = time.monotonic() + simulated.SECONDS
  while not true():
    assert process.poll() is None, process.communicate()[1][-4000:]
    assert time.monotonic() < until
    time.sleep(0.02)


@pytest.fixture
def start(tmp_path):
  """start(*fields): the process of a run, killed at the end of the test."""
  made = []

  def one(*fields: str, more: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    given = (f"--config.watchdog.seconds={SECONDS}", "--config.watchdog.times=20", *fields)
    rest = ("--config.log.tensorboard=False", "--config.checkpoint.every_steps=0", *more)
    worker = str(Path(simulated.__file__).with_name("held_worker.py"))
    args = (str(tmp_path), f"--workdir={tmp_path}/run", *given, *rest)
    made.append(simulated.start(worker, 1, *args))
    return made[-1]

  yield one
  for process in made:
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_data_that_never_come_end_the_run_and_the_next_one_counts_what_was_lost(tmp_path, start):
  run = tmp_path / "run"
  process = start("--config.steps=10000000", "--config.log.every=5")
  _until(process, lambda: _lines(run))
  # A process that is stopped for a while does not stand still.
  process.send_signal(signal.SIGSTOP)
  time.sleep(SECONDS + 2)
  process.send_signal(signal.SIGCONT)
  known = len(_lines(run))
  _until(process, lambda: len(_lines(run)) > known + 1)
  (tmp_path / "data.0").touch()
  _, said = process.communicate(timeout=simulated.SECONDS)
  assert process.returncode == watchdog.EXIT == 76, said[-4000:]
  (line,) = [x for x in said.splitlines() if x.startswith("watchdog: ")]
  assert "waits for the next batch of data" in line
  assert "exit code 76" in line
  assert "in held_up" in said.split(line)[1]  # where the data are held up, and where the loop is
  assert "loop.py" in said.split(line)[1]

  (tmp_path / "data.0").unlink()
  before = json.loads((run / goodput.NAME).read_text())
  assert (before["lost"], before["starts"]) == (0, 1)
  assert before["step"] == before["done"] == _lines(run)[-1]["step"]
  # No checkpoint was made, so all is done again; and drawing is no standing still.
  drawn = ("--config.log.samples_every=4", "--config.samples.prompts=('a',)")
  process = start("--config.steps=4", "--config.log.every=2", *drawn)
  out, said = process.communicate(timeout=simulated.SECONDS)
  assert process.returncode == 0, said[-4000:]
  assert out.splitlines()[-1] == "finished at step 4"
  after = json.loads((run / goodput.NAME).read_text())
  assert (after["step"], after["done"], after["starts"]) == (4, 4, 2)
  assert after["lost"] == before["done"]
  assert after["seconds"]["lost"] == pytest.approx(before["seconds"]["step"], abs=2e-3)
  assert after["seconds"]["sampling"] >= SECONDS + 1
  assert after["seconds"]["compile"] > before["seconds"]["compile"] > 0
  assert f"({before['done']} steps done again)" in said
  assert "goodput" in said
  last = _lines(run)[-1]
  assert {"goodput", "seconds/step", "seconds/data", "samples_per_second_per_device"} <= set(last)
  assert "mfu" not in last  # a CPU has no peak that the table knows
  made = [json.loads(x) for x in (run / starts.NAME).read_text().splitlines()]
  assert [x["step"] for x in made] == [0, 0]
  assert made[1]["config"]["train"]["steps"] == 4


def test_a_device_that_never_answers_ends_the_run_and_a_trace_is_made_when_asked(tmp_path, start):
  run = tmp_path / "run"
  process = start("--config.steps=10000000", "--config.log.every=5")
  _until(process, lambda: _lines(run))
  ask = run / profiling.ASK
  ask.touch()
  _until(process, lambda: not ask.exists() and list((run / "profile").rglob("*.xplane.pb")))
  known = len(_lines(run))
  _until(process, lambda: len(_lines(run)) > known + 1)
  (tmp_path / "device.0").touch()
  _, said = process.communicate(timeout=simulated.SECONDS)
  assert process.returncode == watchdog.EXIT, said[-4000:]
  assert "waits for a device" in said
  assert f"the trace is written: {run}/profile" in said


@pytest.mark.slow
def test_of_two_processes_each_says_where_it_stands(tmp_path, start):
  run = tmp_path / "run"
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    join = (f"--coordinator=127.0.0.1:{free.getsockname()[1]}", "--processes=2")
  fields = ("--config.steps=10000000", "--config.log.every=5", "--config.mesh.replica=2")
  both = [start(*fields, "--config.mesh.fsdp=1", more=(*join, f"--process={i}")) for i in range(2)]
  _until(both[0], lambda: _lines(run))
  ask = run / profiling.ASK
  ask.touch()
  _until(both[0], lambda: not ask.exists() and list((run / "profile").rglob("*.xplane.pb")))
  (tmp_path / "data.1").touch()
  said = [process.communicate(timeout=simulated.SECONDS)[1] for process in both]
  assert [process.returncode for process in both] == [watchdog.EXIT] * 2, said
  assert "watchdog: process 0 " in said[0]
  assert "watchdog: process 1 " in said[1]
  assert "waits for a device" in said[0]  # which waits for the other process
  assert "in held_up" in said[1]
  assert len(both) == len([x for x in said if "loop.py" in x.split("watchdog: ")[1]])
  assert json.loads((run / goodput.NAME).read_text())["starts"] == 1
