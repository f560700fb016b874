"""What a layer of the frozen language model costs in bfloat16 and in int8, by the TPU compiler.

    JAX_PLATFORMS=cpu python tests/benchmarks/int8_cycles.py --topology v5p:2x2x1

Compiles the prompt's forward pass and the slots' forward and backward pass, real widths and few
layers, for one device of a topology (libtpu, no TPU), and adds up the compiler's own cycles of the
loops over the layers. In milliseconds by calibration: a matmul of 8192^3 in bfloat16 is taken to
reach 0.9 of the device's peak. Compiled, not run. Prints one JSON line for each program.
"""

import argparse
from collections.abc import Callable
import dataclasses
import json
import os
import time
from typing import Any

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from blip3o_jax import layers
from blip3o_jax.models import decoder_lm
from blip3o_jax.plan import estimate
from blip3o_jax.plan import topology
from blip3o_jax.plan.program import Program


def a_turn(text: str) -> int:
  """The compiler's cycles of one turn of each loop of a compiled program."""
  program = Program(text)
  loops = [line for _, line, _ in program.walk() if line.op == "while"]
  bodies = {name for loop in loops for name in loop.called}
  return sum(line.cycles for name in bodies for line in program.computations[name].lines)


def programs(cfg: decoder_lm.Config, rows: int, bucket: int, slots: int, place: Any) -> Any:
  """{name: (function, abstract arguments)}."""
  model = layers.abstract(lambda rngs: decoder_lm.DecoderLM(cfg, rngs=rngs))
  graphdef, state = nnx.split(model)

  def array(*shape: int, dtype: Any = jnp.bfloat16) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

  params = jax.tree.map(
    lambda v: array(*v.shape, dtype=v.dtype if v.dtype == jnp.int8 else jnp.bfloat16),
    nnx.to_pure_dict(state),
  )

  def prompt(params: Any, x: Any, positions: Any, segments: Any) -> Any:
    cache = nnx.merge(graphdef, params).prefill(x, positions, segments, bucket + slots)[1]
    return cache.k, cache.v

  def read(params: Any, table: Any, positions: Any, k: Any, v: Any, segments: Any) -> Any:
    cache = decoder_lm.Cache(k, v, segments, jnp.int32(bucket))

    def hidden(table: Any) -> Any:
      x = jnp.broadcast_to(table, (rows, *table.shape[1:]))
      return nnx.merge(graphdef, params).extend(x, positions, cache)[0]

    found, pull = jax.vjp(hidden, table)
    return found, pull(found)

  ids, whole = array(rows, bucket, dtype=jnp.int32), array(rows, bucket + slots, dtype=jnp.int32)
  kept = array(cfg.depth, rows, bucket + slots, cfg.kv_heads, cfg.head_dim)
  given = array(1, slots, cfg.dim), array(rows, slots, dtype=jnp.int32)
  return {
    "prompt": (prompt, (params, array(rows, bucket, cfg.dim), ids, ids)),
    "slots": (read, (params, *given, kept, kept, whole)),
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--topology", default="v5p:2x2x1")
  parser.add_argument("--size", default="qwen2_5_vl_7b", choices=sorted(decoder_lm.VARIANTS))
  parser.add_argument("--kinds", default="none,int8,int8_backward")
  for name, value in (("depth", 4), ("rows", 16), ("bucket", 160), ("slots", 64)):
    parser.add_argument(f"--{name}", type=int, default=value)
  args = parser.parse_args()
  where = topology.resolve(args.topology, 1)
  devices = topology.devices(where)
  place = SingleDeviceSharding(devices[0])
  milliseconds = 1e3 * estimate.seconds_a_cycle(devices, where.name)

  def compiled(call: Callable[..., Any], given: Any) -> str:
    return str(jax.jit(call).lower(*given).compile().as_text())

  for kind in args.kinds.split(","):
    cfg = dataclasses.replace(
      decoder_lm.VARIANTS[args.size],
      depth=args.depth,
      vocab_size=1024,
      tie_embeddings=True,
      remat="none",
      quantize=kind,
    )
    for name, job in programs(cfg, args.rows, args.bucket, args.slots, place).items():
      began = time.monotonic()
      layer = round(a_turn(compiled(*job)) * milliseconds, 3)
      facts = {"topology": args.topology, "kind": kind, "of": name, "ms_a_layer": layer}
      print(json.dumps(facts | {"compile_seconds": round(time.monotonic() - began)}), flush=True)


if __name__ == "__main__":
  main()
