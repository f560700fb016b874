"""A conversion on 1 device and on meshes of 8 simulated ones, whole or a component alone."""

import json
from pathlib import Path
import shutil

import convert_worker
import pytest
import simulated

from blip3o_jax.convert import importer
from blip3o_jax.systems import blip3o
from blip3o_jax.weights import store

TINY = Path(__file__).parents[1] / "data" / "tiny-blip3o"
ONE = {"replica": 1, "fsdp": 1, "tensor": 1}
MESHES = (
  {"replica": 1, "fsdp": 8, "tensor": 1},
  {"replica": 2, "fsdp": 2, "tensor": 2},
)
MODULES = ("backbone", "slots", "denoiser")
KERNEL = "backbone/layers/mlp/up_proj/kernel"


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
  out = tmp_path_factory.mktemp("converted") / "tiny"
  importer.run(TINY, out, say=lambda _: None)
  return out


def restored(directory, devices, *plan):
  """What the worker says of each (mesh, modules)."""
  return simulated.finish(
    simulated.start(convert_worker.__file__, devices, str(directory), json.dumps(plan))
  )


def test_any_mesh_gets_the_same_numbers(converted):
  (one,) = restored(converted, 1, [ONE, MODULES])
  plan = [[mesh, MODULES] for mesh in MESHES] + [[MESHES[1], [m]] for m in ("denoiser", "backbone")]
  found = restored(converted, 8, *plan)
  for each in found[:2]:
    assert each["hash"] == one["hash"]
  assert [each["shards"][KERNEL] for each in (one, *found[:2])] == [
    [3, 64, 160],
    [3, 8, 160],
    [3, 32, 80],
  ]
  # Each distinct shard is read once, and a component alone reads nothing of the rest.
  for each in found:
    assert sum(each["read"].values()) == each["held"] == each["whole"]
  assert set(found[2]["read"]) == {"generation"}
  assert set(found[3]["read"]) == {"backbone"}


def test_a_component_alone_needs_no_other(converted, tmp_path):
  """The generator is restored although the arrays of every other component are gone."""
  copied = tmp_path / "copied"
  shutil.copytree(converted, copied)
  for name in set(blip3o.COMPONENTS.values()):
    for block in (copied / store.FOLDER / name).glob("*/0*"):
      if name != "generation":
        block.unlink()
  (found,) = restored(copied, 8, [MESHES[0], ["slots", "denoiser"]])
  assert set(found["read"]) == {"generation"}
