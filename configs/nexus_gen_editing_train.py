"""Nexus-Gen, editing decoder: a FLUX transformer that paints beside the picture that is edited.

    blip3o encode --config=configs/nexus_gen_editing_train.py:model=DIR,records=DIR --pixels \
      --output=DIR
    blip3o train --config=configs/nexus_gen_editing_train.py:model=DIR,records=DIR --workdir=DIR

The words after the colon: `blip3o_jax/recipes/nexus_gen.py`. Records are an instruction, a picture
and what comes of it. The decoder is told 81 vectors that the language model predicts in one pass
and 324 that the vision tower gives of the picture at 504 pixels a side, which `encode` keeps.
`model=` is a Nexus-Gen whose first stage is trained; `flux=` a FLUX.1 transformer to start from,
behind a new merger. Memory and time: docs/performance.md.
"""

from ml_collections import ConfigDict

from blip3o_jax.recipes import nexus_gen


def get_config(arg: str = "") -> ConfigDict:
  """`arg`: see `nexus_gen.get_config`."""
  return nexus_gen.get_config("editing", arg)
