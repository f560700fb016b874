"""`blip3o train` on one, two and four processes: the same records in each row, the same losses.

A run of N processes with a device each is compared with one process that has N devices, which adds
up in the same order, and that one with a single device. A run of two loses one process, then one is
asked to leave, and it goes on as one.
"""

import contextlib
import json
import os
from pathlib import Path
import signal
import socket
import subprocess
import time
from typing import Any

import blip3o_worker
import pytest
import rows_worker
import simulated

from blip3o_jax.train import checkpoint
from blip3o_jax.train import meeting

pytestmark = pytest.mark.slow
BATCH, LONG = 8, 50
ONE = dict(replica=1, fsdp=1, tensor=1)
TWO = dict(replica=2, fsdp=1, tensor=1)
FOUR = dict(replica=1, fsdp=2, tensor=2)  # both lie across processes of one device


def free_address() -> str:
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return f"127.0.0.1:{free.getsockname()[1]}"


class Runs:
  """Starts runs of one config under a folder."""

  def __init__(self, folder: Path):
    self.folder = folder
    self.features = blip3o_worker.cached(folder)

  def __call__(
    self,
    name: str,
    mesh: dict[str, int],
    steps: int,
    devices: int = 1,
    processes: int = 1,
    own: tuple[str, ...] = (),
  ) -> list[subprocess.Popen[str]]:
    args = [f"--config.mesh.{axis}={ways}" for axis, ways in mesh.items()]
    args += [f"--config={blip3o_worker.CONFIG}", f"--workdir={self.folder / name}"]
    args += [
      f"--config.steps={steps}",
      f"--config.batch={BATCH}",
      "--config.log.every=1",
      "--config.log.tensorboard=False",
      "--config.log.record_ids=True",
      "--config.checkpoint.every_steps=5",
      "--config.checkpoint.keep=1",
      "--config.optimizer.schedule=constant",
      "--config.optimizer.warmup_steps=0",
      "--config.optimizer.lr=1e-3",
      "--config.model.parts=('denoiser',)",
      "--config.data.features=True",
      f"--config.data.path={self.features}",
      f"--config.data.records={blip3o_worker.RECORDS}",
    ]
    joined: list[list[str]] = [[]]
    if processes > 1:
      join = [f"--coordinator={free_address()}", f"--processes={processes}"]
      joined = [[*join, f"--process={i}", *own[i : i + 1]] for i in range(processes)]
    return [simulated.train(devices, *args, *j, cache=self.folder / "programs") for j in joined]

  def losses(self, name: str) -> list[float]:
    """Of each step from the first on."""
    lines = [json.loads(x) for x in (self.folder / name / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]

  def records(self, name: str) -> dict[int, dict[int, set[int]]]:
    """{step: {row of the global batch: records that the processes say stood there}}."""
    out: dict[int, dict[int, set[int]]] = {}
    for file in (self.folder / name / "records").iterdir():
      for line in map(json.loads, file.read_text().splitlines()):
        for row, record in zip(line["rows"], line["records"], strict=True):
          out.setdefault(line["step"], {}).setdefault(row, set()).add(record)
    return out


def saved(processes: list[subprocess.Popen[str]], workdir: Path, step: int) -> None:
  """Waits until a run has a checkpoint of a step, or a later one."""
  until = time.monotonic() + simulated.SECONDS
  while checkpoint.steps(workdir)[-1:] < [step]:
    ended = [p.communicate()[1][-4000:] for p in processes if p.poll() is not None]
    assert not ended, ended
    assert time.monotonic() < until
    time.sleep(0.02)


def killed(processes: list[subprocess.Popen[str]], victim: int) -> None:
  """kill -9 of one process; the others leave by themselves, with a last line that names it."""
  processes[victim].kill()
  for i, process in enumerate(processes):
    _, err = process.communicate(timeout=simulated.SECONDS)
    if i != victim:
      last = err.splitlines()[-1]
      assert process.returncode == meeting.GONE, err[-4000:]
      assert f"process {victim}" in last
      assert "is gone: " in last
      assert f"process {i} leaves with exit code 77: start all processes again" in last


def asked_to_leave(processes: list[subprocess.Popen[str]], which: int) -> int:
  """SIGTERM to one process; all save the same step and leave. Returns the step."""
  processes[which].send_signal(signal.SIGTERM)
  steps = set()
  for process in processes:
    out, err = process.communicate(timeout=simulated.SECONDS)
    assert process.returncode in (0, os.EX_TEMPFAIL), err[-4000:]
    assert out.splitlines()[-1].startswith("interrupted at step "), out
    steps.add(int(out.split()[-1]))
  (step,) = steps
  return step


@pytest.fixture(scope="module")
def runs(tmp_path_factory: Any) -> Any:
  """All runs, finished."""
  start = Runs(tmp_path_factory.mktemp("runs"))
  with contextlib.ExitStack() as stack:

    def begin(*args: Any, **options: Any) -> list[subprocess.Popen[str]]:
      made = start(*args, **options)
      for process in made:
        stack.callback(process.kill)
      return made

    parts = begin("parts", TWO, LONG, processes=2)
    whole = begin("two", TWO, LONG, devices=2)
    saved(parts, start.folder / "parts", 5)
    killed(parts, 1)
    first = checkpoint.steps(start.folder / "parts")[-1]
    assert 5 <= first < LONG
    parts = begin("parts", TWO, LONG, processes=2)
    saved(parts, start.folder / "parts", first + 5)
    step = asked_to_leave(parts, 1)
    assert first < step < LONG
    assert checkpoint.steps(start.folder / "parts")[-1] == step
    simulated.output(whole[0])
    four = begin("four", FOUR, 10, processes=4)
    others = begin("one", ONE, 10) + begin("cube", FOUR, 10, devices=4)
    others += begin("parts", TWO, LONG, devices=2)
    for process in four + others:
      assert simulated.output(process).startswith("finished at step")
  return start


def test_two_processes_of_which_one_was_killed_then_one_asked_to_leave_and_went_on_as_one(runs):
  found, expected = runs.losses("parts"), runs.losses("two")
  assert len(found) == len(expected) == LONG
  assert found == pytest.approx(expected, rel=1e-6)


def test_four_processes_with_fsdp_and_tensor_across_them(runs):
  assert len(runs.losses("four")) == 10
  assert runs.losses("four") == pytest.approx(runs.losses("cube"), rel=1e-6)


def test_one_device_gets_the_same_losses(runs):
  one = runs.losses("one")
  for name in ("two", "four", "cube"):
    assert runs.losses(name)[:10] == pytest.approx(one, rel=1e-4)


def test_every_row_holds_the_same_record(runs):
  one = runs.records("one")
  assert list(one) == list(range(1, 11))
  for step, rows in one.items():
    assert sorted(rows) == list(range(BATCH))
    assert len(set.union(*rows.values())) == BATCH
    for name in ("two", "parts", "four", "cube"):
      assert runs.records(name)[step] == rows, name
  assert {k: v for k, v in runs.records("parts").items() if k <= LONG} == runs.records("two")


def test_processes_load_what_their_devices_hold(runs):
  def rows(name: str) -> dict[str, list[int]]:
    files = (runs.folder / name / "records").iterdir()
    return {f.stem: json.loads(f.read_text().splitlines()[0])["rows"] for f in sorted(files)}

  first, second = list(range(BATCH // 2)), list(range(BATCH // 2, BATCH))
  assert list(rows("four").values()) == [first, first, second, second]
  assert rows("parts")["process_1"] == second


def test_devices_may_lie_in_any_order():
  """Those of two processes in turn: rows with gaps, and rows that both processes hold."""
  cases = [
    (dict(replica=1, fsdp=4, tensor=1), ([0, 1, 4, 5], [2, 3, 6, 7])),
    (dict(replica=1, fsdp=2, tensor=2), ([*range(BATCH)], [*range(BATCH)])),
    (dict(replica=2, fsdp=2, tensor=1), ([0, 1, 2, 3], [4, 5, 6, 7])),
  ]
  address, plan = free_address(), json.dumps([mesh for mesh, _ in cases])
  processes = [simulated.start(rows_worker.__file__, 2, address, str(i), plan) for i in range(2)]
  for i, process in enumerate(processes):
    for found, (_, rows) in zip(simulated.finish(process), cases, strict=True):
      assert found["rows"] == rows[i]
      assert found["sum"] == sum(range(BATCH))
      held = f"hold {len(rows[i])} of the 8 of the global batch"
      assert found["refused"] == f"batch x: 3 rows, but this process's devices {held}"


def test_different_configs_are_refused_by_name_before_anything_is_compiled(runs):
  """Two learning rates would end with a checkpoint that is neither's model."""
  own = ("--config.optimizer.lr=1e-3", "--config.optimizer.lr=2e-3")
  for process in runs("differ", TWO, LONG, processes=2, own=own):
    _, err = process.communicate(timeout=simulated.SECONDS)
    assert process.returncode == 1
    differ = "config.optimizer.lr: 0.001 in process 0, 0.002 in process 1"
    assert err.splitlines()[-1] == f"blip3o train: the processes of this run differ: {differ}"
  assert not (runs.folder / "differ").exists()
