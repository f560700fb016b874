"""Uses both tiny models on a mesh and on one device of the same process; prints what differs as one
JSON line. Needs 8 CPU devices."""

import json
from pathlib import Path
import sys

import jax
import numpy as np

import blip3o_jax
from blip3o_jax import trees
from blip3o_jax.systems.nexus_gen.how import How

DATA = Path(__file__).parents[1] / "data"
RED = np.full((40, 50, 3), (200, 30, 30), np.uint8)
QUESTION = [
  {"type": "image", "image": RED},
  {"type": "text", "text": "what is this?"},
]


def held(network):
  """(bytes of a network's parameters on its fullest device, bytes of the whole)."""
  leaves = trees.flatten(network.params).values()
  each = dict.fromkeys(jax.devices(), 0)
  for leaf in leaves:
    for shard in leaf.addressable_shards:
      each[shard.device] += shard.data.nbytes
  return max(each.values()), sum(leaf.nbytes for leaf in leaves)


def used(directory, mesh, prompts, **options):
  """What a model gives, as arrays and text, and how its largest network lies."""
  model = blip3o_jax.load(directory, mesh=mesh)
  own = model._own
  if model.system == "blip3o":
    vectors, network = own.features(prompts, list(range(len(prompts))), steps=2), own.system
  else:
    vectors, network = own._vectors(prompts, [None] * len(prompts), How()), own.network
  return {
    "vectors": vectors,
    "features": model.features([RED, RED // 2, RED]),
    "pictures": np.stack([p.pixels for p in model.generate(prompts, **options)]),
    "answer": model.chat([{"role": "user", "content": QUESTION}], length=8).text,
    "held": held(network),
  }


def compared(directory, mesh, prompts, **options):
  one, many = (used(directory, m, prompts, **options) for m in (None, mesh))
  out = {"bytes": [one["held"], many["held"]], "answers": [one["answer"], many["answer"]]}
  for name in ("vectors", "features"):
    out[name] = float(np.abs(one[name] - many[name]).max() / np.abs(one[name]).max())
  levels = np.abs(one["pictures"].astype(int) - many["pictures"].astype(int))
  return out | {"levels": int(levels.max()), "share": float(np.mean(levels > 0))}


def main(home):
  found = {
    # Four pictures over four ways, then three, which do not divide over them.
    "blip3o": compared(
      DATA / "tiny-blip3o", "fsdp=4,tensor=2", ["a cat"] * 4, steps=2, pixel_steps=1
    ),
    "nexus_gen": compared(home, "replica=2,fsdp=2,tensor=2", ["a dog", "b", "c"], steps=2),
  }
  print(json.dumps(found | {"devices": jax.device_count()}))


if __name__ == "__main__":
  main(sys.argv[1])
