"""The step: gradients of trained leaves alone, accumulation, casting, the average, the flag."""

from collections.abc import Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from blip3o_jax import trees
from blip3o_jax.train import distributed
from blip3o_jax.train import optimizer
from blip3o_jax.train import state as train_state
from blip3o_jax.train import step as train_step

OPT = optimizer.Optimizer(lr=1e-2, schedule="constant")
BATCH = 8


class Case:
  """A toy run without loop: partition, state, frozen leaves, and a step made on demand."""

  def __init__(self, noise: float = 0.0, dtype: Any = "float32", ema: bool = False):
    cfg = toy.Config(depth=1, noise=noise, dtype=dtype)
    system = toy.System()
    self.mesh = distributed.make_mesh(distributed.Mesh(fsdp=1))
    self.part = train_state.partition(system, cfg, self.mesh, toy.TRAINED, dtype)
    axes = {p: self.part.axes[p] for p in self.part.trained}
    self.tx = optimizer.make(OPT, 10, axes)
    self.abstract = train_state.abstract_state(self.part, self.tx, self.mesh, ema=ema)
    flat = train_state.fresh_params(system, cfg, 0, self.part.leaves)
    self.frozen = trees.unflatten({p: flat[p] for p in self.part.frozen})
    params = trees.unflatten({p: flat[p] for p in self.part.trained})
    self.state = train_state.start(self.abstract, self.tx, params, self.mesh)
    self.key = train_state.named_key(0, "train")

    self.jitted: dict[Any, Any] = {}

  def step(self, state: Any = None, batch: Any = None, **options: Any) -> Any:
    name = tuple(options.items())
    if name not in self.jitted:
      schedule = optimizer.schedule(OPT, 10)
      self.jitted[name] = jax.jit(
        train_step.make_step(self.part, self.tx, learning_rate=schedule, **options)
      )
    batch = batch or distributed.put(toy.Data(BATCH).batch_at(0), self.mesh, BATCH)
    return self.jitted[name](state or self.state, self.frozen, batch, self.key)


case_of = functools.cache(Case)  # compiling is what costs time here


def test_only_trained_leaves_have_gradients_and_moments():
  case = case_of()
  assert set(case.part.frozen) == {"encoder/kernel", "encoder/bias"}
  state, metrics = case.step()
  changed = trees.flatten(
    jax.tree.map(lambda a, b: bool((a != b).any()), case.state.params, state.params)
  )
  assert all(changed.values())
  assert set(changed) == set(case.part.trained)
  moments = [x for x in jax.tree.leaves(state.opt) if x.ndim]
  assert len(moments) == 2 * len(case.part.trained)
  assert int(state.step) == 1
  assert int(state.bad) == -1
  assert float(metrics["param_norm"]) == pytest.approx(float(optax.tree.norm(state.params)))


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_equals_the_whole_batch(parts):
  case = case_of()
  whole, a = case.step()
  micro, b = case.step(accumulate=parts)
  assert set(a) == set(b)
  for name in a:
    np.testing.assert_allclose(a[name], b[name], rtol=2e-5, atol=1e-7, err_msg=name)
  # Micro-batches hold different numbers of samples that count: a mean of means would be wrong.
  x = toy.Data(BATCH).batch_at(0)["mask"].reshape(-1, parts).sum(0)
  assert len(set(x.tolist())) > 1
  moments = jax.tree.map(
    lambda u, v: np.testing.assert_allclose(u, v, rtol=1e-3, atol=1e-7), whole.opt, micro.opt
  )
  del moments


class KeyTeller:
  """A partition and module in one, whose metric tells which key it was given."""

  gathered: Mapping[str, Any] = {}

  def module(self, params: Any, frozen: Any) -> "KeyTeller":
    return self

  def weights(self, batch: Any) -> Any:
    return {}

  def prepare(self, batch: Any) -> Any:
    return batch

  def loss(self, batch: Any, key: jax.Array, weights: Any) -> Any:
    return jnp.zeros(()), {"draw": jax.random.uniform(key)}


def test_micro_batches_have_their_own_noise():
  key = jax.random.key(3)
  batch = {"x": jnp.zeros((4, 1))}
  _, metrics, _ = train_step._gradients(KeyTeller(), {"a": jnp.ones(())}, {}, batch, key, 2)
  draws = [jax.random.uniform(jax.random.fold_in(key, i)) for i in range(2)]
  assert float(metrics["draw"]) == pytest.approx(float(sum(draws)))
  assert float(draws[0]) != float(draws[1])


