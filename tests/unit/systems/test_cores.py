import os
import subprocess
import sys
import threading
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip3o_jax import layers
from blip3o_jax.systems.parts import cores
from blip3o_jax.systems.parts import network as networks
from blip3o_jax.systems.parts.network import Network


class Module(nnx.Module):
  def __init__(self, rngs: nnx.Rngs):
    self.layers = layers.stack(lambda r: layers.linear(4, 4, ("embed", "mlp"), rngs=r), 2, rngs)
    self.head = layers.linear(4, 3, ("embed", "mlp"), rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.head(layers.scan(self.layers, x, lambda layer, x: (layer(x), None))[0])


@pytest.fixture
def network() -> Network:
  return Network.of(Module(nnx.Rngs(0)))


@pytest.mark.parametrize(
  ("rows", "available", "wanted"), [(1, 8, 1), (2, 8, 2), (8, 2, 2), (8, 3, 2), (8, 1, 1)]
)
def test_shares_are_powers_of_two(
  network: Network, monkeypatch: pytest.MonkeyPatch, rows: int, available: int, wanted: int
) -> None:
  monkeypatch.setattr(cores, "count", lambda: available)
  assert cores.ways(network, rows) == wanted


def test_large_networks_and_those_that_move_run_as_they_are(
  network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(cores, "count", lambda: 8)
  moved = network.with_params(network.params, home=object())  # type: ignore[arg-type]
  assert cores.apart(moved) is moved
  assert cores.part(moved, "head") is moved
  assert cores.ways(moved, 4) == 1
  assert network.nbytes == 4 * (2 * 4 * 4 + 2 * 4 + 4 * 3 + 3)
  monkeypatch.setattr(cores, "SMALL", network.nbytes - 1)
  assert cores.apart(network) is network
  assert cores.ways(network, 4) == 1
  monkeypatch.setattr(cores, "SMALL", network.nbytes)
  assert cores.ways(network, 4) == 4
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert cores.ways(network, 4) == 1


ASKED = """
import sys
from blip3o_jax.systems.parts import cores
from blip3o_jax.systems.parts import network as networks
cores.count = lambda: int(sys.argv[1])
import jax
if sys.argv[2] == "started":
  jax.devices()
cores.ask()
print(len(jax.devices()))
"""


@pytest.mark.parametrize(
  ("cores_here", "state", "variables", "wanted"),
  [
    (8, "new", {}, 2),
    (1, "new", {}, 1),
    (8, "started", {}, 1),
    (8, "new", {"JAX_NUM_CPU_DEVICES": "1"}, 1),
    (8, "new", {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}, 4),
  ],
)
def test_devices_are_asked_for_where_nobody_has_said(
  cores_here: int, state: str, variables: dict[str, str], wanted: int
) -> None:
  words = [sys.executable, "-c", ASKED, str(cores_here), state]
  done = subprocess.run(
    words, env={**os.environ, **variables}, capture_output=True, text=True, check=False
  )
  assert done.stdout.split() == [str(wanted)], done.stderr


def test_layers_apart_and_one_module_are_kept_and_give_the_same(network: Network) -> None:
  x = jnp.arange(8.0).reshape(2, 4)
  apart, head = cores.apart(network), cores.part(network, "head")
  assert cores.apart(network) is apart
  assert cores.part(network, "head") is head
  assert len(jax.tree.leaves(apart.params)) == 2 + len(jax.tree.leaves(network.params))
  np.testing.assert_allclose(apart.module()(x), network.module()(x), rtol=1e-6)
  np.testing.assert_array_equal(head.module()(x), network.module().head(x))


def test_each_share_is_computed_in_its_thread() -> None:
  rows = {"x": np.arange(8).reshape(4, 2), "none": None, "one": np.ones((1, 3))}
  parts = cores.shares(rows, 2)
  np.testing.assert_array_equal(parts[1]["x"], [[4, 5], [6, 7]])
  assert [each["one"].shape for each in parts] == [(1, 3)] * 2
  assert cores.shares(rows, 1)[0] is rows
  met, before = threading.Barrier(2), threading.active_count()

  def double(part: dict[str, Any], by: int) -> jax.Array:
    met.wait(20)  # ends only where both are there
    return jnp.asarray(part["x"]) * by

  found = cores.joined(cores.each(double, parts, [2, 3]))
  np.testing.assert_array_equal(found, [[0, 2], [4, 6], [12, 15], [18, 21]])
  assert threading.active_count() == before


@pytest.mark.parametrize("place", [0, 1])
def test_what_a_share_raises_is_raised(place: int) -> None:
  def fail(number: int) -> int:
    if number == place:
      raise ValueError(f"share {number}")
    return number

  with pytest.raises(ValueError, match=f"share {place}"):
    cores.each(fail, [0, 1])


def test_what_is_brief_is_not_optimized_for_a_small_network_on_a_cpu(
  network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
  double = networks.program(brief=True)(lambda network, x: network.module()(x) * 2)
  x = jnp.ones((1, 4))
  found = double(network, x)
  assert double._here(network) is not double._jit
  monkeypatch.setattr(networks, "SMALL", network.nbytes - 1)
  assert double._here(network) is double._jit
  np.testing.assert_allclose(double(network, x), found, rtol=1e-6)
  monkeypatch.setattr(networks, "SMALL", network.nbytes)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert double._here(network) is double._jit
