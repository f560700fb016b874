"""The shipped miniature where memory is short: on the host, in int8, in tiles."""

import jax
import numpy as np
import pytest

import blip3o_jax
from blip3o_jax import trees
from blip3o_jax.systems.parts import cores
from blip3o_jax.systems.parts import memory

PROMPTS = ["a red circle", "two blue squares"]
FEW = {"steps": 4, "pixel_steps": 3}
QUESTION = [{"role": "user", "content": "what colors are there?"}]


def held():
  """Bytes of live arrays in the memory of devices."""
  return sum(x.nbytes for x in jax.live_arrays() if x.sharding.memory_kind == "device")


@pytest.fixture
def stacked(monkeypatch):
  """On a CPU a small model runs by other programs, unless its parameters move: here by the same."""
  monkeypatch.setattr(cores, "SMALL", 0)


@pytest.mark.slow
def test_offloaded_it_draws_bit_for_bit_and_holds_one_module_at_a_time(stacked, monkeypatch):
  plain = blip3o_jax.load()
  wanted = plain.generate(PROMPTS, seed=3, **FEW)
  answer = plain.chat(QUESTION, length=12)
  features = plain.features([p.image for p in wanted])
  networks = (plain._own.system, plain._own.decoder)
  sizes = {
    name: sum(x.nbytes for x in trees.flatten(tree).values())
    for network in networks
    for name, tree in network.params.items()
  }
  del plain, networks
  before, seen = held(), []
  ready = memory.Shelf.ready

  def spied(shelf, *args):
    network = ready(shelf, *args)
    names = {name for _, name in shelf._held}
    # The parameters that lie on the device: those of the program's modules, and no other's.
    there = sum(x.nbytes for x in jax.tree.leaves(shelf._held))
    assert there == sum(sizes[name] for name in names)
    seen.append((frozenset(names), held() - before))
    return network

  monkeypatch.setattr(memory.Shelf, "ready", spied)
  model = blip3o_jax.load(offload=True)
  found = model.generate(PROMPTS, seed=3, **FEW)
  for one, other in zip(found, wanted, strict=True):
    np.testing.assert_array_equal(one.pixels, other.pixels)
  assert model.chat(QUESTION, length=12).text == answer.text
  np.testing.assert_array_equal(model.features([p.image for p in wanted]), features)
  read = {names for names, _ in seen}
  assert read == {
    frozenset(("backbone", "slots")),
    frozenset(("denoiser",)),
    frozenset(("unet",)),
    frozenset(("autoencoder",)),
    frozenset(("backbone",)),
    frozenset(("encoder",)),
  }
  # Beside the largest module there are no more than activations.
  assert max(size for _, size in seen) < max(sizes.values()) + 2**21
  assert max(size for _, size in seen) < 0.5 * sum(sizes.values())


@pytest.mark.slow
def test_in_int8_it_draws_nearly_the_same():
  """The errors are measured by tests/benchmarks/int8_use.py."""
  plain, small = blip3o_jax.load(), blip3o_jax.load(weights="int8")
  own = [model._own.features(PROMPTS, [1, 2], steps=8) for model in (plain, small)]
  error = np.linalg.norm(own[1] - own[0]) / np.linalg.norm(own[0])
  assert 1e-4 < error < 0.05
  for name in ("backbone", "denoiser"):
    sizes = [
      sum(x.nbytes for x in trees.flatten(model._own.system.params[name]).values())
      for model in (plain, small)
    ]
    assert sizes[1] < 0.35 * sizes[0]
  assert plain.chat(QUESTION, length=12).text == small.chat(QUESTION, length=12).text


@pytest.mark.slow
def test_in_tiles_it_draws_nearly_the_same():
  plain, cut = blip3o_jax.load(), blip3o_jax.load(tile=64)
  (wanted,), (found,) = (m.generate("a red circle", seed=3, pixel_steps=8) for m in (plain, cut))
  off = np.abs(wanted.pixels.astype(int) - found.pixels)
  print(wanted.pixels.shape, off.mean(), off.max())
  assert 0 < off.mean() < 5