def test_accumulate_names_the_array_that_does_not_divide():
  with pytest.raises(ValueError, match="batch x: 6 rows do not divide by accumulate 4"):
    train_step.split_batch({"x": jnp.zeros((6, 2)), "s": jnp.zeros(())}, 4)


def test_noise_depends_on_the_step_alone():
  case = case_of(noise=1.0)
  a, first = case.step()
  _, again = case.step()
  _, second = case.step(state=a.replace(params=case.state.params))
  assert float(first["loss"]) == float(again["loss"])
  assert float(first["loss"]) != float(second["loss"])


def test_casting_once_is_what_the_layers_do():
  case = case_of(dtype="bfloat16")
  assert case.part.cast == {
    "blocks/up_proj/kernel",
    "blocks/down_proj/kernel",
    "head/kernel",
  }
  assert {x.dtype for x in case.part.frozen.values()} == {jnp.dtype("bfloat16")}
  assert {x.dtype for x in case.part.trained.values()} == {jnp.dtype("float32")}
  a, _ = case.step(cast_params=True)
  b, _ = case.step(cast_params=False)
  jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=0, atol=1e-6), a.params, b.params)
  assert {x.dtype for x in jax.tree.leaves(a.params)} == {jnp.dtype("float32")}


def test_average_starts_at_the_parameters_and_follows():
  case = case_of(ema=True)
  state, _ = case.step(ema_decay=0.99)
  want = jax.tree.map(lambda e, p: 0.1 * e + 0.9 * p, case.state.params, state.params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), state.ema, want)


def test_bad_step_is_remembered():
  case = case_of()
  state, _ = case.step()
  batch = toy.Data(BATCH).batch_at(1)
  batch["x"][0, 0, 0] = np.nan
  state, _ = case.step(state=state, batch=distributed.put(batch, case.mesh, BATCH))
  assert int(state.bad) == 1
  state, _ = case.step(state=state)
  assert int(state.bad) == 1


def test_held_out_loss_is_the_loss():
  case = case_of()
  batch = distributed.put(toy.Data(BATCH).batch_at(0), case.mesh, BATCH)
  found = jax.jit(train_step.make_evaluate(case.part))(
    case.state.params, case.frozen, batch, case.key
  )
  _, metrics = case.step(batch=batch)
  assert float(found["loss"]) == pytest.approx(float(metrics["loss"]), rel=1e-6)


def test_pattern_that_matches_nothing():
  mesh = distributed.make_mesh(distributed.Mesh(fsdp=1))
  with pytest.raises(ValueError, match=r"config\.trainable: 'bloks/\.\*' matches no parameter"):
    train_state.partition(toy.System(), toy.Config(), mesh, ("bloks/.*",))


def test_system_may_refuse_a_choice_of_leaves():
  class Strict(toy.System):
    def check(self, cfg: Any, trained: Any) -> None:
      raise ValueError(f"config.trainable: not {trained[0]}")

  mesh = distributed.make_mesh(distributed.Mesh(fsdp=1))
  with pytest.raises(ValueError, match="not encoder/"):
    train_state.partition(Strict(), toy.Config(), mesh, ("encoder/.*",))


def test_table_counts_everything():
  lines = train_state.table(case_of().part)
  assert lines[0].split()[:4] == ["module", "kind", "leaves", "parameters"]
  rows = {tuple(x.split()[:2]): x.split()[2:6] for x in lines[1:]}
  assert rows["all", "frozen"][:3] == ["2", "72", "float32"]
  assert rows["blocks", "trained"][0] == "5"


def test_muon_state_is_placed_like_its_parameters():
  case = case_of()
  axes = {p: case.part.axes[p] for p in case.part.trained}
  tx = optimizer.make(optimizer.Optimizer(name="muon"), 10, axes)
  abstract = train_state.abstract_state(case.part, tx, case.mesh, ema=False)
  state = train_state.start(abstract, tx, case.state.params, case.mesh)
  same = jax.tree.map(
    lambda a, b: a.shape == b.shape and a.sharding == b.sharding, abstract.opt, state.opt
  )
  assert all(jax.tree.leaves(same))
