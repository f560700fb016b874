"""Moments in the host's memory: the same numbers, a layer at a time, and they stay there."""

import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from blip3o_jax import trees
from blip3o_jax.train import checkpoint
from blip3o_jax.train import distributed
from blip3o_jax.train import moments
from blip3o_jax.train import optimizer
from blip3o_jax.train import spikes
from blip3o_jax.train import state as train_state
from blip3o_jax.train import step as train_step
from blip3o_jax.train.optimizer import Optimizer

BATCH = 8
# To the last bit the two updates are equal by the emitters that users have (tests/conftest.py).
EMITTERS = {"xla_cpu_use_fusion_emitters": True} if sys.version_info < (3, 12) else None
COMMON: dict[str, Any] = dict(lr=1e-2, schedule="constant", weight_decay=0.1, clip=0.1)
SPIKES = spikes.Spikes(grad_norm=5, after=2, stop=2)


class Case:
  """A toy run of three stacked layers and a head, with the moments of the layers on the host."""

  def __init__(self, name: Any, *, on_host: bool, on: spikes.Spikes = spikes.OFF):
    system, cfg = toy.System(), toy.Config(depth=3)
    self.mesh = distributed.make_mesh(distributed.Mesh(fsdp=1))
    part = train_state.partition(system, cfg, self.mesh, toy.TRAINED)
    opt = Optimizer(name=name, host_moments=on_host, **COMMON)
    axes = {path: part.axes[path] for path in part.trained}
    self.host = optimizer.on_host(opt, axes)
    tx = optimizer.make(opt, 10, axes)
    more: dict[str, Any] = dict(spikes=on.on, on_host=self.host)
    self.abstract = train_state.abstract_state(part, tx, self.mesh, ema=False, **more)
    flat = train_state.fresh_params(system, cfg, 0, part.leaves)
    self.frozen = trees.unflatten({p: flat[p] for p in part.frozen})
    params = trees.unflatten({p: flat[p] for p in part.trained})
    self.start = train_state.start(self.abstract, tx, params, self.mesh)
    step = train_step.make_step(
      part, tx, learning_rate=optimizer.schedule(opt, 10), ema_decay=0.0, spikes=on
    )
    places = jax.tree.map(lambda x: x.sharding, self.abstract)
    whole = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec())
    self.jitted = jax.jit(step, out_shardings=(places, whole), compiler_options=EMITTERS)

  def steps(self, count: int, scale: float = 1.0, state: Any = None) -> Any:
    """(the state after so many steps, the last metrics)."""
    state, metrics = state or self.start, {}
    for i in range(count):
      batch = toy.Data(BATCH).batch_at(i) | {"scale": np.float32(scale)}
      placed = distributed.put(batch, self.mesh, BATCH)
      state, metrics = self.jitted(state, self.frozen, placed, train_state.named_key(0, "train"))
    return state, metrics


case_of = functools.cache(Case)


def kinds(state: Any) -> dict[str, str]:
  """{path of an optimiser leaf: the memory it lies in}."""
  found = jax.tree_util.tree_leaves_with_path(state.opt)
  return {jax.tree_util.keystr(keys): x.sharding.memory_kind for keys, x in found}


@pytest.mark.parametrize("name", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_the_numbers_are_those_of_the_whole_update(name):
  plain, host = case_of(name, on_host=False), case_of(name, on_host=True)
  (a, found), (b, expected) = host.steps(4), plain.steps(4)
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for metric in expected:
    np.testing.assert_allclose(found[metric], expected[metric], rtol=1e-6, err_msg=metric)
  # Muon's products are of one matrix in place of several, and may add up in another order.
  same = np.testing.assert_array_equal if name == "adamw" else np.testing.assert_allclose
  more: dict[str, Any] = {} if name == "adamw" else dict(rtol=1e-4, atol=1e-6)
  jax.tree.map(lambda x, y: same(np.asarray(x), np.asarray(y), **more), a, b)


@pytest.mark.parametrize("name", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_moments_of_stacked_layers_stay_on_the_host(name):
  case = case_of(name, on_host=True)
  assert case.host == {p for p in trees.flatten(case.start.params) if p.startswith("blocks/")}
  for state in (case.start, case.steps(1)[0]):
    on_host = {path for path, kind in kinds(state).items() if kind == moments.KIND}
    there = {path for path in kinds(state) if "blocks" in path}
    assert on_host == there
    assert there != set(kinds(state)), "those of the head lie on the device"
    assert all(x.sharding.memory_kind != moments.KIND for x in jax.tree.leaves(state.params))
  leaves = jax.tree.leaves(case.abstract)
  both = train_state.bytes_on_device(leaves) + train_state.bytes_on_host(leaves)
  plain = jax.tree.leaves(case_of(name, on_host=False).abstract)
  assert train_state.bytes_on_host(leaves) > 0 == train_state.bytes_on_host(plain)
  assert both == train_state.bytes_on_device(plain)


def test_a_skipped_update_leaves_them_as_they_were():
  case, plain = (Case("adamw", on_host=on, on=SPIKES) for on in (True, False))
  state, _ = case.steps(3)
  expected, _ = plain.steps(3)
  after, metrics = case.steps(1, 1e3, state)
  assert int(metrics["skipped"]) == 1
  same = jax.tree.map(lambda x, y: bool((np.asarray(x) == np.asarray(y)).all()), after, state)
  assert jax.tree.all((same.params, same.opt))
  assert int(after.step) == int(state.step) + 1
  # And goes on as one whose moments never left the device.
  expected, _ = plain.steps(2, 1.0, plain.steps(1, 1e3, expected)[0])
  found, _ = case.steps(2, 1.0, after)
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), y), found, expected)


@pytest.mark.parametrize("there", [True, False])
def test_checkpoints_do_not_know_where_moments_lie(there, tmp_path):
  """Written from either memory and read into the other one: the next step is the same."""
  writer, reader = (case_of("adamw", on_host=on) for on in (there, not there))
  state, _ = writer.steps(2)
  with checkpoint.Writer(tmp_path, checkpoint.Checkpoint(), {}) as saver:
    saver.save(state)
    expected, _ = writer.steps(1, 1.0, state)
    saver.wait()
  for case in (writer, reader):
    found = checkpoint.restore_state(tmp_path, int(state.step), case.abstract, case.mesh)
    assert kinds(found) == kinds(case.start)
    after, _ = case.steps(1, 1.0, found)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, np.asarray(y)), after, expected)


def test_without_stacked_layers_it_is_refused():
  cfg = Optimizer(host_moments=True)
  with pytest.raises(ValueError, match=r"optimizer\.host_moments: no stacked layer"):
    optimizer.make(cfg, 10, {"head/kernel": ("embed", "rest")})


def test_stacks_of_several_depths_and_loose_leaves_each_get_their_own_update():
  shapes = {"a/kernel": (2, 3, 4), "b/kernel": (5, 3), "c/scale": (2, 7), "d": (3,)}
  r = np.random.default_rng(0)
  params, grads = (
    trees.unflatten({p: jnp.asarray(r.normal(size=s), jnp.float32) for p, s in shapes.items()})
    for _ in range(2)
  )
  rule = optax.adamw(1e-2, weight_decay=0.1)
  layered = moments.layer_by_layer(rule, {"a/kernel", "b/kernel", "c/scale"})
  states = [rule.init(params), layered.init(params)]
  for _ in range(2):
    (a, states[0]), (b, states[1]) = (
      jax.jit(tx.update)(grads, state, params)
      for tx, state in zip((rule, layered), states, strict=True)
    )
    # A loop's body may round a product and its sum together where the whole does not.
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), a, b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), *states)
