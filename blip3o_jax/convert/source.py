"""What a source directory holds: the system whose it is, its parts with their tensors, leftovers.

Reads headers and JSON files only; everything that a system knows of its files it says as data.
"""

from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
from pathlib import Path
import re
from typing import Any

from blip3o_jax import systems
from blip3o_jax.systems.parts import layout
from blip3o_jax.systems.parts import opened
from blip3o_jax.systems.parts.opened import Opened


@dataclasses.dataclass(frozen=True)
class Found:
  """A source directory, looked through.

  Attributes:
    directory: of the source. system: the name of the one whose files these are.
    layout: as the system describes it. parts: those that are taken, opened.
    leaves: their parameters, each accounted for. notes: what is left out and why, a line each.
    unread: weight files that are left out.
  """

  directory: Path
  system: str
  layout: layout.Layout
  parts: tuple[Opened, ...]
  leaves: opened.Released
  notes: tuple[str, ...]
  unread: tuple[Path, ...]

  def apart(self) -> set[Path]:
    """Folders of parts that are not taken, for a reader would look for their weights."""
    tops = [Path(p.folder).parts[0] for p in self.layout.parts if p.folder]
    taken = {Path(p.part.folder).parts[0] for p in self.parts if p.part.folder}
    return {self.directory / top for top in set(tops) - taken}

  @property
  def cfg(self) -> Any:
    """The system's Config of a whole model; None for a part of one."""
    return self.layout.cfg


@dataclasses.dataclass(frozen=True)
class Take:
  """What of a directory is taken.

  Attributes:
    allow_pickle: read `.bin` files where there are no others. only: components to take; all.
    weights: the table to take of files that hold several, such as "ema"; "" is the model itself.
  """

  allow_pickle: bool = False
  only: Sequence[str] = ()
  weights: str = ""


ALL = Take()


def look(directory: str | Path, take: Take = ALL) -> Found:
  """Looks through a source directory.

  Raises:
    FileNotFoundError: no directory, or one without weights. ValueError: a directory of no system, a
      component that its system has not, a table that no file has, or what is wrong with a file, by
      name.
    WeightsError: tensors or sizes that do not fit, all of them.
  """
  directory, only, weights = Path(directory), take.only, take.weights
  name = systems.of(directory)
  system = systems.SYSTEMS[name]
  known = list(dict.fromkeys(system.COMPONENTS.values()))
  odd = sorted(set(only) - set(known))
  if odd:
    raise ValueError(f"{odd[0]!r} is no component; there are {', '.join(known)}")
  modules = None
  if only and set(only) != set(known):
    modules = {module for module, part in system.COMPONENTS.items() if part in only}
  files = layout.Files(directory, allow_pickle=take.allow_pickle, weights=weights)
  files, described = opened.described(system, files, modules)
  taken = [p for p in described.parts if modules is None or modules & set(p.modules)]
  found = [opened.take(system, files, part, modules) for part in taken]
  parts = [part for part in found if part.params]
  if not parts:
    raise FileNotFoundError(f"{directory}: nothing to convert: no weights of what is asked for")
  if weights and not any(part.tensors.chosen for part in parts):
    raise ValueError(f"--weights {weights}: no file of {directory} holds a table of that name")
  notes, unread = list(described.notes), list(described.unread)
  notes += [note for part in parts for note in part.tensors.notes]
  for path in _strays(directory, parts):
    unread.append(path)
    what = "a pickle beside the safetensors" if path.suffix == ".bin" else "none of the files taken"
    notes.append(f"{path.relative_to(directory)}: skipped, {what}")
  leaves = opened.Released(parts, str(directory))
  return Found(directory, name, described, tuple(parts), leaves, tuple(notes), tuple(unread))


def _strays(directory: Path, parts: Sequence[Opened]) -> list[Path]:
  """Weight files beside those of the parts."""
  taken = {path for part in parts for path in part.tensors.files}
  places = dict.fromkeys(directory / part.part.folder for part in parts)
  found = [sorted([*p.glob("*.safetensors"), *p.glob("*.bin")]) for p in places]
  return [path for each in found for path in each if path not in taken]


def leftovers(parts: Iterable[Opened], tied: Iterable[str] = ()) -> dict[str, tuple[int, str]]:
  """{first two words of names: (tensors, why)} of what no table takes; those in `tied` apart."""
  kept = set(tied)
  out: dict[str, tuple[int, str]] = {}
  for part in parts:
    for name in part.leftovers():
      if name not in kept:
        family = ".".join(name.split(".")[:2])
        count, why = out.get(family, (0, _reason(part.part, name)))
        out[family] = count + 1, why
  return out


def _reason(part: layout.Part, name: str) -> str:
  """Why a tensor is not taken."""
  if name in part.ties:
    return f"not the values of {part.ties[name]}, which config.json ties it to"
  told = [why for rx, why in part.ignore.items() if why and re.fullmatch(rx, name)]
  return told[0] if told else "not asked for"
