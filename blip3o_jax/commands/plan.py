"""What a run needs on a TPU slice that is not there: compiles its step for a described topology.

Prints the table of parameters, bytes of arguments and temporaries a chip, and the collectives in
the compiled program by kind and dtype (those of a loop's body count once). Needs libtpu, no TPU and
no weights; takes minutes. `--topology=here` compiles for the devices of this machine instead. A
program that does not fit a chip is an error of the compiler.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
import json
import math
import os
import re
import time
from typing import Any

import jax
from jax.experimental import topologies

from blip3o_jax import config
from blip3o_jax import recipes
from blip3o_jax import systems
from blip3o_jax.train import run as train_run
from blip3o_jax.train import setup as train_setup
from blip3o_jax.train import state as train_state

COLLECTIVE = re.compile(
  r"= (\(?[^=]*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)
BYTES = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1, "f16": 2, "u8": 1, "s8": 1}


def devices_of(topology: str) -> list[Any]:
  """The devices of a slice, as `jax.experimental.topologies` names it, or of this machine.

  Raises:
    ValueError: libtpu is absent or does not know the slice.
  """
  if topology == "here":
    return jax.devices()
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  try:
    return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
  except Exception as error:  # the compiler's library has no narrower one
    raise ValueError(f"--topology {topology}: {' '.join(str(error).split())}") from error


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


def plan(options: argparse.Namespace, overrides: Sequence[str]) -> dict[str, Any]:
  """Compiles the step and prints what it needs: the same facts, JSON-ready."""
  run = train_run.parse(config.load(options.config, overrides, recipes.RELEASED), systems.SYSTEMS)
  devices = devices_of(options.topology)
  bucket = options.bucket or max(run.data.buckets)
  setup = train_setup.prepare(run, systems.SYSTEMS[run.system], devices)
  print(*train_state.table(setup.part), sep="\n")
  began = time.monotonic()
  compiled = setup.lower_step(bucket).compile()
  memory, text = compiled.memory_analysis(), compiled.as_text()
  operations = setup.flops(setup.batch_spec(bucket))
  facts = {
    "topology": options.topology,
    "chips": len(devices),
    "batch": run.train.batch,
    "bucket": bucket,
    "compile_seconds": round(time.monotonic() - began, 1),
    "argument_bytes": memory.argument_size_in_bytes,
    "temporary_bytes": memory.temp_size_in_bytes,
    "model_tflop_per_chip": operations / len(devices) / 1e12,
    "collectives": collectives(text),
  }
  gib = 1 / 2**30
  print(f"\n{len(devices)} chips of {options.topology}, batch {run.train.batch}, prompts {bucket}")
  print(f"compiled in {facts['compile_seconds']} s")
  print(f"arguments {memory.argument_size_in_bytes * gib:.2f} GiB a chip")
  print(f"temporary {memory.temp_size_in_bytes * gib:.2f} GiB a chip")
  print(f"model operations {facts['model_tflop_per_chip']:.1f} TFLOP a step and chip")
  for name, found in collectives(text).items():
    print(f"{name}: {found['count']} in the text, {found['bytes'] / 2**20:.1f} MiB")
  return facts


def run(parser: argparse.ArgumentParser, args: Sequence[str]) -> int:
  """Plans what the arguments say; returns the exit status."""
  parser.add_argument(
    "--config", required=True, metavar="FILE[:ARG]", help="what to train: a file, or a stage's name"
  )
  parser.add_argument(
    "--config.FIELD", dest="_", metavar="VALUE", help="any field, e.g. --config.batch=256"
  )
  parser.add_argument(
    "--topology", default="v5e:4x4", help='as jax.experimental.topologies names it, or "here"'
  )
  parser.add_argument("--bucket", type=int, default=0, help="prompt length (0: the longest)")
  parser.add_argument("--json", action="store_true", help="print the facts as JSON, last")
  options, overrides = parser.parse_known_args(args)
  jax.config.update("jax_platforms", "cpu")
  facts = plan(options, overrides)
  if options.json:
    print(json.dumps(facts))
  return 0
