"""What a command settles before jax is imported: where compiled programs are kept, and no libtpu.

Both go through the variables of JAX, so they hold for the processes that a command starts, and what
is set already stays. Imports no jax.
"""

import atexit
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import MutableMapping
import contextlib
import gc
import hashlib
import os
from pathlib import Path
import platform
import re
import shutil
import sys
import tempfile
import time
from typing import Any
import warnings

BOUND = 2 * 2**30  # bytes of compiled programs; the least recently used ones go first
ROOM = 64 * 2**20  # free bytes, below which nothing is kept
OBJECTS = 20_000  # new ones after which garbage is looked for, where Python has 700
SECONDS = 0.1  # what compiles faster is not kept
OFF = "JAX_ENABLE_COMPILATION_CACHE"
# Set where a TPU is, or by whoever wants one.
TPU = (
  "JAX_FORCE_TPU_INIT",
  "TPU_ACCELERATOR_TYPE",
  "TPU_LIBRARY_PATH",
  "TPU_NAME",
  "TPU_WORKER_HOSTNAMES",
  "TPU_WORKER_ID",
)
_FAILED = re.compile(
  r"Error (reading|writing) persistent compilation cache entry for '(.+?)': (.*)"
)


def prepare(*, programs: bool = True) -> None:
  """Does both for this process; nothing once jax is imported, for its owner has settled it.

  Args:
    programs: whether compiled programs are kept.
  """
  if "jax" in sys.modules:
    return
  if not os.environ.get("JAX_PLATFORMS") and not may_have_tpu(os.environ):
    # JAX starts every libtpu that it can import, which then looks for its chips and complains.
    sys.modules.setdefault("libtpu", None)  # type: ignore[arg-type]  # "cannot be imported"
  if programs:
    _keep_programs(os.environ)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
  """Python looks for no garbage among what is imported within: not now, nor later, nor at the end.

  Its collector would go through the modules of JAX and Flax a dozen times while they are imported,
  again at the end of the process, and whenever a network is traced. It looks less often then, for
  tracing makes hundreds of thousands of objects that stay. Nothing once jax is imported, as in
  `prepare`.
  """
  if "jax" in sys.modules or not gc.isenabled():
    yield
    return
  gc.disable()
  try:
    yield
  finally:
    gc.freeze()
    gc.set_threshold(OBJECTS)
    gc.enable()
    atexit.register(gc.freeze)


def may_have_tpu(environment: Mapping[str, str], devices: Path = Path("/dev")) -> bool:
  """Whether this machine may have a TPU: its device files are there, or its variables."""
  if any(environment.get(name) for name in TPU):
    return True
  return any(any(devices.glob(kind)) for kind in ("accel[0-9]*", "vfio/[0-9]*"))


def folder_of_programs(environment: Mapping[str, str]) -> Path | None:
  """Where commands keep compiled programs by default; None where the environment decides.

  That is `$XDG_CACHE_HOME/blip3o_jax/programs` (`~/.cache` without it), and in it a folder for each
  kind of processor: a home may be shared by machines, and programs use all that a processor can.
  """
  switch = environment.get(OFF, "true").strip().lower()
  if "JAX_COMPILATION_CACHE_DIR" in environment or switch in ("false", "0", "no", "off", "n", "f"):
    return None
  return cache(environment) / "programs" / _processor()


def cache(environment: Mapping[str, str]) -> Path:
  """Where commands keep what they can make again: `$XDG_CACHE_HOME/blip3o_jax`."""
  named = Path(environment.get("XDG_CACHE_HOME", ""))
  home = named if named.is_absolute() else Path(os.path.expanduser("~")) / ".cache"
  return home / "blip3o_jax"


def _processor() -> str:
  """A name for what this processor can: its architecture, and a hash of its features."""
  try:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    lines = []
  features = next((x for x in lines if x.startswith(("flags", "Features"))), platform.processor())
  words = " ".join(sorted(features.split()))
  return f"{platform.machine()}-{hashlib.sha256(words.encode()).hexdigest()[:8]}"


def _keep_programs(environment: MutableMapping[str, str]) -> None:
  # In a folder that a person named as well: with JAX's own second, a whole `generate` keeps little.
  environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(SECONDS))
  folder = folder_of_programs(environment)
  if folder is None:
    return
  try:
    _open(folder)
  except OSError as error:
    _say(f"compiled programs are not kept: {folder}: {error.strerror or error}")
    return
  environment["JAX_COMPILATION_CACHE_DIR"] = str(folder)
  environment.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(BOUND))
  _mend_failures(folder)


def _open(folder: Path) -> None:
  """Makes the folder, and rids it of what killed processes left.

  Raises:
    OSError: it cannot be written, or the disk is full.
  """
  if not folder.is_dir():
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _say(
      f"compiled programs are kept in {folder}, at most {BOUND // 2**30} GiB; {OFF}=0 keeps none"
    )
  with tempfile.TemporaryFile(dir=folder) as file:
    file.write(b"1")
  free = shutil.disk_usage(folder).free
  if free < ROOM:
    raise OSError(f"{free // 2**20} MiB free")
  for program in folder.glob("*-cache"):  # complete ones have a second file, of their last use
    used = program.with_name(f"{program.name.removesuffix('-cache')}-atime")
    if not used.exists() and program.stat().st_mtime < time.time() - 60:
      program.unlink(missing_ok=True)


def _mend_failures(folder: Path) -> None:
  """A program that cannot be read or written is removed; JAX would warn of it in every process.

  JAX says so by a warning, goes on without the program, and never replaces what is there.
  """
  show = warnings.showwarning

  def shown(message: Warning | str, *args: Any, **kwargs: Any) -> None:
    found = _FAILED.match(str(message))
    if not found:
      show(message, *args, **kwargs)
      return
    doing, name, reason = found.groups()
    for program in folder.glob(f"{name}-*-cache"):
      program.unlink(missing_ok=True)
    _say(f"{folder}: {name} was compiled anew, {doing} it failed: {reason}")

  warnings.showwarning = shown


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)  # noqa: T201 before there is a logger
