"""A module taken apart, as compiled functions take it: its structure, and its arrays."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import AbstractContextManager
import functools
from typing import Any
from typing import Generic
from typing import Protocol
from typing import TypeVar

from flax import nnx
import jax

from blip3o_jax import trees

R = TypeVar("R")
SMALL = 1 << 28  # bytes of parameters; of a larger network each product is work for all cores
_UNOPTIMIZED = {"xla_backend_optimization_level": 0}  # the other passes of XLA are as they were


def on_host() -> bool:
  """Whether programs run on this machine's CPU; under a mesh, that may be devices elsewhere."""
  return jax.default_backend() == "cpu" and jax.sharding.get_abstract_mesh().empty


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


class Home(Protocol):
  """Where the parameters of a network lie, if that is not simply the default device."""

  def around(self) -> AbstractContextManager[Any]:
    """What programs run in, such as a mesh."""

  def ready(
    self, network: "Network", args: tuple[Any, ...], used: Callable[[], frozenset[str]]
  ) -> tuple["Network", tuple[Any, ...]]:
    """The network and the other arguments, as a program takes them.

    Args:
      args: the program's others. used: gives the top-level modules that it reads.
    """

  def left(self, result: R) -> R:
    """The result of a program as its caller takes it."""


@jax.tree_util.register_pytree_node_class
class Network:
  """A module taken apart: a pytree of its parameters, whose structure is static.

  An argument of a jitted function, which puts it together by `module`.

  Attributes:
    params: a nested dict of arrays. home: where they lie; None is the default device. Only a
      `Program` knows of it, and what a tree function gives has none.
  """

  def __init__(
    self,
    graphdef: nnx.GraphDef[Any] | Structure,
    params: trees.Tree,
    home: Home | None = None,
  ):
    self._structure = graphdef if isinstance(graphdef, Structure) else Structure(graphdef)
    self.params, self.home = params, home
    self._module: Any = None
    self._kept: dict[Any, Any] = {}

  @classmethod
  def of(cls, module: nnx.Module) -> "Network":
    """A module that exists."""
    graphdef, state = nnx.split(module)
    return cls(graphdef, nnx.to_pure_dict(state))

  @property
  def graphdef(self) -> nnx.GraphDef[Any]:
    """The structure."""
    return self._structure.graphdef

  def once(self, make: Callable[..., R], *args: Any) -> R:
    """`make(self, *args)`, made at its first call and kept as long as the network."""
    if (make, args) not in self._kept:
      self._kept[make, args] = make(self, *args)
    return self._kept[make, args]  # type: ignore[no-any-return]

  @functools.cached_property
  def nbytes(self) -> int:
    """Of all parameters, which may be shapes."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(self.params))

  def module(self) -> Any:
    """The module again, put together once."""
    if self._module is None:
      self._module = nnx.merge(self.graphdef, self.params)
    return self._module

  def with_params(self, params: trees.Tree, home: Home | None = None) -> "Network":
    """The same structure with other parameters."""
    return Network(self._structure, params, home)

  def tree_flatten(self) -> tuple[tuple[trees.Tree], Structure]:
    """For jax."""
    return (self.params,), self._structure

  @classmethod
  def tree_unflatten(cls, structure: Structure, children: tuple[trees.Tree]) -> "Network":
    """For jax."""
    return cls(structure, children[0])


class Program(Generic[R]):
  """A jitted function of a network and more, before which the parameters come to where it runs.

  Args:
    fn: its first argument is a `Network`. options: of `jax.jit`.
    brief: of a small network it runs for less time than LLVM's optimizer takes for it: on a CPU it
      then does without.
  """

  def __init__(self, fn: Callable[..., R], options: Mapping[str, Any], *, brief: bool = False):
    self._jit = self._brief = jax.jit(fn, **options)
    if brief:
      self._brief = jax.jit(fn, compiler_options=_UNOPTIMIZED, **options)
    functools.update_wrapper(self, fn)

  def __call__(self, *args: Any, **kwargs: Any) -> R:
    network, *others = args
    home = network.home if isinstance(network, Network) else None
    if home is None:
      return self._here(network)(*args, **kwargs)  # type: ignore[no-any-return]
    with home.around():
      given = others, kwargs
      found, given = home.ready(network, given, lambda: self.used(network, others, kwargs))
      return home.left(self._jit(found, *given[0], **given[1]))  # type: ignore[no-any-return]

  def lower(self, network: Network, *args: Any, **kwargs: Any) -> Any:
    """See `jax.jit(...).lower`; parameters stay where they are."""
    if network.home is None:
      return self._here(network).lower(network, *args, **kwargs)
    with network.home.around():
      return self._jit.lower(network, *args, **kwargs)

  def _here(self, network: Network) -> Any:
    """The function for where it runs."""
    brief = self._brief is not self._jit and network.nbytes <= SMALL and on_host()
    return self._brief if brief else self._jit

  def trace(self, *args: Any, **kwargs: Any) -> Any:
    """See `jax.jit(...).trace`; where the parameters lie is not asked."""
    return self._jit.trace(*args, **kwargs)

  def used(
    self, network: Network, others: Sequence[Any], kwargs: Mapping[str, Any]
  ) -> frozenset[str]:
    """The top-level modules of the network that the program reads."""
    # By shapes alone: an array on the host meets none on the device.
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), network.params)
    given = network.with_params(shapes)
    jaxpr = self._jit.trace(given, *others, **kwargs).jaxpr.jaxpr
    read = {id(v) for equation in jaxpr.eqns for v in equation.invars}
    read |= {id(v) for v in jaxpr.outvars}
    # The network is the first argument, so its leaves come first.
    leaves, _ = jax.tree_util.tree_flatten_with_path(network.params)
    pairs = zip(leaves, jaxpr.invars, strict=False)
    return frozenset(str(path[0].key) for (path, _), v in pairs if id(v) in read)


def program(*, brief: bool = False, **options: Any) -> Callable[[Callable[..., R]], Program[R]]:
  """A decorator: the function as a `Program`; the options are those of `jax.jit`."""
  return lambda fn: Program(fn, options, brief=brief)
