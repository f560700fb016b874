"""A model by its name, and the fingerprint of its weights."""

from collections.abc import Sequence
from concurrent import futures
import dataclasses
from pathlib import Path
from typing import Any

from blip3o_jax import files
from blip3o_jax import systems
from blip3o_jax.layers import Dtype
from blip3o_jax.miniature import shipped
from blip3o_jax.systems.parts import loading
from blip3o_jax.systems.parts.memory import Memory
from blip3o_jax.train import checkpoint
from blip3o_jax.weights import hashes
from blip3o_jax.weights import hub
from blip3o_jax.weights import store

CHUNK = 2**24  # bytes that are read at once
# Names the model that ships, where no directory is called so; with ":SYSTEM" that of a system.
MINIATURE = "miniature"


@dataclasses.dataclass(frozen=True)
class Opened:
  """A model that is loaded.

  Attributes:
    name: as it was asked for. directory: where it lies. system: of `SYSTEMS`.
    dtype: it computes in, with what else changes its results: "float32", "bfloat16+int8+tile512".
    model: what `systems.System.load` returns.
  """

  name: str
  directory: Path
  system: str
  dtype: str
  model: Any


def open_model(
  name: str | Path | None, *, dtype: Dtype = "float32", memory: Memory | None = None, verb: str = ""
) -> Opened:
  """Args, Raises: as `blip3o_jax.load`; `memory`: how it lies."""
  ships = miniature(name, verb)
  if ships:
    directory, called = shipped.directory(ships), shipped.name(ships)
    shipped.verify(directory)
  else:
    directory, called = hub.local_directory(str(name)), str(name)
  kind = systems.of(directory)
  system = systems.SYSTEMS[kind]
  if verb and verb not in system.VERBS:
    raise ValueError(unable(called, kind, verb, system.VERBS))
  model = system.load(directory, dtype=dtype, memory=memory)
  how = memory or Memory()
  said = dtype + "+int8" * how.int8 + (f"+tile{how.tile}" if how.tile else "")
  return Opened(called, directory, kind, said, model)


def miniature(name: str | Path | None, verb: str = "") -> str:
  """The system of the model that ships with the package and has this name; "" for another's name.

  None is the first that can do what is asked, or the first.

  Raises:
    ValueError: a system whose miniature does not ship.
  """
  if name is None:
    able = (each for each in shipped.systems() if verb in systems.SYSTEMS[each].VERBS)
    return next(able, shipped.DEFAULT)
  before, _, system = str(name).partition(":")
  if before != MINIATURE or Path(name).exists():
    return ""
  known = shipped.systems()
  if system and system not in known:
    raise ValueError(f"{name}: expected {MINIATURE}:SYSTEM with one of {', '.join(known)}")
  return system or shipped.DEFAULT


def unable(name: str, system: str, verb: str, verbs: Sequence[str]) -> str:
  """Why a model does not do something, in words."""
  able = ", ".join(verbs) or "do nothing by itself"
  said = f"{name}: a model of the system {system} cannot {verb}; it can {able}"
  if name != shipped.NAME:
    return said
  others = [each for each in shipped.systems() if verb in systems.SYSTEMS[each].VERBS]
  return said + "".join(f"; {MINIATURE}:{each} can {verb}" for each in others)


class Fingerprint:
  """The hash of a directory's weights, made once, in a thread beside what is drawn meanwhile."""

  def __init__(self, directory: Path):
    self._directory = directory
    self._found: futures.Future[str] | None = None

  def start(self) -> None:
    """Begins, where it has not begun."""
    if self._found is None:
      with futures.ThreadPoolExecutor(1) as beside:  # its thread ends with the hash
        self._found = beside.submit(fingerprint, self._directory)
        beside.shutdown(wait=False)

  def __str__(self) -> str:
    self.start()
    assert self._found is not None
    return self._found.result()


def fingerprint(directory: Path) -> str:
  """The hash "blake3:..." of what a model's directory holds.

  Of a converted directory it is that of its manifest; of a run that of its last checkpoint; else of
  the names and bytes of all weight and JSON files, so that one changed weight is another model.
  """
  if store.is_converted(directory):
    return loading.fingerprint(directory)
  root = directory
  known: tuple[str, ...] = (*files.WEIGHTS, ".json")
  if checkpoint.is_run(directory):
    root, known = Path(checkpoint.folder(directory)) / str(checkpoint.steps(directory)[-1]), ()
  digest = hashes.new(hashes.DEFAULT)
  for path in sorted(p for p in root.rglob("*") if p.is_file()):
    if known and path.suffix not in known:
      continue
    digest.update(f"{path.relative_to(root).as_posix()} {path.stat().st_size}\n".encode())
    with path.open("rb") as handle:
      while data := handle.read(CHUNK):
        digest.update(data)
  return f"{hashes.DEFAULT}:{digest.hexdigest()}"
