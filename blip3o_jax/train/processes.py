"""The processes of a run: which one this is, how all of them join, and how long each waits."""

import atexit
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import dataclasses
import functools
import hashlib
import os
from pathlib import Path
import platform
import sys
import warnings

from absl import logging
import jax

import blip3o_jax
from blip3o_jax import files
from blip3o_jax.train import meeting
from blip3o_jax.train import starts
from blip3o_jax.train.meeting import Place

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
DEVICES = "JAX_LOCAL_DEVICE_IDS"
AFTER = 60  # seconds after ours, when JAX's own watch may end a process, by abort


@dataclasses.dataclass(frozen=True)
class Distributed:
  """Bounds of what the processes of a run wait for.

  Attributes:
    processes: how many there must be; 0 takes what the command or the cluster says.
    join_seconds: how long process 0 waits for all others to start, and they for it.
    silent_seconds: without a sign of life after which a process is taken for gone.
    leave_seconds: how long a process that is done waits for the others to be done.
  """

  processes: int = 0
  join_seconds: int = 600
  silent_seconds: int = 100
  leave_seconds: int = 300

  def __post_init__(self) -> None:
    for name, least in (
      ("processes", 0),
      ("join_seconds", 1),
      ("silent_seconds", 2),
      ("leave_seconds", 1),
    ):
      if getattr(self, name) < least:
        raise ValueError(f"distributed.{name} {getattr(self, name)}: expected at least {least}")


def find(
  coordinator: str, processes: int, process: int, cfg: Distributed, environment: Mapping[str, str]
) -> Place | None:
  """Which process this is; None for the only one.

  Args:
    coordinator: "host:port" of process 0; "auto" asks the cluster (TPU VM and GKE by metadata,
      SLURM, Open MPI, Kubernetes with its Python package); "" takes the environment's.
    processes, process: how many, and which one this is; 0 and -1 where they are not given. With
      "auto" the first is what the cluster must say.

  Raises:
    ValueError: what is given does not say who this is; not as many as expected.
    Missing: the cluster's process 0 has no address in time.
  """
  place: Place | None
  if coordinator == "auto":
    place = found = _ask_cluster(cfg)
    _expect(found.processes, processes, "--processes")
  else:
    place = _given(coordinator, processes, process, environment)
  count = place.processes if place else 1
  _expect(count, cfg.processes, "config.distributed.processes")
  if place is None:
    _warn_of_many(environment)
  return place if count > 1 else None


def facts(lines: Mapping[str, str], workdir: str) -> dict[str, str]:
  """What must be equal in all processes: {name: value}.

  Args:
    lines: the fields of the config.
  """
  out = dict(lines)
  out["--workdir"] = workdir
  out["version of blip3o_jax"] = blip3o_jax.__version__
  out["source of blip3o_jax"] = source()
  out["python"] = platform.python_version()
  return out | {f"package {name}": version for name, version in starts.packages().items()}


@functools.cache
def source() -> str:
  """A hash of the Python files of this package."""
  root = Path(blip3o_jax.__file__).parent
  total = hashlib.sha256()
  for path in sorted(root.rglob("*.py")):
    total.update(path.relative_to(root).as_posix().encode() + b"\0")
    total.update(path.read_bytes() + b"\0")
  return total.hexdigest()[:16]


@contextlib.contextmanager
def joined(place: Place | None, told: Mapping[str, str], cfg: Distributed) -> Iterator[None]:
  """Joins the processes of a run, and leaves them; enter before anything asks for devices.

  Inside, a partner that is gone ends this process with exit code `meeting.GONE` and one line.

  Args:
    place: this process; None is the only one, and nothing happens.
    told: what must be equal in all, see `facts`.

  Raises:
    meeting.Missing: who did not come. ValueError: what differs. OSError: no port to wait at.
  """
  if place is None:
    yield
    return
  # Only the CPU backend reads this; its default cannot talk between processes.
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  partners = meeting.meet(place, told, cfg.join_seconds, cfg.silent_seconds)
  try:
    jax.distributed.initialize(
      place.address,
      place.processes,
      place.process,
      local_device_ids=place.devices or None,
      cluster_detection_method="deactivate",
      initialization_timeout=cfg.join_seconds,
      heartbeat_timeout_seconds=cfg.silent_seconds + AFTER,
      shutdown_timeout_seconds=cfg.leave_seconds,
    )
    _check_joined(place)
    yield
  except BaseException as error:
    status = 130 if isinstance(error, KeyboardInterrupt) else 1
    status = os.EX_TEMPFAIL if isinstance(error, files.Unreachable) else status
    if isinstance(error, SystemExit):
      status = error.code if isinstance(error.code, int) else status
    partners.stop(status, f"{type(error).__name__}: {' '.join(str(error).split())}")
    # JAX's own way out waits for processes that do not come, and then aborts.
    atexit.register(_leave, status)
    raise
  partners.finish()


