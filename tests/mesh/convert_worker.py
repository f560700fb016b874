"""Restores a converted directory onto meshes in a process of its own; prints facts as one line.

Run by test_convert_mesh.py with as many CPU devices as the process was started with.
"""

import dataclasses
import hashlib
import json
import math
from pathlib import Path
import sys
from typing import Any

from flax import nnx
import jax
import numpy as np

from blip3o_jax import sharding
from blip3o_jax import trees
from blip3o_jax.systems import blip3o
from blip3o_jax.systems.blip3o import released
from blip3o_jax.systems.parts import loading
from blip3o_jax.weights import store


class Counting(store.Arrays):
  """Arrays that count the bytes which are asked for, by component."""

  bytes: dict[str, int] = {}  # noqa: RUF012

  def read(self, path: str, index: Any) -> np.ndarray:
    out = super().read(path, index)
    name = blip3o.COMPONENTS[path.partition("/")[0]]
    Counting.bytes[name] = Counting.bytes.get(name, 0) + out.nbytes
    return out


def digest(found: dict[str, jax.Array]) -> str:
  """A hash of all values, however they lie on devices."""
  out = hashlib.sha256()
  for path in sorted(found):
    out.update(path.encode() + np.asarray(found[path]).tobytes())
  return out.hexdigest()


def restore(directory: Path, mesh: dict[str, int], modules: list[str]) -> dict[str, Any]:
  """Loads the modules onto a mesh: {hash, bytes read, bytes on devices, a shard's shape}."""
  cfg, _ = released.read(directory, "float32")
  # Without the miniature's tower, whose MLP has 127 channels, which no mesh divides.
  cfg = dataclasses.replace(cfg, parts=("visual", "head", "denoiser"))
  made = sharding.make_mesh(**mesh)
  model = nnx.eval_shape(lambda: blip3o.build(cfg, nnx.Rngs(0)))
  places = trees.flatten(sharding.shardings(model, made))
  shapes = trees.flatten(nnx.to_pure_dict(nnx.state(model)))
  wanted = {
    p: jax.ShapeDtypeStruct(s.shape, np.float32, sharding=places[p])
    for p, s in shapes.items()
    if p.partition("/")[0] in modules
  }
  Counting.bytes = {}
  store.Arrays = Counting  # type: ignore[misc]
  found, _ = loading.fill(blip3o, cfg, loading.resolve([str(directory)]), wanted, wanted)
  held = 0
  for path, value in found.items():
    assert value.sharding == wanted[path].sharding
    indices = {str(s.index): s.data.size for s in value.addressable_shards}
    held += 4 * sum(indices.values())
  return {
    "hash": digest(found),
    "read": Counting.bytes,
    "held": held,
    "whole": 4 * sum(math.prod(v.shape) for v in found.values()),
    "shards": {p: list(v.addressable_shards[0].data.shape) for p, v in found.items()},
  }


if __name__ == "__main__":
  directory, plan = Path(sys.argv[1]), json.loads(sys.argv[2])
  sys.stdout.write(json.dumps([restore(directory, *each) for each in plan]) + "\n")
