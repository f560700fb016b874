"""The one step: loss, gradients of trained leaves, update. Knows no system, no data, no stage."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
import optax

from blip3o_jax import sharding
from blip3o_jax import trees
from blip3o_jax.train import spikes as train_spikes
from blip3o_jax.train.state import Params
from blip3o_jax.train.state import Partition
from blip3o_jax.train.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def make_step(
  part: Partition,
  tx: optax.GradientTransformation,
  *,
  accumulate: int = 1,
  cast_params: bool = True,
  ema_decay: float = 0.0,
  learning_rate: optax.Schedule,
  spikes: train_spikes.Spikes = train_spikes.OFF,
) -> Callable[[TrainState, Params, Batch, jax.Array], tuple[TrainState, Metrics]]:
  """The training step, to be jitted: (state, frozen, batch, key) -> (state, metrics).

  The step folds its number into the key, so a resumed run needs no stored key. Metrics are the
  system's, with loss, grad_norm (before clipping), param_norm (after the update) and lr.

  Args:
    accumulate: micro-batches; their unreduced losses are divided by the weights of the whole
      batch, so the sum is the loss of the whole batch whatever their number.
    cast_params: cast what bfloat16 layers use once, before the model is put together.
    ema_decay: of the average of the parameters; 0 is off. It is min(decay, (1 + n) / (10 + n)) at
      update n, or the random start would dominate short runs.
    spikes: updates that are skipped; then `skipped` of the metrics counts them from the start on.
  """

  rule = optax.with_extra_args_support(tx)

  def step(
    state: TrainState, frozen: Params, batch: Batch, key: jax.Array
  ) -> tuple[TrainState, Metrics]:
    key = jax.random.fold_in(key, state.step)
    compute = cast(state.params, part.cast) if cast_params else state.params
    value, metrics, grads = _gradients(part, compute, frozen, batch, key, accumulate)
    grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, state.params)
    grad_norm = optax.tree.norm(grads)
    skip, seen = None, state.spikes
    if spikes.on:
      skip, seen = train_spikes.judged(spikes, state, grad_norm, value)
    updates, opt = rule.update(grads, state.opt, state.params, skip=skip)
    params = optax.apply_updates(state.params, updates)
    done = train_spikes.updates(state)
    ema = _average(state.ema, params, done, ema_decay) if ema_decay else state.ema
    new = TrainState(state.step + 1, params, opt, ema, state.bad, seen)
    metrics = metrics | dict(loss=value, grad_norm=grad_norm, lr=learning_rate(done))
    if skip is not None:
      new = train_spikes.chosen(skip, state, new)
      metrics["skipped"] = new.spikes["skipped"]
    metrics["param_norm"] = param_norm = optax.tree.norm(new.params)
    fine = jnp.isfinite(value) & jnp.isfinite(grad_norm) & jnp.isfinite(param_norm)
    bad = jnp.where((state.bad < 0) & ~fine, state.step, state.bad)
    return dataclasses.replace(new, bad=bad), metrics

  return step


def make_evaluate(part: Partition) -> Callable[[Params, Params, Batch, jax.Array], Metrics]:
  """The held-out loss, to be jitted: (params, frozen, batch, key) -> metrics with `loss`."""

  def evaluate(params: Params, frozen: Params, batch: Batch, key: jax.Array) -> Metrics:
    module: Any = part.module(cast(params, part.cast), frozen)
    value, metrics = module.loss(module.prepare(batch), key, module.weights(batch))
    return metrics | {"loss": value}

  return evaluate


def cast(params: Params, paths: frozenset[str]) -> Params:
  """The tree with the leaves of `paths` in bfloat16."""
  flat = trees.flatten(params)
  return trees.unflatten({p: v.astype(jnp.bfloat16) if p in paths else v for p, v in flat.items()})


def gather(params: Params, places: Mapping[str, NamedSharding]) -> Params:
  """The tree with the leaves of `places` whole on each device; their gradients lie as given there.

  So the layers of a scan find their weights at home, and XLA may gather them beside whatever comes
  before. Each layer's gradient is scattered as it is made.
  """
  flat = trees.flatten(params)
  return trees.unflatten(
    {p: _gathered(v, places[p]) if p in places else v for p, v in flat.items()}
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gathered(x: jax.Array, place: NamedSharding) -> jax.Array:
  return jax.lax.with_sharding_constraint(x, sharding.whole(place))


_gathered.defvjp(
  lambda x, place: (_gathered(x, place), None),
  lambda place, _, g: (jax.lax.with_sharding_constraint(g, place),),
)


def split_batch(batch: Batch, parts: int) -> tuple[Batch, Batch]:
  """({name: [parts, rows / parts, ...]}, scalars) of a batch, for a scan over micro-batches.

  Micro-batch i takes every `parts`-th row from i on: rows stay on the device that holds them.

  Raises:
    ValueError: an array whose rows do not divide, by name.
  """
  split, whole = {}, {}
  for name, value in batch.items():
    if not value.ndim:
      whole[name] = value
    elif value.shape[0] % parts:
      raise ValueError(f"batch {name}: {value.shape[0]} rows do not divide by accumulate {parts}")
    else:
      split[name] = value.reshape(-1, parts, *value.shape[1:]).swapaxes(0, 1)
  return split, whole


def _gradients(
  part: Partition, params: Params, frozen: Params, batch: Batch, key: jax.Array, accumulate: int
) -> tuple[jax.Array, Metrics, Params]:
  """Loss, metrics and gradients (float32 sums when accumulated) of a whole batch."""
  whole: Any = part.module(params, frozen)
  weights = whole.weights(batch)

  def one(micro: Batch, key: jax.Array) -> tuple[jax.Array, Metrics, Params]:
    # Frozen parts make features here, outside the gradient.
    prepared = jax.lax.stop_gradient(whole.prepare(micro))

    def loss(params: Params) -> tuple[jax.Array, Metrics]:
      module: Any = part.module(gather(params, part.gathered), frozen)
      return module.loss(prepared, key, weights)

    (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return value, metrics, grads

  if accumulate == 1:
    return one(batch, key)
  split, scalars = split_batch(batch, accumulate)

  def body(total: Any, item: tuple[Batch, jax.Array]) -> tuple[Any, None]:
    micro, index = item
    new = one(micro | scalars, jax.random.fold_in(key, index))
    return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, new), None

  first = jax.tree.map(lambda x: x[0], split)
  shapes = jax.eval_shape(one, first | scalars, key)
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), shapes
  )
  total, _ = jax.lax.scan(body, zeros, (split, jnp.arange(accumulate)))
  return total


def _average(ema: Params, params: Params, step: jax.Array, decay: float) -> Params:
  n = step.astype(jnp.float32)
  rate = jnp.minimum(decay, (1 + n) / (10 + n))
  return jax.tree.map(lambda e, p: e + (1 - rate) * (p - e), ema, params)