def _given(
  coordinator: str, processes: int, process: int, environment: Mapping[str, str]
) -> Place | None:
  """What the command says, and for the rest the variables."""
  address = coordinator or environment.get(ADDRESS, "")
  if not address:
    if processes > 1 or process > 0:
      raise ValueError(
        f"--processes {processes} --process {process}: expected --coordinator=HOST:PORT (or "
        f"{ADDRESS}) with them"
      )
    return None
  count = processes or _number(environment, COUNT, 0)
  index = process if process >= 0 else _number(environment, INDEX, -1)
  if count < 1 or not 0 <= index < count:
    raise ValueError(
      f"coordinator {address!r}: needs --processes of at least 1 (or {COUNT}) and a --process "
      f"below it (or {INDEX}), found processes {count}, process {index}"
    )
  devices = environment.get(DEVICES, "")
  if devices and not all(each.strip().isdigit() for each in devices.split(",")):
    raise ValueError(f"{DEVICES} {devices!r}: expected numbers with commas between")
  ours = tuple(int(each) for each in devices.split(",")) if devices else ()
  place = Place(address, count, index, ours)
  _ = place.endpoint
  return place


def _number(environment: Mapping[str, str], name: str, absent: int) -> int:
  text = environment.get(name, "").strip()
  if text and not text.isdigit():
    raise ValueError(f"{name} {text!r}: expected a number")
  return int(text) if text else absent


def _ask_cluster(cfg: Distributed) -> Place:
  """What JAX finds out from the machine, by the code that `jax.distributed` itself would ask."""
  from jax._src.clusters import ClusterEnv  # no public name, and equal in both verified versions

  try:
    with warnings.catch_warnings(action="ignore"):  # of a Python package that is not here
      found = ClusterEnv.auto_detect_unset_distributed_params(
        os.environ.get(ADDRESS), None, None, None, None, cfg.join_seconds
      )
  except (RuntimeError, KeyError, OSError) as error:
    raise meeting.Missing(
      f"--coordinator=auto: {error} ({cfg.join_seconds} s, config.distributed.join_seconds)"
    ) from None
  address, count, index, devices = found
  if address is None or count is None or index is None:
    raise ValueError(
      "--coordinator=auto: no cluster found (looked for SLURM, Open MPI, Google Cloud's TPU VMs "
      f"and GKE, Kubernetes); give HOST:PORT with --processes and --process, or set {ADDRESS}, "
      f"{COUNT} and {INDEX}"
    )
  return Place(address, count, index, tuple(devices or ()))


def _expect(count: int, wanted: int, by: str) -> None:
  if wanted and count != wanted:
    raise ValueError(
      f"{by} {wanted}: {count} process{'es' if count > 1 else ''} found; start as many as it says, "
      "with --coordinator in each"
    )


def _warn_of_many(environment: Mapping[str, str]) -> None:
  """Says so where this looks like one of several processes that nobody joins."""
  tasks = environment.get("SLURM_NTASKS", "1") if "SLURM_PROCID" in environment else "1"
  hosts = environment.get("TPU_WORKER_HOSTNAMES", "").count(",") + 1
  slices = environment.get("MEGASCALE_NUM_SLICES", "1")
  if tasks != "1" or hosts > 1 or slices != "1":
    logging.warning(
      "this runs alone, but the machine looks like one of several (SLURM_NTASKS %s, "
      "TPU_WORKER_HOSTNAMES %d, MEGASCALE_NUM_SLICES %s): --coordinator=auto joins them",
      tasks,
      hosts,
      slices,
    )


def _check_joined(place: Place) -> None:
  """Raises ValueError for another number of processes; says whose devices are fewer."""
  if jax.process_count() != place.processes:
    raise ValueError(
      f"joined {jax.process_count()} processes at {place.address}, expected {place.processes}"
    )
  counts = [0] * place.processes
  for device in jax.devices():
    counts[device.process_index] += 1
  logging.info(
    "process %d of %d at %s, %d devices in all",
    place.process,
    place.processes,
    place.address,
    sum(counts),
  )
  if few := [i for i, count in enumerate(counts) if count < max(counts)]:
    found = ", ".join(f"process {i} has {counts[i]}" for i in few)
    logging.warning("%s devices, the others %d", found, max(counts))


def _leave(status: int) -> None:
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError):
      stream.flush()
  os._exit(status)
