"""The programs that using a model runs, with what they are given, for a model that nobody loads.

They can be compiled and their memory counted. All arrays are `jax.ShapeDtypeStruct`.
"""

from collections.abc import Mapping
import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from blip3o_jax import layers
from blip3o_jax.systems.parts.memory import Memory
from blip3o_jax.systems.parts.network import Network
from blip3o_jax.systems.parts.network import Program

LENGTH = 64  # ids of an answer


@dataclasses.dataclass(frozen=True)
class Ask:
  """What is to be used, and how.

  Attributes:
    dtype: that parameters are stored in and computed with. memory: how they lie.
    batch: pictures, or conversations, at once. bucket: tokens of each prompt.
    directory: of the model, for what its config does not say; None is as released.
  """

  dtype: layers.Dtype = "bfloat16"
  memory: Memory = Memory()
  batch: int = 1
  bucket: int = 160
  directory: Path | None = None


@dataclasses.dataclass(frozen=True)
class Stage:
  """One program.

  Attributes:
    name: in words. program: a `Program`. args: its arguments, the network first. kwargs: by name.
    cache: bytes of keys and values among them.
  """

  name: str
  program: Program[Any]
  args: tuple[Any, ...]
  kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  cache: int = 0

  @property
  def network(self) -> Network:
    """Whose parameters it reads."""
    found: Network = self.args[0]
    return found

  def used(self) -> frozenset[str]:
    """The top-level modules of the network that it reads."""
    return self.program.used(self.network, self.args[1:], self.kwargs)

  def gives(self) -> Any:
    """Shapes of what it returns."""
    traced = self.program.trace(*self.args, **self.kwargs)
    return jax.tree.map(lambda x: array(*x.shape, dtype=x.dtype), traced.out_info)


def array(*shape: int, dtype: Any = np.int32) -> jax.ShapeDtypeStruct:
  """The shape of an array."""
  return jax.ShapeDtypeStruct(shape, dtype)


def rows(ask: Ask) -> dict[str, jax.ShapeDtypeStruct]:
  """Tokens and segments of prompts."""
  ids = array(ask.batch, ask.bucket)
  return {"tokens": ids, "segments": ids}


def asked(ask: Ask) -> dict[str, jax.ShapeDtypeStruct]:
  """`rows`, and the places that conversations have."""
  places = array(3, ask.batch, ask.bucket)
  return {**rows(ask), "positions": places, "deltas": array(ask.batch, 1)}


def seeds(ask: Ask) -> jax.ShapeDtypeStruct:
  """A seed for each picture."""
  return array(ask.batch, 2, dtype=np.uint32)


def size(tree: Any) -> int:
  """Bytes of arrays or their shapes."""
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
