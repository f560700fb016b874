"""Parameters on the host, over a mesh, in int8: programs get what they read, and give the same."""

import threading

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import blip3o_jax
from blip3o_jax import layers
from blip3o_jax import quantized
from blip3o_jax import sharding
from blip3o_jax import trees
from blip3o_jax.systems.parts import memory
from blip3o_jax.systems.parts.network import Network
from blip3o_jax.systems.parts.network import program

SIZES = {"first": 48, "second": 64, "unread": 96}  # widths; nothing reads the last


class Block(nnx.Module):
  def __init__(self, dim, rngs):
    self.up = layers.linear(dim, dim, ("embed", "mlp"), rngs=rngs)

  def __call__(self, x):
    return x + jax.nn.silu(self.up(x))


class Part(nnx.Module):
  """A stack of blocks, and a linear layer beside it."""

  def __init__(self, dim, rngs):
    self.blocks = layers.stack(lambda r: Block(dim, r), 3, rngs)
    self.head = layers.linear(dim, 8, ("embed", "rest"), rngs=rngs)

  def __call__(self, x):
    x = jnp.broadcast_to(x[..., :1], (*x.shape[:-1], self.head.in_features))
    x, _ = layers.scan(self.blocks, x, lambda layer, x: (layer(x), ()))
    return self.head(x)


class Model(nnx.Module):
  def __init__(self, rngs):
    for name, dim in SIZES.items():
      setattr(self, name, Part(dim, rngs))


@program()
def first(network, x):
  return network.module().first(x)


@program(static_argnames="times")
def second(network, x, *, times):
  return network.module().second(x) * times


def model():
  return Network.of(Model(nnx.Rngs(0)))


def bytes_of(network, name):
  return sum(x.nbytes for x in trees.flatten(network.params[name]).values())


def housed(network, offload=True):
  """The network with its parameters on the host."""

  def away(x):
    return jax.device_put(np.asarray(x), sharding.on_host(None))

  return network.with_params(
    jax.tree.map(away, network.params), memory.Shelf(memory.Memory(offload=offload))
  )


def on_device():
  """Bytes of live arrays in the memory of devices."""
  return sum(x.nbytes for x in jax.live_arrays() if x.sharding.memory_kind == "device")


X = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)


def test_a_program_gives_the_same_and_only_what_it_reads_is_there():
  plain = model()
  wanted = [np.asarray(first(plain, X)), np.asarray(second(plain, X, times=2))]
  away = housed(plain)
  sizes = {name: bytes_of(plain, name) for name in SIZES}
  del plain
  before = on_device()
  for call, name, expected in (
    (lambda: first(away, X), "first", wanted[0]),
    (lambda: second(away, X, times=2), "second", wanted[1]),
    (lambda: first(away, X), "first", wanted[0]),
  ):
    found = np.array(call())  # a copy: the view would keep its array
    np.testing.assert_array_equal(found, expected)
    # All of one module, none of the others.
    assert on_device() - before == sizes[name]
  assert sizes["unread"] > sizes["second"] > sizes["first"] > 0


def test_a_program_that_runs_again_moves_nothing():
  away = housed(model())
  np.asarray(first(away, X))
  held = dict(away.home._held)
  np.asarray(first(away, X + 1))
  assert held.keys() == away.home._held.keys()
  for key, tree in held.items():
    assert tree is away.home._held[key]


def test_two_networks_share_a_shelf():
  shelf = memory.Shelf(memory.Memory(offload=True))
  one, two = (housed(model()) for _ in range(2))
  one.home = two.home = shelf
  np.asarray(first(one, X))
  np.asarray(second(two, X, times=1))
  assert [name for _, name in shelf._held] == ["second"]


def test_threads_do_not_disturb_each_other():
  plain = model()
  away, wrong = housed(plain), []
  wanted = {1: np.asarray(first(plain, X)), 2: np.asarray(second(plain, X, times=2))}

  def work(which):
    for _ in range(10):
      found = first(away, X) if which == 1 else second(away, X, times=2)
      if not np.array_equal(np.asarray(found), wanted[which]):
        wrong.append(which)

  threads = [threading.Thread(target=work, args=(which,)) for which in (1, 2, 1, 2)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not wrong


def test_what_a_program_reads_is_known_without_running_it():
  network = model()
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), network.params)
  assert first.used(network.with_params(shapes), [X], {}) == {"first"}
  assert second.used(network.with_params(shapes), [X], {"times": 3}) == {"second"}


