"""A module taken apart, as compiled functions take it: its structure, and its arrays."""

from typing import Any

from flax import nnx
import jax

from blip3o_jax import trees


class Structure:
  """A graph definition that is hashed once.

  What is static is hashed and compared at every call of a compiled function, and to hash the graph
  definition of a UNet takes longer than to evaluate a small one.
  """

  def __init__(self, graphdef: nnx.GraphDef[Any]):
    self.graphdef, self._hash = graphdef, hash(graphdef)

  def __hash__(self) -> int:
    return self._hash

  def __eq__(self, other: object) -> bool:
    return self is other or (
      isinstance(other, Structure) and self._hash == other._hash and self.graphdef == other.graphdef
    )


@jax.tree_util.register_pytree_node_class
class Network:
  """A module taken apart: a pytree of its parameters, whose structure is static.

  An argument of a jitted function, which puts it together by `module`.

  Attributes:
    params: a nested dict of arrays.
  """

  def __init__(self, graphdef: nnx.GraphDef[Any] | Structure, params: trees.Tree):
    self._structure = graphdef if isinstance(graphdef, Structure) else Structure(graphdef)
    self.params = params
    self._module: Any = None

  @classmethod
  def of(cls, module: nnx.Module) -> "Network":
    """A module that exists."""
    graphdef, state = nnx.split(module)
    return cls(graphdef, nnx.to_pure_dict(state))

  @property
  def graphdef(self) -> nnx.GraphDef[Any]:
    """The structure."""
    return self._structure.graphdef

  def module(self) -> Any:
    """The module again, put together once."""
    if self._module is None:
      self._module = nnx.merge(self.graphdef, self.params)
    return self._module

  def tree_flatten(self) -> tuple[tuple[trees.Tree], Structure]:
    """For jax."""
    return (self.params,), self._structure

  @classmethod
  def tree_unflatten(cls, structure: Structure, children: tuple[trees.Tree]) -> "Network":
    """For jax."""
    return cls(structure, children[0])
