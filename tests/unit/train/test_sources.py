"""Where arrays come from: order, overrides, and what is refused."""

import dataclasses
import pathlib
import shutil

from flax import nnx
import jax
import numpy as np
import pytest
import toy

from blip3o_jax import trees
from blip3o_jax.systems.parts import loading
from blip3o_jax.train import checkpoint
from blip3o_jax.train import state as train_state
from blip3o_jax.train.run import Train
from blip3o_jax.train.run import parse
from blip3o_jax.train.setup import changes
from blip3o_jax.train.setup import first_state
from blip3o_jax.train.setup import prepare
from blip3o_jax.train.setup import resumed

CFG = toy.Config(depth=1)


def _setup(init_from=(), cfg=CFG, trainable=toy.TRAINED):
  train = Train(trainable=trainable, init_from=tuple(map(str, init_from)))
  return prepare(parse(toy.values(cfg, train), {"toy": toy.System()}), toy.System())


def _first(workdir, init_from=(), **fields):
  setup = _setup(init_from, **fields)
  return first_state(setup, workdir, resumed(setup, workdir))


def _arrays(seed):
  return trees.flatten(nnx.to_pure_dict(nnx.state(toy.Toy(CFG, nnx.Rngs(seed)))))


def _run(workdir, setup, step=5):
  """Leaves the checkpoint of a run that did nothing."""
  state, _, used = first_state(setup, workdir, resumed(setup, workdir))
  train = dataclasses.asdict(setup.run.train)
  record = {"train": train, "model": {}, "sources": loading.to_record(used, workdir)}
  with checkpoint.Writer(workdir, checkpoint.Checkpoint(), record) as writer:
    writer.save(state.replace(step=train_state.scalar(step, setup.mesh)))
    writer.wait()
  return state


def test_frozen_leaves_without_a_source_are_listed(tmp_path):
  with pytest.raises(
    ValueError, match=r"2 frozen .* \(it is empty\):\n  encoder/bias\n  encoder/k"
  ):
    _first(tmp_path / "run")


def test_later_sources_win_and_the_rest_is_random(tmp_path):
  first = toy.released(tmp_path / "one", CFG, "", seed=1)
  second = toy.released(tmp_path / "two", CFG, "encoder", seed=2)
  state, frozen, used = _first(tmp_path / "run", [first, second])
  np.testing.assert_array_equal(frozen["encoder"]["kernel"], _arrays(2)["encoder/kernel"])
  np.testing.assert_array_equal(state.params["head"]["kernel"], _arrays(1)["head/kernel"])
  assert [s.kind for s in used] == ["released", "released"]
  state, _, _ = _first(tmp_path / "run", [second])
  again, _, _ = _first(tmp_path / "run", [second])
  jax.tree.map(np.testing.assert_array_equal, state.params, again.params)
  assert (np.asarray(state.params["head"]["kernel"]) != _arrays(1)["head/kernel"]).any()


def test_a_run_stands_for_its_whole_model(tmp_path):
  weights = toy.released(tmp_path / "weights", CFG, "encoder", seed=2)
  before = _run(tmp_path / "one", _setup([weights]))
  state, frozen, used = _first(tmp_path / "two", [tmp_path / "one"], trainable=("head/.*",))
  assert [(s.kind, s.step) for s in used] == [("released", -1), ("run", 5)]
  np.testing.assert_array_equal(frozen["encoder"]["kernel"], _arrays(2)["encoder/kernel"])
  np.testing.assert_array_equal(
    frozen["blocks"]["up_proj"]["kernel"], before.params["blocks"]["up_proj"]["kernel"]
  )
  np.testing.assert_array_equal(state.params["head"]["kernel"], before.params["head"]["kernel"])


