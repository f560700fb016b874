"""Nexus-Gen, generation decoder: a FLUX transformer that paints from 81 vectors of a picture.

    blip3o encode --config=configs/nexus_gen_generation_train.py:model=DIR,records=DIR --pixels \
      --output=DIR
    blip3o train --config=configs/nexus_gen_generation_train.py:model=DIR,records=DIR --workdir=DIR

The words after the colon: `blip3o_jax/recipes/nexus_gen.py`. The vectors are those of the vision
tower of Qwen2.5-VL of the picture itself, which `encode` keeps beside the picture; captions are not
read. `model=` is a released Nexus-Gen with what FLUX.1 gives (autoencoder, constants); `flux=` is a
FLUX.1 transformer to start from, behind a new adapter. Memory and time: docs/performance.md.
"""

from ml_collections import ConfigDict

from blip3o_jax.recipes import nexus_gen


def get_config(arg: str = "") -> ConfigDict:
  """`arg`: see `nexus_gen.get_config`."""
  return nexus_gen.get_config("generation", arg)
