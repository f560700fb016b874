"""The same training on 1 device and on meshes of 8 simulated devices."""

import json
import subprocess
from typing import Any

import pytest
import simulated
import toy
import train_worker

ONE = dict(replica=1, fsdp=1, tensor=1)


def _start(devices: int, plan: list[dict[str, Any]]) -> subprocess.Popen[str]:
  return simulated.start(train_worker.__file__, devices, json.dumps(plan))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: Any) -> str:
  return toy.released(tmp_path_factory.mktemp("weights"), train_worker.CFG, "encoder")


@pytest.fixture(scope="module")
def one_device(tmp_path_factory: Any, weights: str) -> dict[str, Any]:
  found = train_worker.train(str(tmp_path_factory.mktemp("one")), weights, ONE, 4)
  # As JSON, so that the steps are strings here too.
  return json.loads(json.dumps(found))


def _same(found: dict[str, Any], expected: dict[str, Any]) -> None:
  for name in ("losses", "norms", "eval"):
    assert found[name] == pytest.approx(expected[name], rel=1e-4), name


def test_eight_devices_give_the_same_losses(tmp_path, weights, one_device):
  eight, cube = dict(replica=1, fsdp=8, tensor=1), dict(replica=2, fsdp=2, tensor=2)
  runs = [
    dict(workdir=str(tmp_path / "eight"), weights=weights, mesh=eight, steps=2),
    dict(workdir=str(tmp_path / "cube"), weights=weights, mesh=cube, steps=4),
    # The checkpoint of 8 x 1 goes on as 2 x 2 x 2.
    dict(workdir=str(tmp_path / "eight"), weights=weights, mesh=cube, steps=4),
  ]
  first, whole, moved = simulated.finish(_start(8, runs))
  assert {x["devices"] for x in (first, whole, moved)} == {8}
  assert one_device["devices"] == 1
  assert (one_device["shard"], first["shard"], whole["shard"]) == (
    [1, 8, 16],
    [1, 1, 16],
    [1, 4, 8],
  )
  _same(whole, one_device)
  _same(moved, one_device)
  for run in (one_device, first, whole, moved):
    assert run["frozen"] == run["released"]
  assert first["losses"] == {k: moved["losses"][k] for k in ("1", "2")}


@pytest.mark.slow
def test_moments_on_the_host_go_from_mesh_to_mesh_and_back_to_the_device(
  tmp_path, weights, one_device
):
  eight, cube = dict(replica=1, fsdp=8, tensor=1), dict(replica=2, fsdp=2, tensor=2)
  run = dict(workdir=str(tmp_path / "run"), weights=weights)
  runs = [
    run | dict(mesh=eight, steps=2, host_moments=True),
    run | dict(mesh=cube, steps=3, host_moments=True),
    run | dict(mesh=cube, steps=4),
  ]
  *_, last = simulated.finish(_start(8, runs))
  for name in ("losses", "norms"):
    assert last[name] == pytest.approx(one_device[name], rel=1e-4), name
