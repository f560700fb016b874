"""BLIP3-o 8B, pretraining: a 1.4 B DiT and 64 slots behind a frozen Qwen2.5-VL-7B.

    blip3o train --config=configs/blip3o_8b_pretrain.py:qwen=DIR,tars=DIR --workdir=DIR

The words after the colon: `blip3o_jax/recipes.py`. Tars hold KEY.txt with KEY.npy (cached EVA
features, the default) or KEY.jpg (`data=pixels`). `qwen=` is a directory in the released BLIP3-o
layout (config.json, model*.safetensors, tokenizer.json, vocabulary of 151668); plain
Qwen2.5-VL-7B-Instruct (152064 rows) is refused with the two shapes until it has been converted.
Other sizes of the mesh: --config.mesh.replica=, .fsdp=, .tensor=.

Cost: 150 k steps of 512. At a prompt of 151 tokens 4.1 TFLOP a sample, 3.2e20 in all;
`:reference`, all prompts padded to 448, has 23.3 and recomputes 6.9 more. The authors: about 2
weeks on 32 H200 (spec 6.3, their issue 19). On small chips take `memory=small`
(docs/performance.md).
Expected (the authors'; not measured here): loss 6.5 at first, 3 after 600 steps, then nearly flat
(spec 6.3, their issue 16); after instruction tuning GenEval 0.83, DPG 80.73, WISE 0.52 with open
data (spec 9.2).
"""

from ml_collections import ConfigDict

from blip3o_jax.recipes import blip3o


def get_config(arg: str = "") -> ConfigDict:
  """`arg`: see `blip3o.get_config`."""
  return blip3o.get_config("8b", "pretrain", arg)
