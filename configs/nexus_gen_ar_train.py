"""Nexus-Gen, first stage: a Qwen2.5-VL-7B that answers, draws and edits in one conversation.

    blip3o train --config=configs/nexus_gen_ar_train.py:model=DIR,records=DIR --workdir=DIR

The words after the colon: `blip3o_jax/recipes/nexus_gen.py`. Records are rows in the messages
format (JSONL with `messages` and `images`): a picture in a user's message is shown, one in an
assistant's is drawn, as 81 vectors of the frozen vision tower. `model=` is a released Nexus-Gen, or
a plain Qwen2.5-VL-7B, whose head and prefill begin at random.

The loss is 3 of the next token and 3 of the vectors, half squared error and half cosine; the paper
trains on 26.3 M samples twice. Memory and time: docs/performance.md.
"""

from ml_collections import ConfigDict

from blip3o_jax.recipes import nexus_gen


def get_config(arg: str = "") -> ConfigDict:
  """`arg`: see `nexus_gen.get_config`."""
  return nexus_gen.get_config("language", arg)
