"""The shipped miniature where memory is short: on the host, in int8, in tiles."""

from flax import nnx
import jax
import numpy as np
import pytest

import blip3o_jax
from blip3o_jax import trees
from blip3o_jax.data import shapes
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
def test_a_picture_in_tiles_is_nearly_the_same():
  """Of a picture four times as wide as those that the autoencoder was trained on."""
  seen = shapes.render_many([shapes.scene_at(0, i, "test") for i in range(16)])
  picture = np.asarray(seen).reshape(4, 4, 64, 64, 3).swapaxes(1, 2).reshape(1, 256, 256, 3)
  decoder = nnx.merge(*_parts(blip3o_jax.load())).autoencoder
  signed = picture.astype(np.float32) / 127.5 - 1
  latents = _run(lambda module: module.latents(signed), decoder)
  found = []
  for cells in (0, 16):
    decoder.tile = cells
    found.append(_run(lambda module: module.pixels(latents), decoder))
  whole, cut = (np.round(255 * np.asarray(x)) for x in found)
  off = np.abs(whole - cut)
  print("latents", latents.shape, "levels", off.mean(), off.max(), "share > 8", np.mean(off > 8))
  assert 0 < off.mean() < 4


def _parts(model):
  network = model._own.decoder
  return network.graphdef, network.params


def _run(fn, module):
  graphdef, state = nnx.split(module)
  return jax.jit(lambda state: fn(nnx.merge(graphdef, state)))(state)
