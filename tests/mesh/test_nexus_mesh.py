"""Nexus-Gen's stages on 1 device, on 8 simulated ones, and with two processes: the same losses."""

import json
from pathlib import Path

import nexus_files
import nexus_smoke
import nexus_worker
import pytest
import simulated
import test_processes


@pytest.mark.slow
def test_eight_devices_train_each_stage_as_one_does(tmp_path):
  home = str(nexus_files.copy(tmp_path / "home"))
  cube = dict(replica=2, fsdp=2, tensor=2, frozen="split", trained="split")
  plan = dict(folder=str(tmp_path / "cube"), home=home, mesh=cube)
  process = simulated.start(nexus_worker.__file__, 8, json.dumps(plan))
  one = nexus_worker.train(str(tmp_path / "one"), home, dict(replica=1, fsdp=1, tensor=1))
  found = simulated.finish(process)
  assert (one["devices"], found["devices"]) == (1, 8)
  for stage in nexus_worker.STAGES:
    assert len(one[stage]["loss"]) == 2
    assert one[stage]["loss"][0] > 0
    assert found[stage]["loss"] == pytest.approx(one[stage]["loss"], rel=1e-4), stage
    assert found[stage]["grad_norm"] == pytest.approx(one[stage]["grad_norm"], rel=1e-3), stage


@pytest.mark.long
@pytest.mark.parametrize("stage", nexus_worker.STAGES)
def test_two_processes_train_as_one_does(tmp_path, stage):
  home, losses = nexus_files.copy(tmp_path / "home"), {}
  for count in (1, 2):
    workdir = tmp_path / f"of_{count}"
    args = [
      f"--config={nexus_smoke.__file__}:stage={stage},home={home}",
      f"--workdir={workdir}",
      "--config.mesh.replica=2",
      "--config.mesh.fsdp=1",
    ]
    address = test_processes.free_address()
    joined = [
      [f"--coordinator={address}", f"--processes={count}", f"--process={i}"] if count > 1 else []
      for i in range(count)
    ]
    started = [
      simulated.train(2 // count, *args, *more, cache=tmp_path / "programs") for more in joined
    ]
    for process in started:
      assert simulated.output(process).startswith("finished at step 2")
    lines = (Path(workdir) / "metrics.jsonl").read_text().splitlines()
    losses[count] = [json.loads(line)["loss"] for line in lines]
  assert len(losses[1]) == 2
  assert losses[2] == pytest.approx(losses[1], rel=1e-6)
