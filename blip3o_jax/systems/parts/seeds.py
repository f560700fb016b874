"""Seeds of 64 bits, one a picture, as arrays that compiled functions take."""

from collections.abc import Sequence
import operator

import jax
import numpy as np

MOST = 2**64 - 1


def words(values: Sequence[int]) -> np.ndarray:
  """Seeds as uint32[n, 2]: the high and the low half of each.

  Raises:
    ValueError: one that is no whole number from 0 to 2**64 - 1, or no list.
  """
  if not hasattr(values, "__len__") or isinstance(values, str):
    raise ValueError(f"seeds: expected a list of whole numbers, got {values!r}")
  return np.asarray([_halves(value) for value in values], np.uint32).reshape(-1, 2)


def _halves(value: int) -> tuple[int, int]:
  try:
    seed = -1 if isinstance(value, bool) else operator.index(value)
  except TypeError:
    seed = -1
  if not 0 <= seed <= MOST:
    raise ValueError(f"seed {value!r}: expected a whole number from 0 to 2**64 - 1")
  return seed >> 32, seed & 0xFFFFFFFF


def keys(words: jax.Array) -> jax.Array:
  """The key of each seed, uint32[n, 2] -> keys[n]; below 2**32 that of `jax.random.key`.

  `jax.random.key` itself would drop the high half.
  """
  return jax.vmap(lambda pair: jax.random.wrap_key_data(pair, impl="threefry2x32"))(words)
