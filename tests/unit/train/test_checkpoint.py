"""Checkpoints: round trips, readable refusals, and a kill in the middle of a save."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip3o_jax import sharding
from blip3o_jax import trees
from blip3o_jax.train import checkpoint
from blip3o_jax.train import distributed
from blip3o_jax.train import optimizer
from blip3o_jax.train import state as train_state

SHAPES = {"a/0/kernel": (4, 3), "a/1/kernel": (4, 3), "b/bias": (3,)}
RECORD = {"train": {}, "model": {}, "sources": []}


def _mesh():
  return distributed.make_mesh(distributed.Mesh(fsdp=1))


def _tx():
  return optimizer.make(
    optimizer.Optimizer(), 10, {p: ("rest",) * len(s) for p, s in SHAPES.items()}
  )


def _abstract(shapes=None, ema=False):
  place = sharding.replicated(_mesh())
  leaves = {
    p: jax.ShapeDtypeStruct(s, jnp.float32, sharding=place) for p, s in (shapes or SHAPES).items()
  }
  part = train_state.Partition(None, leaves, {}, {}, frozenset())
  return train_state.abstract_state(part, _tx(), _mesh(), ema=ema)


def _state(step=0, ema=False, seed=0):
  r = np.random.default_rng(seed)
  params = trees.unflatten(
    {p: jnp.asarray(r.normal(size=s), jnp.float32) for p, s in SHAPES.items()}
  )
  state = train_state.start(_abstract(ema=ema), _tx(), params, _mesh())
  return state.replace(step=train_state.scalar(step, _mesh()))


def _save(workdir, *states, **options):
  with checkpoint.Writer(workdir, checkpoint.Checkpoint(**options), RECORD) as writer:
    for state in states:
      writer.save(state)
    writer.wait()


def _equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_state_comes_back_bit_for_bit(tmp_path):
  state = _state(3, ema=True)
  _save(tmp_path, state)
  found = checkpoint.restore_state(tmp_path, 3, _abstract(ema=True), _mesh())
  assert jax.tree.structure(found) == jax.tree.structure(state)
  _equal(found, state)
  record = checkpoint.read_record(tmp_path)
  assert (record["step"], record["format_version"]) == (3, 1)
  data = json.loads((tmp_path / "checkpoints/3/data/metadata").read_text())
  assert data == {"position": 3}


def test_a_resume_says_nothing_that_reads_like_damage(tmp_path, caplog):
  """The checkpoint library missed a file of each item that is not written there."""
  _save(tmp_path, _state(3, ema=True))
  caplog.clear()
  checkpoint.restore_state(tmp_path, 3, _abstract(ema=True), _mesh())
  place = sharding.replicated(_mesh())
  leaves = {p: jax.ShapeDtypeStruct(s, jnp.float32, sharding=place) for p, s in SHAPES.items()}
  checkpoint.restore_params(tmp_path, leaves, item="ema")
  _save(tmp_path, _state(4, ema=True))
  said = [r.getMessage() for r in caplog.records if r.levelname in ("WARNING", "ERROR")]
  assert not [line for line in said if "etadata" in line]


def test_params_alone_in_part_and_in_another_dtype(tmp_path):
  state = _state(3, ema=True)
  state = state.replace(ema=jax.tree.map(lambda x: x + 1, state.params))
  _save(tmp_path, state)
  place = sharding.replicated(_mesh())
  wanted = {
    "a/1/kernel": jax.ShapeDtypeStruct((4, 3), jnp.bfloat16, sharding=place),
    "other/kernel": jax.ShapeDtypeStruct((4, 3), jnp.float32, sharding=place),
  }
  found = checkpoint.restore_params(tmp_path, wanted)
  assert set(found) == {"a/1/kernel"}
  np.testing.assert_array_equal(
    found["a/1/kernel"], state.params["a"][1]["kernel"].astype(jnp.bfloat16)
  )
  mean = checkpoint.restore_params(tmp_path, wanted, item="ema")
  np.testing.assert_array_equal(
    mean["a/1/kernel"], state.ema["a"][1]["kernel"].astype(jnp.bfloat16)
  )
  assert checkpoint.held(tmp_path) == set(SHAPES)


def test_only_the_latest_stay_and_the_periodic(tmp_path):
  _save(tmp_path, *[_state(s) for s in (1, 2, 3, 4, 5)], keep=2, keep_every=2)
  assert checkpoint.steps(tmp_path) == [2, 4, 5]


def test_missing_checkpoints(tmp_path):
  assert checkpoint.steps(tmp_path) == []
  with pytest.raises(FileNotFoundError, match="holds no complete checkpoint"):
    checkpoint.read_record(tmp_path)
  _save(tmp_path, _state(3))
  with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 4, only of \[3\]"):
    checkpoint.read_record(tmp_path, 4)
  with pytest.raises(
    FileNotFoundError, match="has no item 'ema'; it holds data, opt, params, step"
  ):
    checkpoint.restore_params(tmp_path, {}, item="ema")


def test_newer_format_is_refused_by_name(tmp_path):
  _save(tmp_path, _state(3))
  file = tmp_path / "checkpoints/3/step/metadata"
  file.write_text(json.dumps(json.loads(file.read_text()) | {"format_version": 2}))
  with pytest.raises(ValueError, match="format_version 2 is newer than 1"):
    checkpoint.restore_state(tmp_path, 3, _abstract(), _mesh())
  with pytest.raises(ValueError, match="format_version 2 is newer than 1"):
    checkpoint.restore_params(tmp_path, {})


def test_differences_are_listed_before_anything_is_read(tmp_path, capfd):
  _save(tmp_path, _state(3))
  other = {"a/0/kernel": (4, 3), "a/1/kernel": (4, 5), "c/bias": (3,)}
  with pytest.raises(ValueError, match="does not fit") as found:
    checkpoint.restore_state(tmp_path, 3, _abstract(other), _mesh())
  text = str(found.value)
  assert "params: shape of a/1/kernel: expected (4, 5), found (4, 3)" in text
  assert "params: missing c/bias" in text
  assert "params: unexpected b/bias" in text
  assert len(text.splitlines()) < 20
  with pytest.raises(ValueError, match="ema: missing a/0/kernel"):
    checkpoint.restore_state(tmp_path, 3, _abstract(ema=True), _mesh())
  wanted = {
    "b/bias": jax.ShapeDtypeStruct((4,), jnp.float32, sharding=sharding.replicated(_mesh()))
  }
  with pytest.raises(ValueError, match=r"shape of b/bias: expected \(4,\), found \(3,\)"):
    checkpoint.restore_params(tmp_path, wanted)
  assert len(capfd.readouterr().err.splitlines()) < 50


@pytest.mark.parametrize("what", ["array", "metadata", "item", "record"])
def test_damaged_checkpoint(tmp_path, what):
  _save(tmp_path, _state(2), _state(3))
  path = tmp_path / "checkpoints/3"
  if what == "array":
    for file in (path / "params").rglob("d/*"):
      file.write_bytes(file.read_bytes()[:20])
  elif what == "metadata":
    (path / "params/_METADATA").write_text("{")
  elif what == "item":
    shutil.rmtree(path / "params")
  else:
    (path / "step/metadata").unlink()
  with pytest.raises(ValueError, match=r"checkpoints/3") as found:
    checkpoint.restore_state(tmp_path, 3, _abstract(), _mesh())
  assert "move it out of" in str(found.value)
  checkpoint.restore_state(tmp_path, 2, _abstract(), _mesh())


SAVER = """
import sys
import jax.numpy as jnp
import test_checkpoint as t
from blip3o_jax.train import checkpoint

