"""Which process this is, by flags, variables and clusters; and the mesh over several slices."""

import types
from typing import Any

import jax
from jax.experimental import mesh_utils
import numpy as np
import pytest

from blip3o_jax import sharding
from blip3o_jax.train import processes
from blip3o_jax.train.meeting import Place
from blip3o_jax.train.processes import Distributed

VARIABLES = {
  "JAX_COORDINATOR_ADDRESS": "one:1234",
  "JAX_NUM_PROCESSES": "4",
  "JAX_PROCESS_ID": "2",
}
SLURM = {
  "SLURM_JOB_ID": "7",
  "SLURM_STEP_NODELIST": "node[003-004],other",
  "SLURM_NTASKS": "6",
  "SLURM_PROCID": "5",
  "SLURM_LOCALID": "1",
}


@pytest.mark.parametrize(
  ("asked", "variables", "expected"),
  [
    (("", 0, -1), {}, None),
    (("here:1", 3, 1), {}, Place("here:1", 3, 1)),
    (("[::1]:80", 2, 0), {}, Place("[::1]:80", 2, 0)),
    (("", 0, -1), VARIABLES, Place("one:1234", 4, 2)),
    (("two:1", 0, 3), VARIABLES, Place("two:1", 4, 3)),
    (("here:1", 1, 0), {}, None),
    (("here:1", 2, 0), {"JAX_LOCAL_DEVICE_IDS": "0,1"}, Place("here:1", 2, 0, (0, 1))),
  ],
)
def test_flags_go_before_variables(asked, variables, expected):
  assert processes.find(*asked, Distributed(), variables) == expected


@pytest.mark.parametrize(
  ("asked", "variables", "message"),
  [
    (("here:1", 0, -1), {}, "'here:1': needs --processes of at least 1"),
    (("here:1", 2, 2), {}, "found processes 2, process 2"),
    (("here", 2, 1), {}, "'here': expected HOST:PORT"),
    (("here:99999", 2, 1), {}, "'here:99999': expected HOST:PORT"),
    (("", 2, 1), {}, "--processes 2 --process 1: expected --coordinator=HOST:PORT"),
    (("", 0, -1), VARIABLES | {"JAX_PROCESS_ID": "x"}, "JAX_PROCESS_ID 'x': expected a number"),
    (("h:1", 2, 1), {"JAX_LOCAL_DEVICE_IDS": "a"}, "JAX_LOCAL_DEVICE_IDS 'a'"),
    (("auto", 0, -1), {}, "--coordinator=auto: no cluster found"),
  ],
)
def test_what_does_not_say_who_this_is_is_refused(asked, variables, message):
  with pytest.raises(ValueError, match=r"^(coordinator|--|JAX)") as error:
    processes.find(*asked, Distributed(), variables)
  assert message in str(error.value)


def test_slurm_by_its_variables(monkeypatch):
  for name, value in SLURM.items():
    monkeypatch.setenv(name, value)
  place = processes.find("auto", 6, -1, Distributed(processes=6), SLURM)
  assert place == Place(f"node003:{65535 - 4096 + 1 + 7}", 6, 5, (1,))
  with pytest.raises(ValueError, match="--processes 8: 6 processes found"):
    processes.find("auto", 8, -1, Distributed(), SLURM)


def test_gke_by_its_variables(monkeypatch):
  """Two slices of two hosts; this one is the second host of the second slice."""
  from jax._src.clusters import cloud_tpu_cluster

  monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)  # no TPU here
  variables = {
    "TPU_WORKER_HOSTNAMES": "localhost,other",
    "TPU_WORKER_ID": "1",
    "MEGASCALE_COORDINATOR_ADDRESS": "localhost",
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "1",
  }
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  place = processes.find("auto", 0, -1, Distributed(processes=4), variables)
  assert place == Place("localhost:8482", 4, 3)


def test_a_run_that_should_be_of_several_is_not_of_one():
  with pytest.raises(ValueError, match=r"distributed\.processes 16: 1 process found"):
    processes.find("", 0, -1, Distributed(processes=16), {})


def test_bounds_are_checked():
  with pytest.raises(ValueError, match=r"distributed\.join_seconds 0: expected at least 1"):
    Distributed(join_seconds=0)


def test_facts_name_the_code_and_the_packages():
  found = processes.facts({"config.steps": "3"}, "/w")
  assert found["config.steps"] == "3"
  assert found["--workdir"] == "/w"
  assert found["package jax"] == jax.__version__
  assert len(found["source of blip3o_jax"]) == 16


def pod(slices: int, each: int) -> list[Any]:
  """Devices of a pod that is not there, slices in turn, as no pod would list them."""
  return [
    types.SimpleNamespace(id=i, slice_index=i % slices, platform="tpu", device_kind="TPU v4")
    for i in range(slices * each)
  ]


def laid(monkeypatch: pytest.MonkeyPatch, devices: list[Any], **ways: int) -> np.ndarray:
  """Slice indices over the mesh; JAX lays out the devices of a slice, which needs real ones."""

  def inside(shape: Any, devices: Any, **_: Any) -> Any:
    return np.asarray(devices, object).reshape(shape)

  monkeypatch.setattr(mesh_utils, "create_device_mesh", inside)
  monkeypatch.setattr(jax.sharding, "Mesh", lambda found, *_, **__: found)
  found = sharding.make_mesh(**ways, devices=devices)
  return np.vectorize(lambda device: device.slice_index)(found)


def test_only_replica_crosses_slices(monkeypatch):
  found = laid(monkeypatch, pod(2, 8), replica=4, fsdp=2, tensor=2)
  assert found.shape == (4, 2, 2)
  assert [np.unique(copy).tolist() for copy in found] == [[0], [0], [1], [1]]


def test_a_copy_in_two_slices_is_refused():
  message = r"config\.mesh: replica 1 over 2 slices of 8, 8 devices: expected slices of one size"
  with pytest.raises(ValueError, match=message):
    sharding.make_mesh(replica=1, fsdp=0, devices=pod(2, 8))
