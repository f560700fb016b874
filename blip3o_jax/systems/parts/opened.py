"""A directory's parts with their headers read, and their parameters through their tables."""

from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from pathlib import Path
import re

from absl import logging
import numpy as np

from blip3o_jax import trees
from blip3o_jax.systems.parts.layout import Describes
from blip3o_jax.systems.parts.layout import Field
from blip3o_jax.systems.parts.layout import Files
from blip3o_jax.systems.parts.layout import Layout
from blip3o_jax.systems.parts.layout import Part
from blip3o_jax.systems.parts.layout import faults
from blip3o_jax.weights import stream
from blip3o_jax.weights import table
from blip3o_jax.weights import wrapped
from blip3o_jax.weights.table import Index
from blip3o_jax.weights.table import Reader
from blip3o_jax.weights.table import Shape
from blip3o_jax.weights.table import WeightsError


@dataclasses.dataclass(frozen=True)
class Opened:
  """A part whose headers are read.

  Attributes:
    part: as described. tensors: what the files hold. rows: in use. params: {path: shape} to fill.
    ignore: regexes of tensors that may be left over. fields: what the config files say.
  """

  part: Part
  tensors: Reader
  rows: tuple[table.Row, ...]
  params: dict[str, Shape]
  ignore: tuple[str, ...]
  fields: tuple[Field, ...]

  def plan(self, where: str) -> dict[str, table.Source]:
    """Where each parameter comes from.

    Raises:
      WeightsError: sizes of the config files that the tensors contradict; else see `table.plan`.
    """
    wrong = faults(self.fields, self.tensors)
    taken = "|".join((*self.ignore, *(table.pattern(r.name) for r in self.rows)))
    if stranger := self._stranger(taken):
      raise WeightsError(where, [stranger])
    try:
      found = table.plan(self.rows, self.tensors, self.params, ignore=self.ignore, where=where)
    except WeightsError as error:  # sizes come first: they explain what follows
      raise WeightsError(where, [*wrong, *error.faults]) from None
    for name in sorted(self.tensors.absent):
      if not re.fullmatch(taken, name):
        wrong.append(f"{name}: the index lists it and no file holds it")
    if wrong:
      raise WeightsError(where, wrong)
    return found

  def _stranger(self, taken: str) -> str:
    """What is said where not one tensor has a known name: one line in place of hundreds."""
    names = list(self.tensors)
    if not names or not self.rows or any(re.fullmatch(taken, name) for name in names):
      return ""
    shared = wrapped.common(names)
    where = f"all begin with {shared[-1]}" if shared else f"the first is {names[0]}"
    looked = ", ".join(r.name.replace("{}", "0") for r in self.rows[:2])
    return f"no tensor has a name that is known: of {len(names)} {where}; expected {looked}, ..."

  def leftovers(self) -> list[str]:
    """Names of tensors that no row of the table takes."""
    rx = "|".join(table.pattern(r.name) for r in self.rows)
    return [name for name in self.tensors if not re.fullmatch(rx, name)]


def described(
  system: Describes, files: Files, only: Collection[str] | None
) -> tuple[Files, Layout]:
  """What a directory holds, as the system says; with the files to read it by.

  A prefix that all names of a part have, and without which a table knows them, is taken off.

  Args:
    only: top-level modules of the parts that are looked at; None is all.

  Raises:
    FileNotFoundError, ValueError: see `Files.names` and the system's `parts`.
  """
  found = system.parts(files)
  for part in found.parts:
    if only is not None and not set(only) & set(part.modules):
      continue
    names, home = files.names(part.folder, part.stems), files.directory / part.folder
    for prefix in ("", *wrapped.common(names)):
      bare = {name.removeprefix(prefix) for name in names}
      known = "|".join(table.pattern(r.name) for r in system.rows_of(part.kind, bare, home))
      if not any(re.fullmatch(known, name) for name in bare):
        continue
      if prefix:
        more = Files(
          files.directory, allow_pickle=files.allow_pickle, weights=files.weights, prefix=prefix
        )
        return more, system.parts(more)
      break
  return files, found


