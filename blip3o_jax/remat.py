"""What the backward pass keeps, recomputes and stores, whatever the network."""

from collections.abc import Callable
from typing import Any
from typing import Literal

import jax

Remat = Literal["none", "full", "dots"]
KEPT = "kept"  # the name (`jax.ad_checkpoint.checkpoint_name`) of what "dots" keeps
SLICED = "sliced"  # the name of weights cut out of a stack, which nothing keeps


def rematerialised(body: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
  """A function whose backward pass recomputes what `remat` says; slices of `layer_of` always."""
  policies = jax.checkpoint_policies
  policy = {
    "none": policies.save_anything_except_these_names(SLICED),
    "dots": policies.save_only_these_names(KEPT),
    "full": None,
  }[remat]
  return jax.checkpoint(body, policy=policy, prevent_cse=False)


@jax.custom_vjp
def stored_gradient(x: Any) -> Any:
  """The identity of a pytree, whose gradient is made once and stored.

  XLA would make it inside each of the matmuls that read it, for every tile.
  """
  return x


stored_gradient.defvjp(lambda x: (x, None), lambda _, g: (jax.lax.optimization_barrier(g),))
