"""Compiles an addition for each generation of TPUs with the options of its step; no TPU needed."""

import json

import jax
from jax.experimental import topologies
import jax.numpy as jnp

from blip3o_jax import compiling

if __name__ == "__main__":
  took = {}
  for name in ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"):
    device = topologies.get_topology_desc(platform="tpu", topology_name=name).devices[0]
    place = jax.sharding.SingleDeviceSharding(device)
    x = jax.ShapeDtypeStruct((8, 128), jnp.float32, sharding=place)
    chosen = compiling.options(device.device_kind, {})
    jax.jit(lambda x: x + 1).lower(x).compile(compiler_options=chosen)
    took[device.device_kind] = len(chosen)
  print(json.dumps(took))
