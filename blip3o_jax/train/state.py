"""What a run holds: the partition of a model into trained and frozen leaves, and the train state.

Everything at a jit boundary is a pure dict. Frozen leaves never meet the optimiser, are never
donated, never returned and never checkpointed.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from collections.abc import Set
import dataclasses
import math
from typing import Any
from typing import Literal

from flax import nnx
from flax import struct
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
import numpy as np
import optax

from blip3o_jax import layers
from blip3o_jax import quantized
from blip3o_jax import sharding
from blip3o_jax import trees
from blip3o_jax.train import moments
from blip3o_jax.train import spikes as train_spikes

KEYS = {"params": 0, "data": 1, "train": 2, "eval": 3, "sample": 4}
Params = dict[Any, Any]
Leaves = dict[str, jax.ShapeDtypeStruct]


@struct.dataclass
class TrainState:
  """The donated argument of the step.

  Attributes:
    step: int32[], batches done. params: trained leaves, float32. opt: optimiser state.
    ema: average of params, or {} when off. bad: int32[], the first step whose loss, gradients or
      parameters were not finite; -1 while there is none. spikes: see `spikes.shapes`, or {} when
      nothing is skipped.
  """

  step: jax.Array
  params: Params
  opt: optax.OptState
  ema: Params
  bad: jax.Array
  spikes: Params = struct.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Partition:
  """An abstract model, split by path into trained and frozen leaves (with shardings).

  Attributes:
    graphdef: for `nnx.merge(graphdef, params, frozen)`.
    trained, frozen: {path: ShapeDtypeStruct with sharding}, in the order of the model.
    axes: {path: logical axes} of all leaves.
    cast: trained leaves that their layers compute with in bfloat16; the step casts them once.
    gathered: trained leaves that the step makes whole once, with their places.
  """

  graphdef: Any
  trained: Leaves
  frozen: Leaves
  axes: dict[str, tuple[str, ...]]
  cast: frozenset[str]
  gathered: Mapping[str, NamedSharding] = dataclasses.field(default_factory=dict)

  @property
  def leaves(self) -> Leaves:
    """All leaves."""
    return self.trained | self.frozen

  def module(self, params: Params, frozen: Params) -> nnx.Module:
    """The model with these arrays."""
    return nnx.merge(self.graphdef, params, frozen)


def named_key(seed: int, name: str) -> jax.Array:
  """The key of one use ("params", "train", ...) in a run, whose seed is below 2**64.

  Below 2**32 it is made of `jax.random.key`, which would drop the high half of a larger one.
  """
  words = jnp.asarray([seed >> 32, seed & 0xFFFFFFFF], jnp.uint32)
  return jax.random.fold_in(jax.random.wrap_key_data(words, impl="threefry2x32"), KEYS[name])


def partition(
  system: Any,
  model_cfg: Any,
  mesh: jax.sharding.Mesh,
  trainable: Sequence[str],
  frozen_dtype: Literal["float32", "bfloat16"] = "float32",
) -> Partition:
  """Builds the model abstractly and splits its leaves: trained are those that a regex matches.

  Args:
    system: see `systems.System`. trainable: regexes of whole paths. frozen_dtype: how frozen leaves
      are stored; trained ones are float32.

  Raises:
    ValueError: a pattern that matches nothing; a variable that is no parameter, or has no axes;
      leaves or a mesh that the system refuses to train.
  """
  model = layers.abstract(lambda rngs: system.build(model_cfg, rngs))
  graphdef, variables = nnx.split(model)
  odd = [
    "/".join(map(str, path))
    for path, var in nnx.to_flat_state(variables)
    if not isinstance(var, nnx.Param)
  ]
  if odd:
    raise ValueError(f"the model holds variables that are no parameters: {', '.join(odd)}")
  shapes = trees.flatten(nnx.to_pure_dict(variables))
  places = trees.flatten(sharding.shardings(model, mesh))
  trees.check_patterns(trainable, shapes, "config.trainable")
  is_trained = trees.matcher(trainable)
  trained: Leaves = {}
  frozen: Leaves = {}
  for path, leaf in shapes.items():
    stored = jnp.float32 if is_trained(path) else jnp.dtype(frozen_dtype)
    dtype = stored if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype
    group = trained if is_trained(path) else frozen
    group[path] = jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=places[path])
  quantized.check_trained(trained, shapes)
  system.check(model_cfg, list(trained))
  cast = _computed_in_bfloat16(model) & set(trained)
  return Partition(graphdef, trained, frozen, sharding.param_axes(model), frozenset(cast))


def _computed_in_bfloat16(model: nnx.Module) -> set[str]:
  """Kernels and embeddings of layers whose `dtype` is bfloat16: these layers cast them anyway."""
  out = set()
  for path, module in nnx.iter_modules(model):
    dtype = getattr(module, "dtype", None)
    if dtype is None or jnp.dtype(dtype) != jnp.bfloat16:
      continue
    for name in ("kernel", "embedding"):
      if isinstance(getattr(module, name, None), nnx.Param):
        out.add("/".join(map(str, (*path, name))))
  return out


def abstract_state(
  part: Partition,
  tx: optax.GradientTransformation,
  mesh: jax.sharding.Mesh,
  *,
  ema: bool,
  spikes: bool = False,
  on_host: Set[str] = frozenset(),
) -> TrainState:
  """The train state as ShapeDtypeStructs with shardings; nothing is allocated.

  Each optimiser leaf that mirrors a parameter lives where the parameter lives, or in the memory of
  that device's host.

  Args:
    on_host: paths of parameters whose moments lie there.
  """
  whole = sharding.replicated(mesh)
  params = trees.unflatten(part.trained)
  places = trees.unflatten(
    {
      path: leaf.sharding.with_memory_kind(moments.KIND) if path in on_host else leaf.sharding
      for path, leaf in part.trained.items()
    }
  )
  shapes = jax.eval_shape(tx.init, params)
  opt_places = moments.of_params(tx, lambda _, place: place, shapes, places, other=lambda _: whole)
  opt = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, opt_places
  )
  number: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
  seen = train_spikes.shapes(whole) if spikes else {}
  return TrainState(number, params, opt, params if ema else {}, number, seen)


def fresh_params(system: Any, model_cfg: Any, seed: int, leaves: Leaves) -> dict[str, jax.Array]:
  """Random values of some leaves, {path: array}; the same on any mesh."""

  def init() -> dict[str, jax.Array]:
    model = system.build(model_cfg, nnx.Rngs(named_key(seed, "params")))
    flat = trees.flatten(nnx.to_pure_dict(nnx.state(model)))
    return {path: flat[path].astype(leaf.dtype) for path, leaf in leaves.items()}

  if not leaves:
    return {}
  places = {p: leaf.sharding for p, leaf in leaves.items()}
  # It runs once. Optimising it takes a CPU half a minute for a network of a few hundred leaves.
  quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
  return jax.jit(init, out_shardings=places, compiler_options=quick)()


def scalar(value: int, mesh: jax.sharding.Mesh) -> jax.Array:
  """int32[] on every device of the mesh."""
  whole = sharding.replicated(mesh)
  return jax.make_array_from_callback((), whole, lambda _: np.asarray(value, np.int32))


def start(
  abstract: TrainState, tx: optax.GradientTransformation, params: Params, mesh: jax.sharding.Mesh
) -> TrainState:
  """A train state at step 0 from the trained leaves; the average starts as a copy of them."""
  places = jax.tree.map(lambda x: x.sharding, abstract.opt)
  opt = jax.jit(tx.init, out_shardings=places)(params)
  # A copy, because a donated buffer may occur only once among the arguments.
  ema = jax.tree.map(jnp.copy, params) if abstract.ema else {}
  return TrainState(scalar(0, mesh), params, opt, ema, scalar(-1, mesh), zeros(abstract.spikes))


def zeros(abstract: Params) -> Params:
  """A tree of zeros, from ShapeDtypeStructs with shardings."""

  def one(leaf: Any) -> jax.Array:
    value = np.zeros(leaf.shape, leaf.dtype)
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda at: value[at])

  return jax.tree.map(one, abstract)


def table(part: Partition) -> list[str]:
  """Lines of the start-up table: one row per top-level module and kind, and the totals."""
  head = ("module", "kind", "leaves", "parameters", "dtype", "bytes", "per device", "sharding")
  rows: list[tuple[str, ...]] = [head]
  for kind, leaves in (("trained", part.trained), ("frozen", part.frozen)):
    groups: dict[str, Leaves] = {}
    for path, leaf in leaves.items():
      groups.setdefault(trees.top(path), {})[path] = leaf
    rows += [(name, kind, *_row(group)) for name, group in groups.items()]
    if leaves:
      rows.append(("all", kind, *_row(leaves)))
  widths = [max(len(r[i]) for r in rows) for i in range(len(head))]
  return ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]


def _row(leaves: Leaves) -> tuple[str, ...]:
  local = bytes_on_device(leaves.values())
  specs: dict[str, int] = {}
  for leaf in leaves.values():
    axes = [a if isinstance(a, str) else "+".join(a) for a in leaf.sharding.spec if a]
    size = math.prod(leaf.shape) * leaf.dtype.itemsize
    specs[" ".join(axes) or "whole"] = specs.get(" ".join(axes) or "whole", 0) + size
  total = sum(specs.values())
  parts = sorted(specs.items(), key=lambda item: -item[1])
  return (
    str(len(leaves)),
    f"{sum(math.prod(x.shape) for x in leaves.values()):,}",
    ", ".join(sorted({str(x.dtype) for x in leaves.values()})),
    readable(total),
    readable(local),
    ", ".join(f"{name} {size / max(total, 1):.0%}" for name, size in parts[:3]),
  )


def bytes_on_device(leaves: Iterable[jax.ShapeDtypeStruct]) -> int:
  """Bytes of leaves in one device's own memory; one without a sharding is whole there."""
  return _bytes(leaf for leaf in leaves if not _is_on_host(leaf))


def bytes_on_host(leaves: Iterable[jax.ShapeDtypeStruct]) -> int:
  """Bytes of leaves in the host's memory that belong to one device."""
  return _bytes(filter(_is_on_host, leaves))


def _is_on_host(leaf: jax.ShapeDtypeStruct) -> bool:
  return leaf.sharding is not None and leaf.sharding.memory_kind == moments.KIND


def _bytes(leaves: Iterable[jax.ShapeDtypeStruct]) -> int:
  total = 0
  for leaf in leaves:
    shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape
    total += math.prod(shape) * leaf.dtype.itemsize
  return total


def readable(size: float) -> str:
  """Bytes in binary units: "1.5 MiB"."""
  for unit in ("B", "KiB", "MiB"):
    if size < 1024:
      return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
    size /= 1024
  return f"{size:.2f} GiB"
