"""Run by test_topology.py in a process of its own: compiles for v5e:2x2, prints facts as JSON."""

import json
import re
from typing import Any

import jax
from jax.experimental import topologies
import jax.numpy as jnp
from jax.sharding import NamedSharding
import optax

from blip3o_jax import sharding
from blip3o_jax import trees
from blip3o_jax.attention import attention
from blip3o_jax.train import optimizer
from blip3o_jax.train import state as train_state

ROWS, LENGTH, HEADS, KV_HEADS, HEAD_DIM = 4, 4096, 4, 2, 64
DIM, MLP_DIM, LAYERS = 1024, 4096, 16


def abstract(mesh: jax.sharding.Mesh, shape: tuple[int, ...], dtype: Any, *axes: str | None) -> Any:
  place = NamedSharding(mesh, sharding.to_spec(axes))
  return jax.ShapeDtypeStruct(shape, dtype, sharding=place)


def attention_facts(mesh: jax.sharding.Mesh, impl: Any) -> dict[str, Any]:
  """Forward and backward of causal, grouped, packed attention."""

  def loss(q, k, v, segments):
    out = attention(q, k, v, segments=segments, causal=True, impl=impl)
    return out.astype(jnp.float32).sum()

  heads = ("batch", None, "heads", None)
  q, k = (
    abstract(mesh, (ROWS, LENGTH, n, HEAD_DIM), jnp.bfloat16, *heads) for n in (HEADS, KV_HEADS)
  )
  segments = abstract(mesh, (ROWS, LENGTH), jnp.int32, "batch", None)
  done = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, k, segments).compile()
  text = done.as_text()
  return {
    "kernels": text.count('custom_call_target="tpu_custom_call"'),
    "queries": re.search(r"\{\((\w+\[[\d,]+\])", text).group(1),  # type: ignore[union-attr]
    "temp_bytes": done.memory_analysis().temp_size_in_bytes,
  }


def matmul_facts(mesh: jax.sharding.Mesh) -> dict[str, Any]:
  """A float32 kernel of two sharded dims, used in bfloat16."""

  def run(x, kernel):
    y = x.astype(jnp.bfloat16) @ kernel.astype(jnp.bfloat16)
    return sharding.constrain(y, "batch", None, "mlp")

  x = abstract(mesh, (ROWS, LENGTH, DIM), jnp.bfloat16, "batch", None, None)
  kernel = abstract(mesh, (DIM, MLP_DIM), jnp.float32, "embed", "mlp")
  done = jax.jit(run).lower(x, kernel).compile()
  gathers = re.findall(r"= \(?(\w+)\[[^=]*? all-gather(?:-start)?\(", done.as_text())
  return {
    "argument_bytes": done.memory_analysis().argument_size_in_bytes,
    "expected_argument_bytes": x.size // 2 * 2 + kernel.size // 4 * 4,
    "gathered": sorted(set(gathers)),
  }


def moment_facts(mesh: jax.sharding.Mesh, host: bool) -> dict[str, int]:
  """AdamW of a stacked kernel and a loose one, with the moments of the layers on the host or not.

  The gradients' buffers become the updates', as in a step.
  """
  axes = {"blocks/kernel": ("layers", "embed", "mlp"), "head/kernel": ("embed", "mlp")}
  shapes = {"blocks/kernel": (LAYERS, DIM, MLP_DIM), "head/kernel": (DIM, MLP_DIM)}
  leaves = {p: abstract(mesh, shape, jnp.float32, *axes[p]) for p, shape in shapes.items()}
  cfg = optimizer.Optimizer(host_moments=host, clip=0.0)
  tx, there = optimizer.make(cfg, 10, axes), optimizer.on_host(cfg, axes)
  part = train_state.Partition(None, leaves, {}, {}, frozenset())
  opt = train_state.abstract_state(part, tx, mesh, ema=False, on_host=there).opt
  params = trees.unflatten(leaves)
  places = jax.tree.map(lambda x: x.sharding, (params, opt))

  def step(grads, opt, params):
    updates, opt = tx.update(grads, opt, params)
    return updates, opt, optax.apply_updates(params, updates)

  jitted = jax.jit(step, donate_argnums=(0, 1, 2), out_shardings=(places[0], places[1], places[0]))
  jax.jit(tx.init, out_shardings=places[1], keep_unused=True).lower(params).compile()
  found = jitted.lower(params, opt, params).compile().memory_analysis()
  names = ("argument", "temp", "alias", "host_argument", "host_alias", "host_temp")
  return {name: getattr(found, f"{name}_size_in_bytes") for name in names} | {
    "moments": 2 * train_state.bytes_on_device([leaves["blocks/kernel"]])
  }


def main() -> None:
  topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
  devices = topology.devices
  mesh = sharding.make_mesh(fsdp=2, tensor=2, devices=devices)
  facts: dict[str, Any] = {
    "devices": {
      "count": len(devices),
      "kind": devices[0].device_kind,
      "backend_of_child": jax.default_backend(),
    }
  }
  with jax.set_mesh(mesh):
    for impl in ("splash", "auto", "xla"):
      facts[impl] = attention_facts(mesh, impl)
    facts["matmul"] = matmul_facts(mesh)
  facts["moments"] = {where: moment_facts(mesh, where == "host") for where in ("device", "host")}
  print(json.dumps(facts))


if __name__ == "__main__":
  main()
