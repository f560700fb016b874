"""`blip3o train` as several processes: one of four is killed, or SIGTERM comes while all save."""

import os
import signal
import subprocess
import time
from typing import Any

import pytest
import simulated
import test_processes
from test_processes import FOUR
from test_processes import TWO

from blip3o_jax.train import checkpoint
from blip3o_jax.train import meeting
from blip3o_jax.train.processes import Distributed

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]
LONG, VICTIM, TRIES = 60, 2, 5


@pytest.fixture
def start(tmp_path) -> Any:
  """start(...) as `Runs`; what still runs at the end of the test is killed."""
  runs, made = test_processes.Runs(tmp_path), []

  def begin(*args: Any, **options: Any) -> list[subprocess.Popen[str]]:
    made.extend(runs(*args, **options))
    return made[-options.get("processes", 1) :]

  begin.runs = runs  # type: ignore[attr-defined]
  yield begin
  for process in made:
    process.kill()
    process.communicate()


def test_of_four_processes_one_is_killed_and_four_then_two_go_on(tmp_path, start):
  """The others leave in time, each with one line that names it; the losses are the same."""
  workdir = tmp_path / "parts"
  four = start("parts", FOUR, LONG, processes=4)
  test_processes.saved(four, workdir, 5)
  four[VICTIM].kill()
  killed = time.monotonic()
  left, said = {}, {}
  while len(left) < len(four):
    left |= {
      i: time.monotonic() - killed
      for i, process in enumerate(four)
      if i not in left and process.poll() is not None
    }
    assert time.monotonic() - killed < simulated.SECONDS, "some do not leave at all"
    time.sleep(0.05)
  for i, process in enumerate(four):
    said[i] = process.communicate()[1]
  assert four[VICTIM].returncode == -signal.SIGKILL
  for i in set(range(4)) - {VICTIM}:
    assert four[i].returncode == meeting.GONE == 77, said[i][-4000:]
    (line,) = [x for x in said[i].splitlines() if "leaves with exit code" in x]
    assert line == said[i].splitlines()[-1]
    assert line.startswith(f"blip3o train: process {VICTIM} (")
    assert f", pid {four[VICTIM].pid}) is gone: " in line
    assert line.endswith(f"process {i} leaves with exit code 77: start all processes again")
  assert max(left.values()) < Distributed().silent_seconds, left
  first = checkpoint.steps(workdir)[-1]
  assert 5 <= first < LONG - 5
  for process in start("parts", FOUR, first + 5, processes=4):
    assert simulated.output(process) == f"finished at step {first + 5}"
  two = start("parts", FOUR, LONG, devices=2, processes=2)
  (whole,) = start("cube", FOUR, LONG, devices=4)
  for process in (*two, whole):
    assert simulated.output(process) == f"finished at step {LONG}"
  found, expected = start.runs.losses("parts"), start.runs.losses("cube")
  assert len(found) == LONG
  assert found == pytest.approx(expected, rel=1e-6)


def test_more_sigterms_to_all_do_not_stop_the_save_of_the_first(tmp_path, start):
  """They come to every process while the files are not whole: all of them are stopped meanwhile."""
  workdir, steps = tmp_path / "parts", 10**6
  for _ in range(TRIES):
    before = checkpoint.steps(workdir)
    # Saves on SIGTERM alone.
    more = ("--config.checkpoint.every_steps=0",) * 2
    both = start("parts", TWO, steps, processes=2, own=more)
    metrics = workdir / "metrics.jsonl"
    size = metrics.stat().st_size if metrics.exists() else 0
    wait(both, lambda size=size, file=metrics: file.exists() and file.stat().st_size > size)
    both[1].send_signal(signal.SIGTERM)
    wait(both, lambda: list((workdir / "checkpoints").glob("*tmp*")))
    for process in both:
      process.send_signal(signal.SIGSTOP)
    in_time = checkpoint.steps(workdir) == before
    for process in both:
      process.send_signal(signal.SIGTERM)
    for process in both:
      process.send_signal(signal.SIGCONT)
    for process in both:  # while the files are written, and as they leave
      process.send_signal(signal.SIGTERM)
    ended = [process.communicate(timeout=simulated.SECONDS) for process in both]
    for process, (_, err) in zip(both, ended, strict=True):
      assert process.returncode == os.EX_TEMPFAIL == 75, err[-4000:]
    (step,) = {out.splitlines()[-1] for out, _ in ended}
    (new,) = set(checkpoint.steps(workdir)) - set(before)
    assert step == f"interrupted at step {new}"
    for _, err in ended:
      assert f"SIGTERM: saved step {new} of {steps}, leaving" in err
    if in_time:
      break
  else:
    pytest.fail(f"of {TRIES} saves none was met before it was whole")
  # Whole: the run goes on from it, with nothing set aside.
  (one,) = start("parts", TWO, new + 2, devices=2)
  out, err = one.communicate(timeout=simulated.SECONDS)
  assert out.splitlines()[-1] == f"finished at step {new + 2}", err[-4000:]
  assert f"resuming from step {new} in " in err
  assert "damaged" not in err


def wait(processes: list[subprocess.Popen[str]], true: Any) -> None:
  """Returns when something is true of processes that all still run."""
  until = time.monotonic() + simulated.SECONDS
  while not true():
    ended = [p.communicate()[1][-4000:] for p in processes if p.poll() is not None]
    assert not ended, ended
    assert time.monotonic() < until
    time.sleep(0.001)
