"""What was compiled for a plan once is not compiled again, unless something differs."""

import jax
import jax.numpy as jnp
import pytest

from blip3o_jax.plan import stored


@pytest.fixture
def kept(monkeypatch, tmp_path):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  return tmp_path / "blip3o_jax" / "plans"


def lowered(size: int):
  return jax.jit(lambda x: jnp.tanh(x @ x)).lower(jnp.zeros((size, size)))


def test_the_second_time_is_read(kept):
  first = stored.compiled(lowered(4), "v5e:2x2", {})
  second = stored.compiled(lowered(4), "v5e:2x2", {})
  assert first.made == ""
  assert second.made.endswith("UTC")
  assert (second.text, second.memory, second.seconds) == (first.text, first.memory, first.seconds)
  assert first.memory["argument"] == 64
  for other in (
    stored.compiled(lowered(5), "v5e:2x2", {}),
    stored.compiled(lowered(4), "v5e:2x4", {}),
    stored.compiled(lowered(4), "v5e:2x2", {"xla_cpu_enable_fast_math": True}),
    stored.compiled(lowered(4), "v5e:2x2", {}, again=True),
  ):
    assert other.made == ""


def test_another_version_compiles_again(kept, monkeypatch):
  stored.compiled(lowered(4), "v5e:2x2", {})
  monkeypatch.setattr(stored, "versions", lambda: {"jax": "1.0"})
  assert stored.compiled(lowered(4), "v5e:2x2", {}).made == ""


def test_this_machine_keeps_nothing(kept):
  stored.compiled(lowered(4), "here", {})
  assert not kept.exists()


def test_a_damaged_file_is_compiled_anew(kept):
  stored.compiled(lowered(4), "v5e:2x2", {})
  (path,) = kept.iterdir()
  data = path.read_bytes()
  for damaged in (data[:-20], b"", data[:40] + b"\0\0\0\0" + data[44:]):
    path.write_bytes(damaged)
    assert stored.compiled(lowered(4), "v5e:2x2", {}).made == ""
  assert stored.compiled(lowered(4), "v5e:2x2", {}).made


def test_the_least_used_go(kept, monkeypatch):
  monkeypatch.setattr(stored, "KEPT", 2)
  for size in (2, 3, 4):
    stored.compiled(lowered(size), "v5e:2x2", {})
  assert len(list(kept.iterdir())) == 2
  assert stored.compiled(lowered(4), "v5e:2x2", {}).made