writer = checkpoint.Writer(sys.argv[1], checkpoint.Checkpoint(), t.RECORD)
small = t._state(1)
writer.save(small)
writer.wait()
print("first", flush=True)
big = {"a": {i: jnp.full((1024, 1024), 1.0 + i) for i in range(64)}}
writer.save(small.replace(step=t.train_state.scalar(2, t._mesh()), params=big))
print("second", flush=True)
writer.wait()
print("done", flush=True)
"""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_flipped_bit_is_noticed_or_changes_nothing(tmp_path):
  """76 bits anywhere in the files, one at a time; of the size nothing changes."""
  state, rng = _state(3, ema=True), np.random.default_rng(76)
  _save(tmp_path, state)
  record, position = checkpoint.read_record(tmp_path), checkpoint.read_position(tmp_path)
  files = sorted(p for p in (tmp_path / "checkpoints" / "3").rglob("*") if p.is_file())
  sizes = np.asarray([p.stat().st_size for p in files])
  said = []
  for place in rng.integers(8 * sizes.sum(), size=76):
    index = int(np.searchsorted(np.cumsum(8 * sizes), place, "right"))
    whole = files[index].read_bytes()
    at = int(place - 8 * sizes[:index].sum())
    changed = bytearray(whole)
    changed[at // 8] ^= 1 << at % 8
    files[index].write_bytes(changed)
    try:
      assert checkpoint.read_record(tmp_path) == record
      assert checkpoint.read_position(tmp_path) == position
      _equal(checkpoint.restore_state(tmp_path, 3, _abstract(ema=True), _mesh()), state)
    except ValueError as error:
      said.append(str(error))
    files[index].write_bytes(whole)
  # 49 when this was written; the rest lie where nothing reads.
  assert len(said) > 38
  path = str(tmp_path / "checkpoints" / "3")
  assert [x for x in said if path not in x] == []
  assert [x for x in said if "is damaged" not in x and "format_version" not in x] == []


def test_kill_during_a_save_leaves_the_last_good_one(tmp_path):
  root = pathlib.Path(__file__).parents[3]
  env = os.environ | {"PYTHONPATH": f"{root}:{pathlib.Path(__file__).parent}"}
  process = subprocess.Popen(
    [sys.executable, "-c", textwrap.dedent(SAVER), str(tmp_path)], env=env, stdout=subprocess.PIPE
  )
  assert process.stdout is not None
  assert process.stdout.readline() == b"first\n"
  folder = tmp_path / "checkpoints"
  end = time.monotonic() + 60
  while not any(p.name.startswith("2") for p in folder.iterdir()) and time.monotonic() < end:
    time.sleep(0.001)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert b"done" not in process.stdout.read()
  assert any(p.name.startswith("2") for p in folder.iterdir())
  assert checkpoint.steps(tmp_path) == [1]
  found = checkpoint.restore_state(tmp_path, 1, _abstract(), _mesh())
  _equal(found, _state(1))
  _save(tmp_path, _state(2))
  assert checkpoint.steps(tmp_path) == [1, 2]
  assert sorted(p.name for p in folder.iterdir()) == ["1", "2"]
