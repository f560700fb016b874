"""How a small network runs on a CPU: a share of the rows on each core, its layers one by one.

XLA computes a small network's products and convolutions on hardly more than one core; two programs
of half the rows, in two threads, use two. A share is computed by the program of its own number of
rows, so a batch of eight on two cores needs the programs of four. The two rows that guidance makes
of one picture meet at every step, so they are one program on two devices, for which `ask` asks.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from concurrent import futures
import contextlib
import functools
import os
import threading
from typing import Any
from typing import TypeVar

from flax import nnx
import jax
import numpy as np

from blip3o_jax import sharding
from blip3o_jax import stacks
from blip3o_jax.systems.parts.network import SMALL
from blip3o_jax.systems.parts.network import Network
from blip3o_jax.systems.parts.network import on_host

T = TypeVar("T")


def count() -> int:
  """Cores that this process may use."""
  affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
  return len(affinity(0)) if affinity else os.cpu_count() or 1


def ask() -> None:
  """Asks JAX for two devices on this CPU, where it has not started and nobody has said how many.

  Whatever names no device computes on the first of them as before.
  """
  said = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
  number: int = jax.config.jax_num_cpu_devices  # type: ignore[attr-defined]  # -1: not said
  if count() < 2 or said or number >= 0 or jax.distributed.is_initialized():
    return
  with contextlib.suppress(RuntimeError):  # it has started, with the devices that it has
    jax.config.update("jax_num_cpu_devices", 2)


def is_small(network: Network) -> bool:
  """Whether what is here pays, on this machine; never under a mesh, nor where parameters move."""
  return on_host() and network.home is None and network.nbytes <= SMALL


def ways(network: Network, rows: int) -> int:
  """In how many shares so many rows, a power of two, are computed: 1, or another power of two."""
  return 1 << (min(count(), rows).bit_length() - 1) if is_small(network) else 1


def apart(network: Network) -> Network:
  """A small network with its layers one by one (`stacks.apart`), kept with it; others as it is."""
  return network.once(_apart) if is_small(network) else network


class Halves:
  """The home of networks that compute half of their rows on each of two devices of this CPU.

  One program at a time: two whose halves met in another order would wait for each other.
  """

  def __init__(self) -> None:
    self.mesh = sharding.make_mesh(replica=2, fsdp=1, devices=jax.local_devices()[:2])
    self._lock = threading.Lock()

  @contextlib.contextmanager
  def around(self) -> Iterator[None]:
    """See `network.Home`."""
    with self._lock, jax.set_mesh(self.mesh):
      yield

  def ready(self, network: Network, args: T, used: Any) -> tuple[Network, T]:
    """See `network.Home`."""
    del used
    return network, self.left(args)

  def left(self, result: T) -> T:
    """See `network.Home`: on the host, from where programs of one device and of two take it."""
    return jax.device_get(result)  # type: ignore[no-any-return]


_halves = functools.cache(Halves)


def halved(network: Network, name: str, rows: int, *, guided: bool) -> Network:
  """A small network whose module of that name computes one picture's guidance on two devices.

  The network as it is where there are more pictures, each of which is work for a core, or where
  there is no guidance, or no second device.
  """
  if rows > 1 or not guided or not is_small(network):
    return network
  if count() < 2 or len(jax.local_devices()) < 2:
    return network
  return network.once(_halved, name)


def _halved(network: Network, name: str) -> Network:
  home = _halves()
  everywhere = jax.sharding.NamedSharding(home.mesh, jax.sharding.PartitionSpec())
  own = jax.device_put(network.params[name], everywhere)
  return network.with_params({**network.params, name: own}, home)


def part(network: Network, name: str) -> Network:
  """The network of one module, kept with it; the whole where parameters move, for that needs it.

  A program takes as long to start as it has parameters: with those of a UNet, for a small picture,
  a tenth of the time that its autoencoder takes.
  """
  if network.home is not None:
    return network
  return network.once(_part, name)


def _part(network: Network, name: str) -> Network:
  return Network.of(getattr(network.module(), name))


def _apart(network: Network) -> Network:
  module = nnx.merge(network.graphdef, network.params)
  stacks.apart(module)
  return Network.of(module)


def shares(rows: Any, number: int) -> list[Any]:
  """A pytree of arrays cut into so many along their first axis; a single row is in each of them."""
  if number == 1:
    return [rows]

  def cut(x: Any, i: int) -> Any:
    size = len(x) // number
    return x if len(x) == 1 else x[i * size : (i + 1) * size]

  return [jax.tree.map(lambda x, i=i: cut(x, i), rows) for i in range(number)]


def each(fn: Callable[..., T], *given: Sequence[Any]) -> list[T]:
  """`[fn(*of_share) for of_share in zip(*given)]`, the first here, each other in a thread.

  Raises:
    Whatever `fn` raises, when all have ended.
  """
  first, *others = zip(*given, strict=True)
  if not others:
    return [fn(*first)]
  with futures.ThreadPoolExecutor(len(others)) as pool:
    waiting = [pool.submit(_done, fn, each) for each in others]
    return [_done(fn, first), *(future.result() for future in waiting)]


def _done(fn: Callable[..., T], given: Sequence[Any]) -> T:
  """What `fn` gives, computed: a program that has only begun would wait for its turn elsewhere."""
  return jax.block_until_ready(fn(*given))  # type: ignore[no-any-return]


def joined(parts: Sequence[Any]) -> Any:
  """Shares of an array put together again; on the host unless there is just one."""
  return parts[0] if len(parts) == 1 else np.concatenate([np.asarray(part) for part in parts])
