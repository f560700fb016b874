"""The released stages as configs, one file a system."""

from collections.abc import Callable
import itertools
from typing import Any


def _stage(size: Any, stage: Any) -> Callable[[str], Any]:
  def get_config(arg: str) -> Any:
    from blip3o_jax.recipes import blip3o  # here, so that a name is known without jax

    return blip3o.get_config(size, stage, arg)

  return get_config


# The name of each stage, which is that of its file in configs/ -> its get_config.
RELEASED = {
  f"blip3o_{size}_{stage}": _stage(size, stage)
  for size, stage in itertools.product(("4b", "8b"), ("pretrain", "sft"))
}
