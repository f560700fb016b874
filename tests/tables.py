"""Parameters of tensors that are in memory, through a table."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from blip3o_jax.weights import table


def filled(
  plan: Mapping[str, table.Source], read: table.Read, params: Mapping[str, Any]
) -> dict[str, jax.Array]:
  """{path: array} of a plan, in the shapes and dtypes of `params`."""
  out = {}
  for path, leaf in params.items():
    whole = (slice(None),) * len(leaf.shape)
    out[path] = jnp.asarray(table.read_shard(plan[path], read, whole, leaf.shape), leaf.dtype)
  return out
