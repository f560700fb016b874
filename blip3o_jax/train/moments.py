"""The optimiser's moments in the host's memory, moved to the device a layer at a time.

Moved whole they need more memory on the device, not less: nothing in the host's memory can be
changed in place from there, so what came and its new value both lie on the device. A loop over the
layers of the stacked leaves holds those of one layer. Knows parameters by path, and no rule.
"""

from collections.abc import Callable
from collections.abc import Set
from typing import Any

import jax
import jax.numpy as jnp
import optax

KIND = "pinned_host"
Space = jax.memory.Space
Tree = Any


def by_path(params: Tree, value: Callable[[str], Any]) -> Tree:
  """A tree like `params` with `value("a/b/kernel")` at each leaf; masked leaves stay masked."""

  def at(keys: tuple[Any, ...], _: Any) -> Any:
    return value(jax.tree_util.keystr(keys, simple=True, separator="/"))

  return jax.tree_util.tree_map_with_path(at, params)


def of_params(rule: Any, f: Callable[..., Any], state: Tree, *rest: Tree, other: Any) -> Tree:
  """`f(leaf, *rest)` for each optimiser leaf that mirrors a parameter, `other(leaf)` for the rest.

  What one part of a partitioned optimiser leaves to another stays as it is.

  Args:
    rule: whose state it is. rest: trees like the parameters.
  """

  def one(x: Any, *more: Any) -> Any:
    return x if is_masked(x) else f(x, *more)

  return optax.tree.map_params(
    rule, one, state, *rest, transform_non_params=other, is_leaf=is_masked
  )


def is_masked(x: Any) -> bool:
  """Whether this stands for what another part of the optimiser has."""
  return isinstance(x, optax.MaskedNode)


def is_on_host(x: jax.Array) -> bool:
  """Whether an array, or one of a program, lies in the host's memory."""
  return jax.typeof(x).memory_space == Space.Host


def layer_by_layer(
  rule: optax.GradientTransformation, stacked: Set[str]
) -> optax.GradientTransformationExtraArgs:
  """A rule that treats each leaf by itself, with the update of stacked leaves a layer at a time.

  Numbers and state are those of the rule, but for how XLA rounds what it fuses. It computes on the
  device; moments lie afterwards where they lay before.

  Args:
    stacked: paths of leaves whose first dim is layers.

  Returns:
    a transformation whose update takes `skip`, bool[]: then moments in the host's memory stay as
    they were, which nobody could compute with later.
  """

  def update(
    grads: Tree, state: Tree, params: Tree = None, *, skip: jax.Array | None = None, **_: Any
  ) -> tuple[Tree, Tree]:
    names = by_path(params, lambda path: path)
    groups: dict[int, set[str]] = {}
    for name, leaf in zip(jax.tree.leaves(names), jax.tree.leaves(params), strict=True):
      groups.setdefault(leaf.shape[0] if name in stacked else 0, set()).add(name)

    def only(chosen: Set[str], tree: Tree) -> Tree:
      return jax.tree.map(lambda n, x: x if n in chosen else optax.MaskedNode(), names, tree)

    def part(chosen: Set[str]) -> tuple[Tree, Tree, Tree]:
      def keep(x: Any, name: str) -> Any:
        return x if name in chosen else optax.MaskedNode()

      mine = of_params(rule, keep, state, names, other=lambda x: x)
      return only(chosen, grads), mine, only(chosen, params)

    found = [rule.update(*part(groups.pop(0, set())))]
    found += [_over_layers(rule, n, *part(chosen), skip) for n, chosen in groups.items()]
    updates, states = zip(*found, strict=True)
    return _merged(*updates), _merged(*states)

  return optax.GradientTransformationExtraArgs(rule.init, update)


def _over_layers(
  rule: Any, layers: int, grads: Tree, state: Tree, params: Tree, skip: jax.Array | None
) -> tuple[Tree, Tree]:
  """The update of leaves [layers, ...]; gradients and moments are changed in place."""
  leaves, structure = jax.tree.flatten(state)
  moment = jax.tree.leaves(of_params(rule, lambda _: True, state, other=lambda _: False))

  def body(i: jax.Array, carry: tuple[Tree, list[Any]]) -> tuple[Tree, list[Any]]:
    done, now = carry

    def cut(x: jax.Array) -> jax.Array:
      return jax.lax.dynamic_index_in_dim(x, i, keepdims=False)

    def put(x: jax.Array, value: jax.Array) -> jax.Array:
      return jax.lax.dynamic_update_index_in_dim(x, value.astype(x.dtype), i, 0)

    # Numbers that belong to no layer are those from before the step, in each layer.
    old = [
      jax.device_put(cut(x), Space.Device) if is_moment else before
      for x, before, is_moment in zip(now, leaves, moment, strict=True)
    ]
    updates, new = rule.update(
      jax.tree.map(cut, done), jax.tree.unflatten(structure, old), jax.tree.map(cut, params)
    )

    def back(x: jax.Array, before: jax.Array, value: jax.Array) -> jax.Array:
      if is_on_host(x):
        kept = value if skip is None else jnp.where(skip, before, value)
        return put(x, jax.device_put(kept, Space.Host))
      return put(x, value)

    news = zip(now, old, jax.tree.leaves(new), moment, strict=True)
    return jax.tree.map(put, done, updates), [back(x, b, v) if m else v for x, b, v, m in news]

  done, now = jax.lax.fori_loop(0, layers, body, (grads, leaves))
  return done, jax.tree.unflatten(structure, now)


def _merged(first: Tree, *others: Tree) -> Tree:
  """Each leaf from the tree that has it; numbers that belong to no parameter are equal in all."""

  def one(*found: Any) -> Any:
    return next((x for x in found if not is_masked(x)), found[0])

  return jax.tree.map(one, first, *others, is_leaf=is_masked)
