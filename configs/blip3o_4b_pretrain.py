"""BLIP3-o 4B, pretraining: a 1.4 B DiT and 64 slots behind a frozen Qwen2.5-VL-3B.

    blip3o train --config=configs/blip3o_4b_pretrain.py:qwen=DIR,tars=DIR --workdir=DIR

The words after the colon: `blip3o_jax/recipes.py`. Tars hold KEY.txt with KEY.npy (cached EVA
features, the default) or KEY.jpg (`data=pixels`). `qwen=` is a directory in the released BLIP3-o
layout (config.json, model*.safetensors, tokenizer.json, vocabulary of 151668); plain
Qwen2.5-VL-3B-Instruct (151936 rows) is refused with the two shapes until it has been converted.
Other sizes of the mesh: --config.mesh.replica=, .fsdp=, .tensor=.

Cost: 150 k steps of 512. At a prompt of 151 tokens 2.0 TFLOP a sample, 1.6e20 in all;
`:reference`, all prompts padded to 448, has 15.6 and recomputes 3.0 more. The authors:
about 10 days on 32 H200 (spec 6.3, their issue 19). On 16 GiB chips take `memory=small`
(docs/performance.md).
Expected (the authors'; not measured here): loss 6.5 at first, 3 after 600 steps, then nearly flat
(spec 6.3, their issue 16); after instruction tuning GenEval 0.81, DPG 79.36, WISE 0.50 (spec 9.2).
"""

from ml_collections import ConfigDict

from blip3o_jax.recipes import blip3o


def get_config(arg: str = "") -> ConfigDict:
  """`arg`: see `blip3o.get_config`."""
  return blip3o.get_config("4b", "pretrain", arg)
