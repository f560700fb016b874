"""Trains the toy system in a process of its own; prints its losses and more as one line of JSON.

Run by the mesh tests, because a process has as many CPU devices as it was started with.
"""

import hashlib
import json
import sys
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file
import toy

from blip3o_jax import config
from blip3o_jax.train import loop
from blip3o_jax.train.run import Train

CFG = toy.Config(depth=1, noise=0.5)
BATCH = 16


def train(
  workdir: str, weights: str, mesh: dict[str, int], steps: int, host_moments: bool = False
) -> dict[str, Any]:
  """Runs to `steps`: {losses: by step, frozen: their hash, shard: of a kernel, ...}."""
  fields = dict(
    steps=steps,
    batch=BATCH,
    accumulate=2,
    mesh=mesh,
    trainable=toy.TRAINED,
    init_from=(weights,),
    optimizer=dict(lr=1e-2, schedule="constant", host_moments=host_moments),
    log=dict(every=1, eval_every=2, eval_batches=1, tensorboard=False),
  )
  values = toy.values(CFG, config.build(Train, fields))
  found: Any = loop.start(values, {"toy": toy.System()}, workdir)
  kernel = found.module.blocks.up_proj.kernel[...]
  frozen = [found.module.encoder.kernel[...], found.module.encoder.bias[...]]
  with open(f"{workdir}/metrics.jsonl") as file:
    lines = [json.loads(x) for x in file]
  return {
    "losses": {x["step"]: x["loss"] for x in lines if "loss" in x},
    "norms": {x["step"]: x["grad_norm"] for x in lines if "loss" in x},
    "eval": {x["step"]: x["eval/loss"] for x in lines if "eval/loss" in x},
    "frozen": _hash(frozen) if frozen[0].is_fully_addressable else "",
    "released": released_hash(weights),
    "shard": list(kernel.addressable_shards[0].data.shape),
    "devices": jax.device_count(),
  }


def released_hash(weights: str) -> str:
  """The hash of the frozen leaves as they were released."""
  stored = load_file(f"{weights}/model.safetensors")
  return _hash([stored["encoder/kernel"], stored["encoder/bias"]])


def _hash(leaves: list[Any]) -> str:
  return hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in leaves)).hexdigest()


if __name__ == "__main__":
  found = [train(**each) for each in json.loads(sys.argv[1])]
  sys.stdout.write(json.dumps(found) + "\n")
