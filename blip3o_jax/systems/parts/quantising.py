"""Float weights of files and runs as the int8 leaves of a model (`blip3o_jax.quantized`).

A source holds the kernel of an int8 layer in float and knows nothing of its scale. Both are made
while it is read, a layer at a time.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from blip3o_jax import quantized
from blip3o_jax.weights.table import Index
from blip3o_jax.weights.table import Shape

Leaves = dict[str, jax.ShapeDtypeStruct]


class Stored(Protocol):
  """The parameters of a directory: {path: shape}, and what reads a slice of one."""

  def __contains__(self, path: object) -> bool: ...

  def __getitem__(self, path: str) -> Shape: ...

  def read(self, path: str, index: Index) -> np.ndarray:
    """One slice of a parameter."""


def floats(leaves: Leaves) -> Leaves:
  """What a source must hold to fill these leaves: int8 kernels in float32, none of their scales."""
  scales = set(quantized.scales_of(leaves))
  return {
    path: jax.ShapeDtypeStruct(
      leaf.shape, jnp.float32 if leaf.dtype == jnp.int8 else leaf.dtype, sharding=leaf.sharding
    )
    for path, leaf in leaves.items()
    if path not in scales
  }


class Reader:
  """`Stored` in which the kernels of int8 layers are int8, and their scales are there.

  Args:
    arrays: in float. leaves: of the model, by the paths that `arrays` has.
  """

  def __init__(self, arrays: Stored, leaves: Leaves):
    self._arrays, self._kernel_of = arrays, quantized.scales_of(leaves)
    self._kernels = frozenset(self._kernel_of.values())
    self._known: dict[str, np.ndarray] = {}  # the scales of some columns of a layer

  def __contains__(self, path: object) -> bool:
    return (self._kernel_of.get(path, path) if isinstance(path, str) else path) in self._arrays

  def read(self, path: str, index: Index) -> np.ndarray:
    """One slice of a parameter; for a scale, and once for the kernel, all rows are read."""
    if path in self._kernel_of:
      *stacked, columns = index
      kernel = self._kernel_of[path]
      found = [self._scale(kernel, (*one, columns)) for one in self._layers(kernel, stacked)]
    elif path in self._kernels:
      *stacked, rows, columns = index
      each = self._layers(path, stacked)
      found = [self._values(path, (*one, columns), rows) for one in each]
    else:
      return self._arrays.read(path, index)
    return np.concatenate(found) if stacked else found[0]

  def _layers(self, kernel: str, stacked: Sequence[slice]) -> list[Index]:
    """The index of each layer among the leading dims of a kernel, which may have none."""
    if not stacked:
      return [()]
    return [(slice(i, i + 1),) for i in range(*stacked[0].indices(self._arrays[kernel][0]))]

  def _scale(self, kernel: str, index: Index) -> np.ndarray:
    key = f"{kernel} {index}"
    if key not in self._known:
      self._values(kernel, index, slice(0, 0))
    return self._known[key]

  def _values(self, kernel: str, index: Index, rows: slice) -> np.ndarray:
    """int8 of some rows of a layer's columns; `index` is without the rows."""
    key, (*layer, columns) = f"{kernel} {index}", index
    if key in self._known:
      block = self._arrays.read(kernel, (*layer, rows, columns))
    else:
      block = self._arrays.read(kernel, (*layer, slice(None), columns))
      self._known[key] = quantized.scales(block)
      block = block[..., rows, :]
    return quantized.divide(block, self._known[key])


def quantise(found: Mapping[str, jax.Array], leaves: Leaves) -> dict[str, jax.Array]:
  """Arrays that fill `floats(leaves)`, or some of them, as those that fill `leaves`.

  One kernel after the other is whole in float32 on the devices that hold it.
  """
  out = dict(found)
  for scale, kernel in quantized.scales_of(leaves).items():
    if kernel in found:
      places = None
      if leaves[kernel].sharding is not None:
        places = leaves[kernel].sharding, leaves[scale].sharding
      values, factors = jax.jit(quantized.quantize, out_shardings=places)(out.pop(kernel))
      out[kernel], out[scale] = values, factors.astype(leaves[scale].dtype)
  return out