def test_a_mesh_is_around_every_program():
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  home = memory.Shelf(memory.Memory(mesh=mesh))
  seen = []

  @program()
  def look(network, x):
    seen.append(jax.sharding.get_abstract_mesh().shape)
    return network.module().first(x)

  plain = model()
  np.testing.assert_array_equal(look(plain.with_params(plain.params, home), X), first(plain, X))
  assert dict(seen[0]) == {"replica": 1, "fsdp": 1, "tensor": 1}
  assert jax.sharding.get_abstract_mesh().empty


def test_blocks_in_int8_lose_little_and_the_rest_nothing():
  module = Model(nnx.Rngs(0))
  wanted = np.asarray(module.first(X))
  kernel = np.asarray(module.first.blocks.up.kernel[...])
  assert quantized.replace_blocks(module.first, nnx.Rngs(1)) == 1
  layer = module.first.blocks.up
  layer.kernel[...], layer.scale[...] = quantized.quantize(jnp.asarray(kernel))
  layer.bias[...] = Model(nnx.Rngs(0)).first.blocks.up.bias[...]
  assert layer.kernel.dtype == jnp.int8
  assert layer.kernel.get_metadata("axes") == ("layers", "embed", "mlp")
  found = np.asarray(module.first(X))
  error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
  assert 0 < error < 0.01
  assert isinstance(module.first.head, layers.Linear)


def test_int8_of_the_weights_alone_is_exact_for_what_int8_can_say():
  """Whole numbers times a power of two: a scale of 2 and activations that int8 could not hold."""
  made = quantized.Int8Linear(4, 2, ("embed", "mlp"), bias=False, rngs=nnx.Rngs(0))
  made.activations = False
  kernel = np.array([[1, -127], [2, 3], [-5, 0], [127, 9]], np.int8)
  made.kernel[...], made.scale[...] = jnp.asarray(kernel), jnp.asarray([2.0, 0.5])
  x = np.array([[1000.0, 0.001, -3.25, 7.0], [0.5, 300.0, 1.0, -2.0]], np.float32)
  wanted = (x @ kernel.astype(np.float32)) * np.array([2.0, 0.5], np.float32)
  np.testing.assert_allclose(made(x), wanted, rtol=1e-6)
  rounded = quantized.Int8Linear(4, 2, ("embed", "mlp"), bias=False, rngs=nnx.Rngs(0))
  rounded.kernel[...], rounded.scale[...] = made.kernel[...], made.scale[...]
  assert np.abs(rounded(x) - wanted).max() > 0.1  # those would be lost


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"tile": -1}, "tile -1: expected pixels"),
    ({"mesh": jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))}, "expected replica, fsdp"),
  ],
)
def test_a_memory_that_cannot_be(options, message):
  with pytest.raises(ValueError, match=message):
    memory.Memory(**options)


def test_a_mesh_in_words():
  count = jax.device_count()
  assert memory.mesh_of(f"tensor={count}").shape == {"replica": 1, "fsdp": 1, "tensor": count}
  with pytest.raises(ValueError, match=r"mesh fdsp=2: expected AXIS=N"):
    memory.mesh_of("fdsp=2")
  with pytest.raises(ValueError, match=r"mesh fsdp=3: .*= 3 does not equal"):
    memory.mesh_of("fsdp=3")


def test_a_call_that_cannot_be_met_is_refused_before_anything_is_read(tmp_path):
  with pytest.raises(ValueError, match="weights 'int4': expected 'float' or 'int8'"):
    blip3o_jax.load(tmp_path, weights="int4")  # type: ignore[arg-type]
  with pytest.raises(ValueError, match="mesh axis=2: expected AXIS=N"):
    blip3o_jax.load(tmp_path, mesh="axis=2")
