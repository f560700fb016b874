"""What int8 weights cost: errors and bytes of a model in int8 beside the same one in float.

    python tests/benchmarks/int8_use.py [--model DIR] [--dtype float32] [--json FILE]

Of the shipped miniature unless told otherwise, a BLIP3-o, on this machine: relative errors of the
logits after a question about a picture, of the features of a prompt and of the condition before
them; the share of greedy ids of the answers that are the same; the levels between the pictures; the
bytes of modules.
`weights` rounds the weights alone, as `blip3o_jax.load` has it; `both` rounds activations too, as
the frozen language model of a training run may.
"""

import argparse
from collections.abc import Mapping
import json
from pathlib import Path
from typing import Any

from flax import nnx
import numpy as np

import blip3o_jax
from blip3o_jax import files
from blip3o_jax import quantized
from blip3o_jax import trees
from blip3o_jax.data import shapes
from blip3o_jax.systems.blip3o import sampling
from blip3o_jax.systems.blip3o import speaking
from blip3o_jax.systems.parts import decoding
from blip3o_jax.systems.parts.network import Network
from blip3o_jax.systems.parts.network import program

COUNT, SCENES, LENGTH = 8, 32, 32  # prompts, pictures that are asked about, ids of an answer


@program()
def logits(network: Network, prompt: Mapping[str, Any]) -> Any:
  """Of the id after each prompt, float32[B, V]."""
  module = network.module()
  inputs = module.embed(prompt["tokens"], prompt.get("patches"), prompt.get("layout"))
  state = decoding.begin(module.backbone, inputs, prompt, 1)
  return module.backbone.logits(state.hidden)[:, 0]


def given(model: Any, prompts: list[str]) -> dict[str, Any]:
  """What a model says and draws of prompts."""
  own = model._own
  scenes = [shapes.scene_at(1, i, "test") for i in range(SCENES)]
  pairs = [(q.question, shapes.render(scene)) for scene in scenes for q in shapes.questions(scene)]
  questions = own._batches.asking(*(list(each) for each in zip(*pairs, strict=True)))
  rules = decoding.rules(len(questions["tokens"]), LENGTH, own.tokenizer.size, own._ends())
  drawing = own._batches.drawing(prompts, [])
  return {
    "logits": np.asarray(logits(own.system, questions))[: len(pairs)],
    "ids": np.asarray(speaking.answer(own.system, questions, rules))[: len(pairs)],
    "fill": own._ends()[-1],
    "condition": np.asarray(sampling.condition(own.system, drawing), np.float32),
    "features": own.features(prompts, list(range(len(prompts)))),
    "pictures": np.stack([p.pixels for p in model.generate(prompts)]).astype(int),
  }


def compared(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, float]:
  """The errors."""
  out = {}
  for name in ("logits", "condition", "features"):
    off = np.asarray(found[name], np.float64) - wanted[name]
    out[name] = float(np.linalg.norm(off) / np.linalg.norm(wanted[name]))
  said = (found["ids"] != found["fill"]) | (wanted["ids"] != wanted["fill"])  # not what follows
  out["equal_ids"] = float(np.mean(found["ids"][said] == wanted["ids"][said]))
  out["ids"] = float(said.sum())
  levels = np.abs(found["pictures"] - wanted["pictures"])
  return out | {"levels_mean": float(levels.mean()), "levels_max": float(levels.max())}


def sizes(model: Any) -> dict[str, int]:
  """Bytes of each module."""
  networks = (model._own.system, model._own.decoder)
  trees_of = {name: tree for network in networks for name, tree in network.params.items()}
  return {
    name: sum(x.nbytes for x in trees.flatten(tree).values()) for name, tree in trees_of.items()
  }


def rounding_both(model: Any) -> None:
  """Lets the int8 layers of a model round activations too."""
  own = model._own
  module = own.system.module()
  for _, layer in nnx.iter_modules(module):
    if isinstance(layer, quantized.Int8Linear):
      layer.activations = True
  own.system = Network.of(module)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--model", default=None)
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
  parser.add_argument("--json", type=Path)
  options = parser.parse_args()
  scenes = (shapes.scene_at(0, i, "test") for i in range(COUNT))
  prompts = [shapes.caption(scene) for scene in scenes]
  plain = blip3o_jax.load(options.model, dtype=options.dtype)
  wanted = given(plain, prompts)
  small = blip3o_jax.load(options.model, dtype=options.dtype, weights="int8")
  out: dict[str, Any] = {
    "questions": len(wanted["ids"]),
    "weights": compared(given(small, prompts), wanted),
  }
  out["bytes"] = {"float": sizes(plain), "int8": sizes(small)}
  rounding_both(small)
  out["both"] = compared(given(small, prompts), wanted)
  print(json.dumps(out, indent=1))
  if options.json:
    files.write_text(options.json, json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
  main()
