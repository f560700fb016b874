"""The real system on 1 device and on meshes of 8 simulated devices: the same losses."""

import json

import blip3o_worker
import pytest
import simulated


def test_eight_devices_train_the_system_as_one_does(tmp_path):
  features = blip3o_worker.cached(tmp_path)
  one = blip3o_worker.train(str(tmp_path / "one"), features, dict(replica=1, fsdp=1, tensor=1))
  plan = [
    dict(workdir=str(tmp_path / name), features=features, mesh=mesh)
    for name, mesh in (
      ("eight", dict(replica=1, fsdp=8, tensor=1, frozen="split", trained="split")),
      ("cube", dict(replica=2, fsdp=2, tensor=2, frozen="whole", trained="whole")),
    )
  ]
  eight, cube = simulated.finish(simulated.start(blip3o_worker.__file__, 8, json.dumps(plan)))
  assert (one["devices"], eight["devices"], cube["devices"]) == (1, 8, 8)
  assert (one["shard"], eight["shard"], cube["shard"]) == ([64, 64], [8, 64], [32, 32])
  for found in (eight, cube):
    assert found["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert found["norms"] == pytest.approx(one["norms"], rel=1e-3)
  assert "frozen leaves are whole on each device but for tensor: " in cube["said"]
  assert "trained leaves are gathered once a step" in cube["said"]
  assert "frozen leaves are split: " in eight["said"]
  # The plan has no words of its own for it.
  assert "frozen leaves are whole on each device but for tensor and take" in cube["said"]
  assert "frozen leaves are split and would take, if whole," in eight["said"]
  assert "replicated" not in cube["said"] + eight["said"]
  assert min(one["tflops"]) > 0
