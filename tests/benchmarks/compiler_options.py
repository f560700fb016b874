"""What options of the TPU compiler change in a small program with collectives; needs no TPU.

    python tests/benchmarks/compiler_options.py --topology v5p:2x2x1 --options NAME=VALUE ...

Compiles 6 scanned gated MLPs of the DiT's widths, float32 weights split over all chips and used in
bfloat16, forward, backward and update: with the compiler's defaults, with the options given, and
with those of blip3o_jax/compiling.py. Prints one JSON line a program: estimated cycles with trip
counts (waiting for a collective does not count), collectives by kind, those fused into matmuls, and
whether the program is the same as by default.
"""

import argparse
from collections import Counter
import json
import os
import re
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import jax
from jax.experimental import topologies
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from blip3o_jax import compiling
from blip3o_jax.plan.program import Program

LAYERS, DIM, MLP_DIM, ROWS = 6, 1792, 4864, 1024  # rows of one chip
KIND = re.compile(
  r" (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)


def lowered(devices: Any) -> Any:
  """The program, lowered for these devices."""
  mesh = jax.sharding.Mesh(np.array(devices), ("fsdp",))

  def weight(*shape: int, axis: int) -> Any:
    spec = P(None, *("fsdp" if i == axis else None for i in range(2)))
    place = NamedSharding(mesh, spec)
    return jax.ShapeDtypeStruct((LAYERS, *shape), jnp.float32, sharding=place)

  params = {
    "up": weight(DIM, MLP_DIM, axis=0),
    "gate": weight(DIM, MLP_DIM, axis=0),
    "down": weight(MLP_DIM, DIM, axis=1),
    "proj": weight(DIM, DIM, axis=0),
  }
  rows = NamedSharding(mesh, P("fsdp"))
  x = jax.ShapeDtypeStruct((ROWS * len(devices), DIM), jnp.bfloat16, sharding=rows)

  def layer(x: jax.Array, w: dict[str, jax.Array]) -> tuple[jax.Array, None]:
    square = jnp.mean(jnp.square(x.astype(jnp.float32)), -1, keepdims=True)
    x = x + (x * jax.lax.rsqrt(square + 1e-6).astype(x.dtype)) @ w["proj"]
    return x + (jax.nn.silu(x @ w["gate"]) * (x @ w["up"])) @ w["down"], None

  def loss(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    x, _ = jax.lax.scan(layer, x, jax.tree.map(lambda p: p.astype(jnp.bfloat16), params))
    return jnp.mean(jnp.square(x.astype(jnp.float32)))

  def step(params: dict[str, jax.Array], x: jax.Array) -> Any:
    value, grads = jax.value_and_grad(loss)(params, x)
    return jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads), value

  places = (jax.tree.map(lambda p: p.sharding, params), NamedSharding(mesh, P()))
  with jax.set_mesh(mesh):
    return jax.jit(step, donate_argnums=0, out_shardings=places).lower(params, x)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--topology", default="v5p:2x2x1", help="of one slice, e.g. v6e:2x2")
  parser.add_argument("--options", nargs="*", default=[], metavar="NAME=VALUE")
  chosen = parser.parse_args()
  devices = topologies.get_topology_desc(platform="tpu", topology_name=chosen.topology).devices
  given = dict(option.split("=", 1) for option in chosen.options)
  own = compiling.options(devices[0].device_kind, {})
  program, default = lowered(devices), ""
  for options in ({}, given, own) if given else ({}, own):
    done = program.compile(compiler_options=options)
    text = re.sub(r"metadata=\{[^}]*\}", "", done.as_text())
    default = default or text
    facts = {
      "options": options,
      "cycles": Program(done.as_text()).cycles,
      "collectives": dict(Counter(KIND.findall(text))),
      "fused": len(re.findall(r"async_collective_fusion|async-collective-fusion", text)),
      "temporary_mib": done.memory_analysis().temp_size_in_bytes >> 20,
      "as_default": text == default,
    }
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
  main()
