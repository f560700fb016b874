"""A picture's vectors in one pass, beside reading its slots one by one.

    JAX_PLATFORMS=cpu python tests/benchmarks/slots.py [--json FILE]

A random Nexus-Gen language model of 25 million parameters, batch 1, a prompt of 96 tokens: the
pass over the mark before a picture and its 81 slots (`speaking.look`), and a jitted loop that reads
the same positions one after the other and heads each hidden vector, as the reference does. Both
start from the same cache; their vectors are asserted equal before anything is timed. They run by
turns; prints one JSON line: medians in seconds, their ratio, and the largest difference.
"""

import argparse
from collections.abc import Callable
import dataclasses
import json
from pathlib import Path
import statistics
import sys
import time
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from blip3o_jax import trees
from blip3o_jax.models import decoder_lm
from blip3o_jax.systems.nexus_gen import model
from blip3o_jax.systems.nexus_gen import sizes
from blip3o_jax.systems.nexus_gen import speaking
from blip3o_jax.systems.parts import decoding
from blip3o_jax.systems.parts.network import Network

PROMPT, WANTED = 96, 10
BACKBONE = decoder_lm.Config(
  vocab_size=8192,
  dim=384,
  depth=12,
  heads=6,
  kv_heads=2,
  head_dim=64,
  mlp_dim=1024,
  mrope_section=(8, 12, 12),
)


def config() -> model.Config:
  """The released design with this backbone, and neither tower nor decoders."""
  released = sizes.released()
  return dataclasses.replace(
    released,
    backbone=BACKBONE,
    visual=dataclasses.replace(released.visual, out_dim=BACKBONE.dim),
    image_token=8000,
    boi=8001,
    eoi=8002,
    parts=("language",),
  )


@jax.jit
def loop(network: Network, state: decoding.State) -> jax.Array:
  """Vectors float32[B, n, D], each after reading the position before it."""
  module = network.module()
  cfg, language, rows = module.cfg, module.backbone, jnp.ones(len(state.at), bool)
  places = speaking.positions(cfg, state.at, jnp.int32(0))
  first = language.embed(jnp.full((len(rows), 1), cfg.boi))
  inputs = jnp.concatenate([first, module.slots(len(rows), first.dtype)], 1)
  ids = jnp.asarray([cfg.boi, *[cfg.image_token] * cfg.slots])

  def body(k: jax.Array, carry: tuple[decoding.State, jax.Array]) -> Any:
    state, out = carry
    x = jax.lax.dynamic_slice_in_dim(inputs, k, 1, 1)
    at = jax.lax.dynamic_slice_in_dim(places, k, 1, 2)
    given = jnp.broadcast_to(ids[k], (len(rows), 1))
    hidden, state = decoding.read(language, state, given, x, at, rows)
    vector = module.vision_head(hidden)
    return state, jax.lax.dynamic_update_slice_in_dim(out, vector, k, 1)

  out = jnp.zeros((len(rows), cfg.slots, cfg.backbone.dim), first.dtype)
  return jax.lax.fori_loop(0, cfg.slots, body, (state, out))[1].astype(jnp.float32)


@jax.jit
def one_pass(network: Network, state: decoding.State) -> jax.Array:
  """The same by `speaking.look`, on a state that is kept."""
  return speaking.look(network, state, jnp.ones(len(state.at), bool), jnp.int32(9))[0]


def seconds(form: Callable[..., jax.Array], *given: Any) -> float:
  began = time.perf_counter()
  jax.block_until_ready(form(*given))
  return time.perf_counter() - began


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--json", type=Path, help="also write the line to this file")
  parser.add_argument("--runs", type=int, default=15)
  options = parser.parse_args()
  cfg = config()
  network = Network.of(model.build(cfg, nnx.Rngs(0)))
  count = sum(x.size for x in trees.flatten(network.params).values())
  rng = np.random.default_rng(0)
  prompt = {
    "tokens": rng.integers(0, 8000, (1, PROMPT)).astype(np.int32),
    "segments": np.ones((1, PROMPT), np.int32),
    "positions": np.broadcast_to(np.arange(PROMPT, dtype=np.int32), (3, 1, PROMPT)),
    "deltas": np.zeros((1, 1), np.int32),
  }
  state = speaking.start(network, prompt, cfg.slots + 2)
  forms = {"pass": one_pass, "loop": loop}
  vectors = {name: np.asarray(form(network, state)) for name, form in forms.items()}
  np.testing.assert_allclose(vectors["pass"], vectors["loop"], rtol=1e-3, atol=1e-4)
  times: dict[str, list[float]] = {name: [] for name in forms}
  for _ in range(options.runs):
    for name, form in forms.items():
      times[name].append(seconds(form, network, state))
  medians = {name: statistics.median(each) for name, each in times.items()}
  out = {
    "parameters": count,
    "platform": jax.default_backend(),
    "pass_s": round(medians["pass"], 5),
    "loop_s": round(medians["loop"], 5),
    "ratio": round(medians["loop"] / medians["pass"], 2),
    "largest_difference": float(np.abs(vectors["pass"] - vectors["loop"]).max()),
    "largest_vector": float(np.abs(vectors["loop"]).max()),
  }
  print(json.dumps(out))
  if options.json:
    options.json.write_text(json.dumps(out) + "\n")
  return int(out["ratio"] < WANTED)


if __name__ == "__main__":
  sys.exit(main())
