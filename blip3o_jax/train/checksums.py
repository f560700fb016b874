"""Checksums by which a checkpoint shows damage: of arrays, wherever they lie, and of JSON.

An array's sum adds up, modulo 2**32, a mixed word for each element and its place: so it is the
same on any mesh and any number of processes, each device reads its own shard alone, and a change
of one element always shows. Two such sums make 64 bits, against changes of many.
"""

from collections.abc import Mapping
import functools
import json
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from blip3o_jax.weights import hashes

SEEDS = (0x9E3779B1, 0x85EBCA77)  # odd, so that places do not fall together
FIRST, SECOND = 0x7FEB352D, 0x846CA68B  # of a mix of 32 bits that maps no two words to one


def of_arrays(leaves: Mapping[str, jax.Array]) -> dict[str, str]:
  """{path: 16 hexadecimal digits} of arrays of this run; all its processes must call this."""
  # One program at a time, and none beside a step: of several in flight, each with sums over
  # devices, those of a CPU may start in another order on each, and wait for each other for ever.
  # Not one for all leaves: leaves of one shape, moments too, share a compiled program.
  jax.block_until_ready(leaves)
  words = {p: jax.block_until_ready(_sum_at(_whole(x))(_on_device(x))) for p, x in leaves.items()}
  found = {path: np.asarray(word.addressable_data(0)) for path, word in words.items()}
  return {path: "".join(f"{int(word):08x}" for word in pair) for path, pair in found.items()}


def of_json(value: Any) -> str:
  """The hash of a JSON-ready value, whatever the order of its fields."""
  text = json.dumps(json.loads(json.dumps(value)), sort_keys=True)
  return hashes.named(hashes.DEFAULT, text.encode())


def _whole(leaf: jax.Array) -> Any:
  """Where the sum lies: on all devices of the leaf's mesh."""
  if isinstance(leaf.sharding, jax.sharding.NamedSharding):
    return jax.sharding.NamedSharding(leaf.sharding.mesh, jax.sharding.PartitionSpec())
  return None


def _on_device(leaf: jax.Array) -> jax.Array:
  """The leaf where it can be computed with; moments may be kept in the host's memory."""
  if leaf.sharding.memory_kind == "pinned_host":
    return jax.device_put(leaf, leaf.sharding.with_memory_kind("device"))
  return leaf


@functools.cache
def _sum_at(place: Any) -> Any:
  return jax.jit(_words, out_shardings=place)


def _words(leaf: jax.Array) -> jax.Array:
  """uint32[2] of an array of numbers."""
  bits = _bits(leaf)
  place = jnp.zeros(bits.shape, jnp.uint32)
  stride = 1
  for axis in reversed(range(bits.ndim)):
    count = lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    place = place + count * jnp.uint32(stride % 2**32)
    stride *= bits.shape[axis]
  sums = [jnp.sum(_mix(bits + (place + 1) * jnp.uint32(s)), dtype=jnp.uint32) for s in SEEDS]
  return jnp.stack(sums)


def _bits(leaf: jax.Array) -> jax.Array:
  """The bits of an array as uint32; elements of 64 bits become two."""
  if leaf.dtype == jnp.bool_:
    return leaf.astype(jnp.uint32)
  size = min(leaf.dtype.itemsize * 8, 32)
  return lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{size}")).astype(jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
  x = (x ^ (x >> 16)) * jnp.uint32(FIRST)
  x = (x ^ (x >> 15)) * jnp.uint32(SECOND)
  return x ^ (x >> 16)
