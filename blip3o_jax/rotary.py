"""Rotary embeddings: channels turned with a partner by angles that the caller gives, in float32."""

from typing import Literal

import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
import numpy as np

from blip3o_jax.remat import KEPT
from blip3o_jax.sharding import platform

Partner = Literal["halves", "pairs"]
Table = tuple[np.ndarray, np.ndarray]


def rotate_half(x: jax.Array, angles: jax.Array) -> jax.Array:
  """Rotary embedding in the half-split layout: channel i pairs with i + H/2.

  Args:
    x: float[B, T, N, H]. angles: float32[B or 1, T, H/2], in radians.
  """
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  cos, sin = (jnp.concatenate(f, -1)[:, :, None, :] for f in ((cos, cos), (-sin, sin)))
  return turn(x, cos, sin, "halves")


def rotate_pairs(x: jax.Array, heads: int, rotation: Table) -> jax.Array:
  """Turns adjacent channel pairs of float[B, T, N*H], all heads alike, by a table, in float32.

  Args:
    x: float[B, T, N*H]. heads: N. rotation: cosines and signed sines, float32[T, H].

  The table is made outside the scan over layers, which would take its cosines in each of them. The
  heads are not split yet: as rows of 64 channels they would fill half a TPU's vector units.
  """
  size = x.shape[-1]
  block = 128 if size % 128 == 0 and 128 % (size // heads) == 0 else size // heads
  shape = (*x.shape[:-1], size // block, block)
  cos, sin = (jnp.tile(t, (1, heads)).reshape(-1, *shape[-2:]) for t in rotation)
  return turn(x.reshape(shape), cos, sin, "pairs").reshape(x.shape)


def turn(x: jax.Array, cos: jax.Array, sin: jax.Array, partner: Partner) -> jax.Array:
  """x * cos + partner * sin in float32, each channel with the one that it turns with.

  Args:
    x: float[..., H]. cos, sin: float32 of shapes that broadcast; `sin` has the signs.
    partner: of channel i: "halves" i + H/2 (around H), "pairs" the other of 2j and 2j + 1.

  Returns:
    as x; named, so that a scan may keep it for the backward pass.
  """
  other = swap_by_matmul(x, partner) if platform() == "tpu" else swap(x, partner)
  out = x.astype(jnp.float32) * cos + other.astype(jnp.float32) * sin
  return checkpoint_name(out.astype(x.dtype), KEPT)


def swap(x: jax.Array, partner: Partner) -> jax.Array:
  """Each channel's partner (see `turn`), by moving channels."""
  if partner == "halves":
    return jnp.roll(x, x.shape[-1] // 2, -1)
  return x.reshape(*x.shape[:-1], -1, 2)[..., ::-1].reshape(x.shape)


def swap_by_matmul(x: jax.Array, partner: Partner) -> jax.Array:
  """`swap`, bit for bit, by a matmul with a permutation.

  A TPU's vector units work on rows of 128 channels: to move channels within them takes longer than
  to multiply.
  """
  size = x.shape[-1]
  order = np.roll(np.arange(size), size // 2) if partner == "halves" else np.arange(size) ^ 1
  exact = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
  return jnp.dot(x, jnp.asarray(np.eye(size)[:, order], x.dtype), precision=exact)
