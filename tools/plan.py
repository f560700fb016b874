"""What a run needs on a TPU slice that is not there: compiles its step for a described topology.

    JAX_PLATFORMS=cpu python tools/plan.py --config=configs/blip3o_4b_pretrain.py \\
      --topology=v5e:4x4 [--bucket=448] [--config.batch=256 ...]

Prints the table of parameters, bytes of arguments and temporaries a chip, and the collectives in
the compiled program by kind and dtype (those of a loop's body count once). Needs libtpu, no TPU and
no weights; takes minutes. A program that does not fit a chip is an error of the compiler.
"""

from collections import Counter
from collections.abc import Sequence
import json
import math
import os
import re
import sys
import time
from typing import Any

from absl import app
from absl import flags
import jax
from jax.experimental import topologies
from ml_collections import config_flags

from blip3o_jax import experiment
from blip3o_jax import sharding
from blip3o_jax.train import optimizer
from blip3o_jax.train import state as train_state
from blip3o_jax.train import step as train_step

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, FILE or FILE:ARG.")
TOPOLOGY = flags.DEFINE_string("topology", "v5e:4x4", "Slice, as jax.experimental.topologies.")
BUCKET = flags.DEFINE_integer("bucket", 0, "Prompt length; 0 is the longest of the config.")
JSON = flags.DEFINE_bool("json", False, "Print the figures as one line of JSON, last.")
COLLECTIVE = re.compile(
  r"= (\(?[^=]*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)
BYTES = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1, "f16": 2, "u8": 1, "s8": 1}


def lower(experiment_: experiment.Experiment, devices: Sequence[Any], bucket: int) -> Any:
  """(lowered step, lines of the parameter table, operations of a step) on these devices."""
  train, model = experiment_.train, experiment_.model
  system = experiment.SYSTEMS[train.system]
  shape = train.mesh
  mesh = sharding.make_mesh(
    replica=shape.replica, fsdp=shape.fsdp, tensor=shape.tensor, devices=devices
  )
  part = train_state.partition(system, model, mesh, train.trainable, train.frozen_dtype)
  tx = optimizer.make(train.optimizer, train.steps, {p: part.axes[p] for p in part.trained})
  abstract = train_state.abstract_state(part, tx, mesh, ema=train.ema_decay > 0)
  step = train_step.make_step(
    part,
    tx,
    accumulate=train.accumulate,
    cast_params=train.cast_params,
    ema_decay=train.ema_decay,
    learning_rate=optimizer.schedule(train.optimizer, train.steps),
  )
  spec = system.batch_spec(model, train.batch, bucket)
  rows, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
  batch = {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=rows) for k, v in spec.items()}
  frozen = train_state.trees.unflatten(part.frozen)
  key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=whole)
  places = jax.tree.map(lambda x: x.sharding, abstract)
  with jax.set_mesh(mesh):
    made = jax.jit(step, donate_argnums=0, out_shardings=(places, whole))
    lowered = made.lower(abstract, frozen, batch, key)
  count = getattr(system, "flops", lambda *_: 0.0)
  return lowered, train_state.table(part), count(model, spec)


def collectives(text: str) -> dict[str, dict[str, int]]:
  """{"kind dtype": {"count", "bytes"}} of a compiled program; bytes of the results on one chip."""
  out: dict[str, Counter[str]] = {}
  for shapes, kind in COLLECTIVE.findall(text):
    for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
      if dtype not in BYTES:
        continue
      found = out.setdefault(f"{kind} {dtype}", Counter())
      found["count"] += 1
      found["bytes"] += math.prod(map(int, filter(None, dims.split(",")))) * BYTES[dtype]
  return {name: dict(found) for name, found in sorted(out.items())}


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1 or not CONFIG.value:
    raise app.UsageError("expected --config=FILE")
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  jax.config.update("jax_platforms", "cpu")
  values = experiment.parse(CONFIG.value)
  bucket = BUCKET.value or max(values.data.buckets)
  devices = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY.value).devices
  lowered, table, operations = lower(values, devices, bucket)
  print(*table, sep="\n")
  began = time.monotonic()
  compiled = lowered.compile()
  memory, text = compiled.memory_analysis(), compiled.as_text()
  facts = {
    "topology": TOPOLOGY.value,
    "chips": len(devices),
    "batch": values.train.batch,
    "bucket": bucket,
    "compile_seconds": round(time.monotonic() - began, 1),
    "argument_bytes": memory.argument_size_in_bytes,
    "temporary_bytes": memory.temp_size_in_bytes,
    "model_tflop_per_chip": operations / len(devices) / 1e12,
    "collectives": collectives(text),
  }
  gib = 1 / 2**30
  print(f"\n{len(devices)} chips of {TOPOLOGY.value}, batch {values.train.batch}, prompts {bucket}")
  print(f"compiled in {facts['compile_seconds']} s")
  print(f"arguments {memory.argument_size_in_bytes * gib:.2f} GiB a chip")
  print(f"temporary {memory.temp_size_in_bytes * gib:.2f} GiB a chip")
  print(f"model operations {facts['model_tflop_per_chip']:.1f} TFLOP a step and chip")
  for name, found in collectives(text).items():
    print(f"{name}: {found['count']} in the text, {found['bytes'] / 2**20:.1f} MiB")
  if JSON.value:
    print(json.dumps(facts))


if __name__ == "__main__":
  sys.exit(app.run(main))
