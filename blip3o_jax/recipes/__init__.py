"""The released stages as configs, one file a system."""

from collections.abc import Callable
import importlib
import itertools
from typing import Any


def _stage(recipe: str, *which: str) -> Callable[[str], Any]:
  def get_config(arg: str) -> Any:
    # Here, so that a name is known without jax.
    found = importlib.import_module(f"{__name__}.{recipe}")
    return found.get_config(*which, arg)

  return get_config


# The name of each stage, which is that of its file in configs/ -> its get_config.
RELEASED = {
  f"blip3o_{size}_{stage}": _stage("blip3o", size, stage)
  for size, stage in itertools.product(("4b", "8b"), ("pretrain", "sft"))
} | {
  "nexus_gen_ar_train": _stage("nexus_gen", "language"),
  "nexus_gen_generation_train": _stage("nexus_gen", "generation"),
  "nexus_gen_editing_train": _stage("nexus_gen", "editing"),
}
