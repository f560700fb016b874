"""BLIP3-o 4B, instruction tuning of the generator on 60 k pictures (BLIP3o-60k).

    blip3o train --config=configs/blip3o_4b_sft.py:qwen=DIR,init=DIR,tars=DIR --workdir=DIR

`init=` is the working directory of pretraining, or released BLIP3-o weights (then without `qwen=`);
`qwen=` as in blip3o_4b_pretrain.py. The words after the colon: `blip3o_jax/recipes.py`.

Cost: 10 k steps of 512, a fifteenth of pretraining. The authors: below a day on 8 H100 (spec 6.4).
Expected (the authors'; not measured here): 5 to 7 points on GenEval and DPG over pretraining alone
(spec 6.4), GenEval 0.81 (spec 9.2).
"""

from ml_collections import ConfigDict

from blip3o_jax.recipes import blip3o


def get_config(arg: str = "") -> ConfigDict:
  """`arg`: see `blip3o.get_config`."""
  return blip3o.get_config("4b", "sft", arg)