def take(system: Describes, files: Files, part: Part, only: Collection[str] | None) -> Opened:
  """Reads the headers of a part; all that its config files say must then be there.

  Args:
    only: top-level modules to take; None is all. Tensors of the others are left unread.

  Raises:
    FileNotFoundError, ValueError: see `Files.tensors` and the system's `rows`.
  """
  tensors = part.tensors(files)
  rows = system.rows_of(part.kind, tensors, files.directory / part.folder)
  params = {p: s for p, s in part.shapes().items() if only is None or trees.top(p) in only}
  used = [r for r in rows if any(p in params for p in r.paths)]
  # A row of a wanted module must find its parameter; those of other modules stand apart.
  tops = {trees.top(p) for p in params}
  apart = [r for r in rows if r not in used and trees.top(r.paths[0]) not in tops]
  rest = [] if only is None else [table.pattern(r.name) for r in apart]
  ignore = (*part.ignore, *rest, *map(re.escape, part.ties))
  fields = tuple(f for f in part.fields if not f.module or f.module in tops)
  return Opened(part, tensors, tuple(used), params, ignore, fields)


def _fitting(
  system: Describes, files: Files, part: Part, wanted: Mapping[str, Shape]
) -> Opened | None:
  """The part, to fill those modules of `wanted` of which it has anything; None without any."""
  tensors = part.tensors(files)
  rows = system.rows_of(part.kind, tensors, files.directory / part.folder)
  there = {trees.top(p) for r in rows if r.name.replace("{}", "0") in tensors for p in r.paths}
  mine, inside = there & set(part.modules), part.inside or ("",)
  params = {p: s for p, s in wanted.items() if trees.top(p) in mine and p.startswith(inside)}
  if not params:
    return None
  used = [r for r in rows if any(p in params for p in r.paths)]
  unread = [table.pattern(r.name) for r in rows if r not in used]
  # The files must agree with themselves, whatever sizes are wanted.
  fields = tuple(f for f in part.fields if not f.module or f.module in there)
  return Opened(part, tensors, tuple(used), params, (*unread, *part.ignore, *part.ties), fields)


class Released(Mapping[str, Shape]):
  """The parameters of parts through their tables; reads slices on demand.

  Raises:
    WeightsError: see `table.plan`, the faults of all parts in one.
  """

  def __init__(self, parts: Sequence[Opened], where: str):
    self._where: dict[str, tuple[Opened, table.Source]] = {}
    wrong: list[str] = []
    self.plans: list[dict[str, table.Source]] = []
    for each in parts:
      folder = each.part.folder
      try:
        self.plans.append(each.plan(folder or "main files"))
      except WeightsError as error:
        wrong += [f"{folder}: {line}" if folder else line for line in error.faults]
        continue
      self._where |= {path: (each, source) for path, source in self.plans[-1].items()}
    if wrong:
      raise WeightsError(where, wrong)

  def __getitem__(self, path: str) -> Shape:
    return self._where[path][0].params[path]

  def __iter__(self) -> Iterator[str]:
    return iter(self._where)

  def __len__(self) -> int:
    return len(self._where)

  def dtype(self, path: str) -> np.dtype:
    """The dtype of its tensors; that of zeros, which no tensor holds, is their kernel's."""
    part, source = self._where[path]
    names = source.names or self._where[f"{path.rpartition('/')[0]}/kernel"][1].names
    return stream.widest({part.tensors.dtype(n) for n in names}, path)

  def read(self, path: str, index: Index) -> np.ndarray:
    """One slice of a parameter."""
    part, source = self._where[path]
    dtype = self.dtype(path)  # layers that are stored in several meet in one that holds them all

    def read(name: str, inner: Index) -> np.ndarray:
      return np.asarray(part.tensors.view(name)[inner]).astype(dtype, copy=False)

    return table.read_shard(source, read, index, self[path])


def fitting(system: Describes, directory: str | Path, wanted: Mapping[str, Shape]) -> Released:
  """Those of the wanted parameters whose module a directory in a released layout holds.

  Args:
    wanted: {path: shape}, whole modules; their sizes decide, so a directory of weight files alone,
      without a config.json, is read too.

  Raises:
    FileNotFoundError, ValueError: files that are absent or damaged. WeightsError: what does not
      fit, by tensor.
  """
  asked = {trees.top(p) for p in wanted}
  files, there = described(system, Files(directory), asked)
  parts = [p for p in there.parts if asked & set(p.modules) and not p.computed]
  found = [_fitting(system, files, part, wanted) for part in parts]
  for note in dict.fromkeys(note for part in found if part for note in part.tensors.notes):
    logging.warning("%s", note)
  return Released([part for part in found if part is not None], str(directory))
