"""Processes, the mesh of a run, and batches on it. Knows no system and no data format."""

from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import queue
import threading
from typing import Any
from typing import Protocol

import jax
import numpy as np

from blip3o_jax import sharding

HostBatch = Mapping[str, np.ndarray]


class Data(Protocol):
  """Batches by step. `batch_at` depends on the step alone, so the step is the data's position."""

  def batch_at(self, step: int) -> HostBatch:
    """This process's rows of the global batch of `step`, each array [rows, ...] or a scalar."""


@dataclasses.dataclass(frozen=True)
class Mesh:
  """Ways over which the devices are laid out; the product is the number of devices.

  Attributes:
    replica: copies of the parameters. fsdp: ways parameters and batch are split; 0 fills the
      devices that the others leave. tensor: ways heads and MLP are split.
  """

  replica: int = 1
  fsdp: int = 0
  tensor: int = 1

  def __post_init__(self) -> None:
    for name, least in (("replica", 1), ("fsdp", 0), ("tensor", 1)):
      if getattr(self, name) < least:
        raise ValueError(f"mesh.{name} {getattr(self, name)}: expected at least {least}")


def initialize(address: str = "", processes: int = 0, index: int = -1) -> None:
  """Joins this process to a run of several; call before anything asks for devices.

  Args:
    address: "host:port" of process 0; "auto" lets JAX ask the cluster (TPU pods, Slurm); "" is a
      run of one process, and nothing happens.
    processes, index: how many, and which one this is; not with "auto".

  Raises:
    ValueError: an address without `processes` and `index`.
  """
  if not address:
    return
  # Only the CPU backend reads this; its default cannot talk between processes.
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  if address == "auto":
    jax.distributed.initialize()
  elif processes < 1 or not 0 <= index < processes:
    raise ValueError(
      f"distributed: address {address!r} needs processes >= 1 and an index below it, got "
      f"processes {processes}, index {index}"
    )
  else:
    jax.distributed.initialize(address, processes, index)


def make_mesh(cfg: Mesh) -> jax.sharding.Mesh:
  """The mesh of `cfg` over all devices.

  Raises:
    ValueError: the product is not the number of devices.
  """
  return sharding.make_mesh(replica=cfg.replica, fsdp=cfg.fsdp, tensor=cfg.tensor)


def check_batch(mesh: jax.sharding.Mesh, batch: int, accumulate: int = 1) -> None:
  """Raises ValueError unless each device gets whole samples in each micro-batch."""
  ways = sharding.ways(mesh, sharding.RULES["batch"])
  if batch % (ways * accumulate):
    raise ValueError(
      f"batch {batch} is not divisible by mesh.replica x mesh.fsdp x accumulate = "
      f"{mesh.shape['replica']} x {mesh.shape['fsdp']} x {accumulate}"
    )


def local_rows(mesh: jax.sharding.Mesh, batch: int) -> range:
  """The rows of a global batch that this process has to supply.

  The same sample stands in the same global row whatever the number of processes.

  Raises:
    ValueError: a mesh that gives this process rows with gaps.
  """
  placed = sharding.batch_sharding(mesh).addressable_devices_indices_map((batch,))
  slices = {at[0].indices(batch) for at in placed.values() if at is not None}
  rows = sorted({i for bounds in slices for i in range(*bounds)})
  if rows != list(range(rows[0], rows[-1] + 1)):
    raise ValueError(f"mesh {dict(mesh.shape)}: the rows of this process have gaps: {rows[:20]}")
  return range(rows[0], rows[-1] + 1)


def put(batch: HostBatch, mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
  """Global arrays from this process's rows; rows lie over replica and fsdp, scalars everywhere.

  Raises:
    ValueError: an array whose rows the mesh does not divide, by name.
  """
  split, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
  ways = sharding.ways(mesh, sharding.RULES["batch"])
  mine = max(1, ways // jax.process_count())
  out = {}
  for name, value in batch.items():
    value = np.asarray(value)
    if value.ndim and value.shape[0] % mine:
      raise ValueError(f"batch {name}: {value.shape[0]} rows do not divide into {mine} devices")
    out[name] = jax.make_array_from_process_local_data(split if value.ndim else whole, value)
  return out


class Prefetch:
  """Iterates (step, batch on device), made in order by one background thread `depth` ahead.

  Iteration raises whatever the thread raised. `close` ends the thread; it is a context manager.
  """

  def __init__(self, data: Data, mesh: jax.sharding.Mesh, start: int, stop: int, depth: int = 2):
    self._queue: queue.Queue[Any] = queue.Queue(depth)
    self._stop = threading.Event()
    args = (data, mesh, range(start, stop))
    self._thread = threading.Thread(target=self._work, args=args, daemon=True, name="prefetch")
    self._thread.start()

  def __iter__(self) -> Iterator[tuple[int, dict[str, jax.Array]]]:
    while (item := self._queue.get()) is not None:
      if isinstance(item, Exception):
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

  def _work(self, data: Data, mesh: jax.sharding.Mesh, steps: range) -> None:
    try:
      for step in steps:
        if self._stop.is_set():
          return
        self._offer((step, put(data.batch_at(step), mesh)))
      self._offer(None)
    except Exception as error:
      self._offer(error)

  def _offer(self, item: Any) -> None:
    while not self._stop.is_set():
      try:
        return self._queue.put(item, timeout=0.1)
      except queue.Full:
        continue
