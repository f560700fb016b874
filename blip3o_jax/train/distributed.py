"""The mesh of a run, and batches on it. Knows no system and no data format."""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import queue
import threading
from typing import Any
from typing import Literal

import jax
from jax.experimental import multihost_utils
import numpy as np

from blip3o_jax import sharding

HostBatch = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Mesh:
  """Ways over which the devices are laid out; the product is the number of devices.

  Attributes:
    replica: copies of the parameters; of several TPU slices each holds whole ones, so that their
      number must divide it. fsdp: ways parameters and batch are split; 0 fills the devices that
      the others leave. tensor: ways heads and MLP are split.
    frozen: frozen leaves are "split" over fsdp, or "whole" on each device (but for tensor), so that
      they never cross the interconnect. "auto" is whole where a device has room for it.
    trained: trained leaves, which are always stored split, are gathered layer by layer ("split") or
      once a step ("whole"); "auto" likewise. See `train.placement`.
  """

  replica: int = 1
  fsdp: int = 0
  tensor: int = 1
  frozen: Literal["auto", "whole", "split"] = "auto"
  trained: Literal["auto", "whole", "split"] = "auto"

  def __post_init__(self) -> None:
    for name, least in (("replica", 1), ("fsdp", 0), ("tensor", 1)):
      if getattr(self, name) < least:
        raise ValueError(f"mesh.{name} {getattr(self, name)}: expected at least {least}")


def make_mesh(cfg: Mesh, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
  """The mesh of `cfg` over `devices`, by default all.

  Raises:
    ValueError: the product is not the number of devices, or a copy would lie in two slices.
  """
  return sharding.make_mesh(replica=cfg.replica, fsdp=cfg.fsdp, tensor=cfg.tensor, devices=devices)


def check_batch(mesh: jax.sharding.Mesh, batch: int, accumulate: int = 1) -> None:
  """Raises ValueError unless each device gets whole samples in each micro-batch."""
  ways = sharding.ways(mesh, sharding.RULES["batch"])
  if batch % (ways * accumulate):
    raise ValueError(
      f"batch {batch} is not divisible by mesh.replica x mesh.fsdp x accumulate = "
      f"{mesh.shape['replica']} x {mesh.shape['fsdp']} x {accumulate}"
    )


@functools.cache
def local_rows(mesh: jax.sharding.Mesh, batch: int) -> tuple[int, ...]:
  """The rows of a global batch that the devices of this process hold, ascending.

  Rows that several devices hold (over `tensor`) occur once; processes that share devices of one row
  have it both. A mesh may lay out devices so that there are gaps. What stands in a row of the
  global batch does not depend on who loads it, so any number of processes trains the same batches.
  """
  placed = sharding.batch_sharding(mesh).addressable_devices_indices_map((batch,))
  bounds = {at[0].indices(batch) for at in placed.values() if at is not None}
  return tuple(sorted({row for each in bounds for row in range(*each)}))


def put(batch: HostBatch, mesh: jax.sharding.Mesh, size: int) -> dict[str, jax.Array]:
  """Global arrays from this process's rows; rows lie over replica and fsdp, scalars everywhere.

  Args:
    batch: {name: array[rows, ...], the rows being `local_rows(mesh, size)`, or a scalar}.
    size: rows of the global batch.

  Raises:
    ValueError: an array that has not just these rows, by name.
  """
  rows = np.asarray(local_rows(mesh, size))
  split, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
  out: dict[str, jax.Array] = {}
  for name, value in batch.items():
    value = np.asarray(value)
    if value.ndim and len(value) != len(rows):
      raise ValueError(
        f"batch {name}: {len(value)} rows, but this process's devices hold {len(rows)} of the "
        f"{size} of the global batch"
      )
    # From a callback, which is told the rows of each device: nothing is inferred from the number
    # of processes, which with `tensor` across processes is not that of the batch's parts.
    if value.ndim:
      shape, place = (size, *value.shape[1:]), split
    else:
      shape, place = (), whole

    def shard(at: Any, value: np.ndarray = value) -> np.ndarray:
      if not value.ndim:
        return value
      first, last, _ = at[0].indices(size)
      start = int(np.searchsorted(rows, first))
      return value[(slice(start, start + last - first), *at[1:])]

    out[name] = jax.make_array_from_callback(shape, place, shard)
  return out


def agree(what: str, said: str) -> None:
  """Compares a text over the processes.

  Raises:
    ValueError: they differ; on all processes, with the numbers of those that say another than the
      first.
  """
  if jax.process_count() == 1:
    return
  digest = hashlib.blake2b(said.encode(), digest_size=32).digest()
  found = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
  if odd := [i for i, row in enumerate(found.tolist()) if row != found[0].tolist()]:
    raise ValueError(
      f"{what} of process {', '.join(map(str, odd))} is another than that of process 0: all must "
      "read the same files, in the same state"
    )


class Prefetch:
  """Iterates (step, batch on device), put there in order by one background thread, `depth` ahead.

  Iteration raises whatever the batches raised. `close` ends the thread; it is a context manager.

  Args:
    batches: (step, this process's rows). size: rows of the global batch.
  """

  def __init__(
    self,
    batches: Iterable[tuple[int, HostBatch]],
    mesh: jax.sharding.Mesh,
    size: int,
    depth: int = 2,
  ):
    self._queue: queue.Queue[Any] = queue.Queue(depth)
    self._stop = threading.Event()
    args = (batches, mesh, size)
    self._thread = threading.Thread(target=self._work, args=args, daemon=True, name="prefetch")
    self._thread.start()

  def __iter__(self) -> Iterator[tuple[int, dict[str, jax.Array]]]:
    while (item := self._queue.get()) is not None:
      if isinstance(item, BaseException):
        raise item
      yield item

  def __enter__(self) -> "Prefetch":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def close(self) -> None:
    """Ends the thread."""
    self._stop.set()
    self._thread.join()

  def _work(
    self, batches: Iterable[tuple[int, HostBatch]], mesh: jax.sharding.Mesh, size: int
  ) -> None:
    try:
      for step, batch in batches:
        if self._stop.is_set():
          return
        self._offer((step, put(batch, mesh, size)))
      self._offer(None)
    except BaseException as error:  # a panic of a library in Rust is no Exception
      self._offer(error)

  def _offer(self, item: Any) -> None:
    while not self._stop.is_set():
      try:
        return self._queue.put(item, timeout=0.1)
      except queue.Full:
        continue
