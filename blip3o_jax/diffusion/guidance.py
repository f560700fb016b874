"""Classifier-free guidance over any (x, t, condition) -> prediction. Knows no network."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Denoise = Callable[[jax.Array, jax.Array], jax.Array]
Conditioned = Callable[[jax.Array, jax.Array, Any], jax.Array]


def cfg(
  fn: Conditioned,
  condition: Any,
  null: Any | None,
  scale: float | jax.Array,
  axes: Any = 0,
  *,
  apart: bool = False,
) -> Denoise:
  """Guides `fn` away from `null`: p_null + scale * (p_condition - p_null) (spec 4.4).

  Args:
    fn: (x float[B, ...], t float[B], condition) -> prediction float[B, ...].
    condition: a pytree of arrays of batch B.
    null: the same of batch B or 1, for one evaluation of batch 2B, the null half first; with None
      nothing is guided, as a scale of 1 would have it at twice the cost.
    scale: of guidance; may be traced, so that another one compiles nothing.
    axes: where the batch is in the leaves, a prefix of `condition` in the manner of vmap's in_axes.
    apart: two evaluations of batch B, for a `null` of batch B whose other dims differ.

  Returns:
    (x, t) -> prediction, guided in float32.
  """
  if null is None:
    return lambda x, t: fn(x, t, condition)
  if not apart:
    return joined(fn, join(null, condition, axes), scale)

  def guided(x: jax.Array, t: jax.Array) -> jax.Array:
    without, given = (fn(x, t, c).astype(jnp.float32) for c in (null, condition))
    return without + scale * (given - without)

  return guided


def joined(
  fn: Conditioned,
  both: Any,
  scale: float | jax.Array,
  laid: Callable[[jax.Array], jax.Array] = lambda pairs: pairs,
) -> Denoise:
  """As `cfg` by one evaluation of batch 2B, of a null and a condition that `join` has joined.

  Args:
    laid: how the predictions float32[2, B, ...] lie over a mesh when the two of a row meet.
  """

  def guided(x: jax.Array, t: jax.Array) -> jax.Array:
    found = fn(_twice(x), _twice(t), both).astype(jnp.float32)
    without, given = laid(found.reshape(2, *x.shape))
    return without + scale * (given - without)

  return guided


def _twice(x: jax.Array) -> jax.Array:
  """Rows, and again; a broadcast, which moves nothing over a mesh, where a concatenation does."""
  return jnp.broadcast_to(x[None], (2, *x.shape)).reshape(-1, *x.shape[1:])


def join(first: Any, second: Any, axes: Any = 0) -> Any:
  """Concatenates two pytrees along the batch; `first` of batch 1 is repeated to `second`'s."""

  def leaf(axis: int, a: jax.Array, b: jax.Array) -> jax.Array:
    shape = (*a.shape[:axis], b.shape[axis], *a.shape[axis + 1 :])
    return jnp.concatenate([jnp.broadcast_to(a, shape), b], axis)

  def subtree(axis: int, a: Any, b: Any) -> Any:
    return jax.tree.map(lambda x, y: leaf(axis, x, y), a, b)

  return jax.tree.map(subtree, axes, first, second)
