"""Puts a batch on meshes whose devices belong to two processes in turn; prints facts as JSON.

Run by test_processes.py as two processes with two CPU devices each: address, index, meshes.
"""

import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from blip3o_jax import sharding
from blip3o_jax.train import distributed
from blip3o_jax.train import processes

BATCH = 8


def put(ways: dict[str, int]) -> dict[str, Any]:
  """{rows: that this process feeds, sum: of the global batch, refused: a batch of 3 rows}."""
  first, second = (jax.local_devices(process_index=i) for i in range(2))
  devices = [device for pair in zip(first, second, strict=True) for device in pair]
  mesh = sharding.make_mesh(**ways, devices=devices)
  rows = distributed.local_rows(mesh, BATCH)
  batch = {"x": np.asarray(rows, np.float32)[:, None] * np.ones(3, np.float32)}
  found = distributed.put(batch, mesh, BATCH)["x"]
  assert found.shape == (BATCH, 3)
  for shard in found.addressable_shards:
    at = range(BATCH)[shard.index[0]]
    np.testing.assert_array_equal(np.asarray(shard.data)[:, 0], np.asarray(at))
  total = jax.jit(jnp.sum, out_shardings=sharding.replicated(mesh))(found[:, 0])
  try:
    distributed.put({"x": np.zeros((3, 1))}, mesh, BATCH)
  except ValueError as error:
    refused = str(error)
  return {"rows": list(rows), "sum": float(total), "refused": refused}


if __name__ == "__main__":
  place = processes.Place(sys.argv[1], 2, int(sys.argv[2]))
  with processes.joined(place, {}, processes.Distributed()):
    sys.stdout.write(json.dumps([put(mesh) for mesh in json.loads(sys.argv[3])]) + "\n")
