"""Spikes: which updates are skipped, what a skipped one leaves as it was, and when to stop."""

import functools
import math
from typing import Any

import jax
import numpy as np
import optax
import pytest
import toy

from blip3o_jax import trees
from blip3o_jax.train import distributed
from blip3o_jax.train import spikes
from blip3o_jax.train import state as train_state
from blip3o_jax.train import step as train_step

BATCH = 8
ON = spikes.Spikes(grad_norm=5, after=2, stop=2)


class Case:
  """A toy run without loop, whose updates may be skipped; its learning rate falls."""

  def __init__(self, on: spikes.Spikes):
    self.schedule = optax.linear_schedule(1e-2, 0, 100)
    system, cfg = toy.System(), toy.Config(depth=1)
    self.mesh = distributed.make_mesh(distributed.Mesh(fsdp=1))
    part = train_state.partition(system, cfg, self.mesh, toy.TRAINED)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(self.schedule))
    abstract = train_state.abstract_state(part, tx, self.mesh, ema=True, spikes=on.on)
    flat = train_state.fresh_params(system, cfg, 0, part.leaves)
    self.frozen = trees.unflatten({p: flat[p] for p in part.frozen})
    params = trees.unflatten({p: flat[p] for p in part.trained})
    self.start = train_state.start(abstract, tx, params, self.mesh)
    options: Any = dict(ema_decay=0.5, learning_rate=self.schedule, spikes=on)
    self.jitted = jax.jit(train_step.make_step(part, tx, **options))

  def step(self, state: Any, scale: float = 1.0) -> Any:
    """One step on the same batch, its numbers times `scale`."""
    batch = toy.Data(BATCH).batch_at(0) | {"scale": np.float32(scale)}
    key = train_state.named_key(0, "train")
    return self.jitted(state, self.frozen, distributed.put(batch, self.mesh, BATCH), key)


case_of = functools.cache(Case)


def _same(a: Any, b: Any) -> bool:
  return bool(jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))


def test_a_spike_changes_nothing_and_is_counted():
  case = case_of(ON)
  state = case.start
  for _ in range(3):
    state, metrics = case.step(state)
    assert int(metrics["skipped"]) == 0
  after, metrics = case.step(state, 1e3)
  assert float(metrics["grad_norm"]) > 5 * float(jax.numpy.exp(state.spikes["mean"][0]))
  for name in ("params", "opt", "ema", "bad"):
    assert _same(getattr(after, name), getattr(state, name)), name
  assert (int(after.step), int(metrics["skipped"]), int(after.spikes["row"])) == (4, 1, 1)
  assert float(metrics["param_norm"]) == pytest.approx(float(optax.tree.norm(state.params)))
  # The next update is the fourth, by its learning rate too, and ends the row.
  later, metrics = case.step(after)
  assert not _same(later.params, state.params)
  assert float(metrics["lr"]) == pytest.approx(float(case.schedule(3)))
  assert (int(metrics["skipped"]), int(later.spikes["row"]), int(later.spikes["seen"])) == (1, 0, 4)
  # Without the spike between them the parameters are the same, bit for bit.
  straight, _ = case.step(state)
  for name in ("params", "opt", "ema"):
    assert _same(getattr(later, name), getattr(straight, name)), name


def test_too_many_in_a_row_are_remembered():
  case = case_of(ON)
  state = case.start
  for scale in (1, 1, 1, 1e3, 1, 1e3):
    state, _ = case.step(state, scale)
  assert (int(state.spikes["skipped"]), int(state.spikes["stopped"])) == (2, 0)
  state, _ = case.step(state, 1e3)
  assert int(state.spikes["stopped"]) == 7
  state, _ = case.step(state)
  assert int(state.spikes["stopped"]) == 7


def test_nothing_is_skipped_before_there_is_a_mean():
  case = case_of(ON)
  state = case.start
  for scale in (1, 1e3, 1):
    state, metrics = case.step(state, scale)
    assert int(metrics["skipped"]) == 0
  assert int(state.spikes["seen"]) == 3


def test_the_mean_is_geometric_and_newer_steps_weigh_more():
  case = case_of(ON)
  state, logs = case.start, []
  for _ in range(4):
    state, metrics = case.step(state)
    logs.append([math.log(float(metrics["grad_norm"])), math.log(float(metrics["loss"]))])
  rate = 1 - 1 / ON.memory
  weights = np.asarray([(1 - rate) * rate**i for i in (3, 2, 1, 0)])
  np.testing.assert_allclose(state.spikes["mean"], weights @ np.asarray(logs), rtol=1e-4)


def test_a_loss_alone_can_be_a_spike():
  case = case_of(spikes.Spikes(loss=5, after=2))
  state = case.start
  for _ in range(3):
    state, _ = case.step(state)
  state, metrics = case.step(state, 1e3)
  assert int(metrics["skipped"]) == 1


def test_what_is_not_finite_is_no_spike():
  case = case_of(ON)
  state = case.start
  for _ in range(3):
    state, _ = case.step(state)
  mean = state.spikes["mean"]
  state, metrics = case.step(state, math.inf)
  assert (int(state.bad), int(metrics["skipped"])) == (3, 0)
  assert _same(state.spikes["mean"], mean)


def test_off_leaves_the_state_as_it_was():
  case = case_of(spikes.OFF)
  state, metrics = case.step(case.start)
  assert state.spikes == {}
  assert "skipped" not in metrics
  assert float(metrics["lr"]) == pytest.approx(1e-2)


@pytest.mark.parametrize(
  ("fields", "said"),
  [
    (dict(grad_norm=0.5), r"spikes\.grad_norm 0\.5: expected 0 \(off\), or a factor above 1"),
    (dict(loss=math.nan), r"spikes\.loss nan"),
    (dict(stop=0), r"spikes\.stop 0: expected at least 1"),
  ],
)
def test_bad_fields(fields, said):
  with pytest.raises(ValueError, match=said):
    spikes.Spikes(**fields)