def test_an_earlier_checkpoint_of_a_run(tmp_path):
  weights = toy.released(tmp_path / "weights", CFG, "encoder", seed=2)
  setup = _setup([weights])
  _run(tmp_path / "run", setup, 5)
  _run(tmp_path / "run", setup, 7)
  found = [loading.resolve([f"{tmp_path / 'run'}{end}"])[-1] for end in ("", "#params@5")]
  assert [(s.item, s.step) for s in found] == [("params", 7), ("params", 5)]
  with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 6, only of \[5, 7\]"):
    loading.resolve([f"{tmp_path / 'run'}#ema@6"])


def test_resume_goes_to_the_recorded_sources(tmp_path):
  weights = toy.released(tmp_path / "a/weights", CFG, "encoder", seed=2)
  before = _run(tmp_path / "a/run", _setup([weights]))
  shutil.move(tmp_path / "a", tmp_path / "b")  # the run and its weights moved together
  run = tmp_path / "b/run"
  state, frozen, _ = _first(run, ["ignored when there is a checkpoint"])
  assert int(state.step) == 5
  jax.tree.map(np.testing.assert_array_equal, state.params, before.params)
  np.testing.assert_array_equal(frozen["encoder"]["kernel"], _arrays(2)["encoder/kernel"])
  (tmp_path / "b/weights/new.txt").write_text("x")
  with pytest.raises(ValueError, match="b/weights, whose files changed since"):
    _first(run)
  shutil.rmtree(tmp_path / "b/weights")
  with pytest.raises(FileNotFoundError, match="a/weights, which is gone"):
    _first(run)


def test_sources_that_do_not_fit(tmp_path):
  wide = toy.released(tmp_path / "wide", toy.Config(dim=4, depth=1))
  with pytest.raises(
    ValueError, match=r"shape of encoder/kernel: expected \(8, 8\) for .*, found \(4, 4\)"
  ):
    _first(tmp_path / "run", [wide])
  weights = toy.released(tmp_path / "weights", CFG)
  with pytest.raises(FileNotFoundError, match="'/no/such': no such directory"):
    loading.resolve(["/no/such"])
  with pytest.raises(ValueError, match="expected nothing, #params, #ema or #ema@STEP"):
    loading.resolve([f"{weights}#mean"])
  with pytest.raises(ValueError, match="is no run directory, so it has no #ema"):
    loading.resolve([f"{weights}#ema"])
  (tmp_path / "empty/checkpoints").mkdir(parents=True)
  with pytest.raises(FileNotFoundError, match="holds no complete checkpoint"):
    loading.resolve([str(tmp_path / "empty")])


def test_a_run_of_another_model_is_refused(tmp_path):
  weights = toy.released(tmp_path / "weights", CFG)
  setup = _setup([weights])
  state, _, _ = first_state(setup, tmp_path / "run", None)
  other = pathlib.Path(tmp_path / "other")
  record = {"train": {}, "model": {}, "sources": []}
  with checkpoint.Writer(other, checkpoint.Checkpoint(), record) as writer:
    writer.save(state.replace(params={"tower": state.params}))
    writer.wait()
  with pytest.raises(ValueError, match=r"holds no parameter of this model, but .*tower/blocks"):
    _first(tmp_path / "run", [weights, other])


def test_changes_of_a_config_are_named():
  now = dataclasses.asdict(Train(batch=32, trainable=("a",)))
  before = {**now, "batch": 64, "trainable": ["a"], "gone": 1}
  assert changes(before, now) == ["batch 64 -> 32", "gone 1 -> absent"]
  assert not changes({"sizes": [[1, 2], [3]]}, {"sizes": ((1, 2), (3,))})
  before, now = (
    {"sets": [{"kinds": ["a"], "of": {"x": []}}]},
    {"sets": ({"kinds": ("a",), "of": {"x": ()}},)},
  )
  assert not changes(before, now)
  now = {"sets": ({"kinds": ("b",), "of": {"x": ()}},)}
  assert changes(before, now) == [
    f"sets {before['sets']} -> [{{'kinds': ['b'], 'of': {{'x': []}}}}]"
  ]
