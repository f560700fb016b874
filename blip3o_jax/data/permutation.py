"""Orders computed place by place: a keyed permutation of range(n), without an array of length n."""

from collections.abc import Hashable
import hashlib

import numpy as np

ROUNDS = 6
SMALL = 4096  # below it, halves of 6 bits and fewer are too short to look random
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # of splitmix64
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))


def permuted(places: np.ndarray, count: int, *key: Hashable) -> np.ndarray:
  """What a permutation of range(count) has at some places.

  A Feistel network over the next power of 4, walked on until it lands inside (Black and Rogaway,
  2002: a bijection whatever the rounds are); small ones are shuffled.

  Args:
    places: int64[...], in [0, count). count: up to 2^62. key: equal keys give one permutation.

  Returns:
    int64[...].
  """
  if count <= SMALL:
    return np.random.default_rng(_seeds(key)).permutation(count)[places]
  half = np.uint64(((count - 1).bit_length() + 1) // 2)
  keys = np.random.default_rng(_seeds(key)).integers(0, 2**64, ROUNDS, np.uint64)
  out = np.asarray(places).astype(np.uint64).reshape(-1)
  todo = np.arange(len(out))
  while len(todo):
    out[todo] = _network(out[todo], half, keys)
    todo = todo[out[todo] >= count]
  return out.astype(np.int64).reshape(np.shape(places))


def _network(x: np.ndarray, half: np.uint64, keys: np.ndarray) -> np.ndarray:
  mask = (np.uint64(1) << half) - np.uint64(1)
  left, right = x >> half, x & mask
  for key in keys:
    mixed = right ^ key
    for shift, factor in zip(_SHIFTS, _MIX, strict=False):
      mixed = (mixed ^ (mixed >> shift)) * factor
    left, right = right, left ^ ((mixed ^ (mixed >> _SHIFTS[2])) & mask)
  return (left << half) | right


def _seeds(key: Hashable) -> int:
  return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=16).digest(), "little")
