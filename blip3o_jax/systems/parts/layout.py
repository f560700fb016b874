"""What a directory in a released layout holds, as data that a system gives.

A part is one set of weight files: the main files of a model, a tower, a UNet. A system says which
there are, which table each follows, which tensors may be left over; whoever reads or writes a
directory goes by that and knows no system.
"""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
from pathlib import Path
import re
from typing import Any
from typing import Protocol

from flax import nnx

from blip3o_jax import files
from blip3o_jax import layers
from blip3o_jax import trees
from blip3o_jax.weights import pickles
from blip3o_jax.weights import safetensors
from blip3o_jax.weights import table
from blip3o_jax.weights import wrapped
from blip3o_jax.weights.table import Reader
from blip3o_jax.weights.table import Shape

MAIN = ("model", "pytorch_model")  # stems of the weight files of a whole model


class Files:
  """Cheap looks at a directory: what is there, JSON files, names of tensors.

  Args:
    directory: of a model, or of a part of one. allow_pickle: `.bin` files may be read.
    weights: which table to take of files that hold several, such as "ema"; "" is the model itself.
    prefix: taken off the names of tensors where all have it, see `opened.described`.
  """

  def __init__(
    self,
    directory: str | Path,
    *,
    allow_pickle: bool = False,
    weights: str = "",
    prefix: str = "",
  ):
    self.directory, self.allow_pickle = Path(directory), allow_pickle
    self.weights, self.prefix = weights, prefix

  def has(self, path: str) -> bool:
    """Whether a file or folder is there."""
    return (self.directory / path).exists()

  def json(self, name: str) -> dict[str, Any]:
    """The object of a JSON file; {} where there is none.

    Raises:
      ValueError: a file that is no JSON object, by name.
    """
    path = self.directory / name
    return files.read_json(path) if path.is_file() else {}

  def names(self, folder: str = "", stems: Sequence[str] = MAIN) -> frozenset[str]:
    """Names of the tensors in weight files, from their index or header; empty without files.

    Prefixes of wrappers are taken off. Files that an index names need not be there. Of a pickle all
    strings are given, unexecuted.

    Raises:
      ValueError: a damaged index or header; two tensors of one name.
    """
    place = self.directory / folder
    stored = _stored(place, stems)
    words = {name for name in stored if "." not in name}  # no prefix; in a pickle often no name
    return frozenset(words | wrapped.take(stored - words, self.weights, self.prefix).names.keys())

  def tensors(self, folder: str = "", stems: Sequence[str] = MAIN) -> Reader:
    """The tensors of a folder: safetensors where there are any, else pickles if they may be read.

    Raises:
      FileNotFoundError: no weights. ValueError: pickles that may not be read, or damaged files.
    """
    place, missing = self.directory / folder, None
    for stem in stems:
      try:
        return wrapped.unwrap(safetensors.Tensors(place, stem), self.weights, self.prefix)
      except FileNotFoundError as error:
        if "holds neither" not in str(error):
          raise
        missing = missing or error
    for stem in stems:
      paths, index = pickles.find(place, stem)
      if paths and not self.allow_pickle:
        raise ValueError(
          f"{paths[0]}: a pickle, which can run code when it is read; convert it once with "
          "blip3o convert import --allow-pickle, which reads its tensors (and only tensors), or "
          "fetch safetensors"
        )
      if paths:
        found = pickles.Pickles(paths, index, self.weights)
        return wrapped.unwrap(found, self.weights, self.prefix)
    assert missing is not None
    raise FileNotFoundError(f"{missing}{self.others(folder, stems)}")

  def others(self, folder: str = "", stems: Sequence[str] = MAIN) -> str:
    """In words, which weight files of other names a folder holds; "" for none."""
    place = self.directory / folder
    found = sorted(p.name for p in place.iterdir() if p.suffix in files.WEIGHTS)
    if not found:
      return ""
    return (
      f"; there is {', '.join(found[:5])}, and weights are read under the names "
      f"{stems[0]}.safetensors and {stems[-1]}.bin"
    )


def _stored(place: Path, stems: Sequence[str]) -> set[str]:
  """The names of the tensors in the weight files of a folder, as they are stored."""
  for stem in stems:
    for index in place.glob(f"{stem}.safetensors.index*.json"):
      return set(safetensors.index_map(index))
    for file in sorted(place.glob(f"{stem}*.safetensors")):
      shards = sorted(place.glob(f"{stem}*-of-*.safetensors"))
      return {
        name for f in (shards if file in shards else [file]) for name in safetensors.Tensors(f)
      }
  for stem in stems:
    index = place / f"{stem}.bin.index.json"
    if index.is_file():
      return set(safetensors.index_map(index))
    if found := sorted(place.glob(f"{stem}.bin")) or sorted(place.glob(f"{stem}-*-of-*.bin")):
      return {name for file in found for name in pickles.strings(file)}
  return set()


@dataclasses.dataclass(frozen=True)
class Field:
  """One size that a config file tells.

  Attributes:
    field: its name, with the file. value: what it says. tensor: a name that shows the same size, or
      one with `{}` for an index that is counted. axis: of the tensor; unused for a count.
    module: the top-level module that has the size; "" is all of the part.
  """

  field: str
  value: int
  tensor: str
  axis: int = 0
  module: str = ""


def faults(fields: Iterable[Field], tensors: Mapping[str, Shape]) -> list[str]:
  """A line for each size that is not what the tensors show; absent tensors are not looked at."""
  out = []
  for f in fields:
    if "{}" in f.tensor:
      rx = re.compile(table.pattern(f.tensor))
      found = {int(m.group(1)) for name in tensors if (m := rx.fullmatch(name))}
      # Fewer than named is a missing layer, which the plan names; a count of 0 is an absent part.
      if found and len(found) != f.value and found == set(range(len(found))):
        out.append(f"{f.field} is {f.value}, but the tensors have {len(found)} ({f.tensor})")
    elif f.tensor in tensors:
      shape = tensors[f.tensor]
      if len(shape) > f.axis and shape[f.axis] != f.value:
        out.append(f"{f.field} is {f.value}, but {f.tensor} is {tuple(shape)}")
  return out


@dataclasses.dataclass(frozen=True)
class Part:
  """One set of weight files, as a system describes it.

  Attributes:
    kind: the system's word for its table. folder: of the files, "" for the directory's own.
    stems: of the file names, the first one for those that are written.
    modules: top-level modules that the table fills; those that files lack may be among them.
    shapes: {path: shape} of what the files fill, when asked: a model is traced for it.
    ignore: {regex of tensors that may be left over: why nothing reads them, or ""}.
    ties: {tensor that may be there: the one that it repeats}. fields: sizes of the config files.
    inside: prefixes of the paths that it fills, where its modules have others; () is all of them.
    single: its files are one file, however large, as its release has them.
    read: gives its tensors where they are not those of its files as they stand.
    computed: `read` computes them, which takes long: an import does it once, nobody else does.
  """

  kind: str
  folder: str
  stems: tuple[str, ...]
  modules: tuple[str, ...]
  shapes: Callable[[], dict[str, Shape]]
  ignore: Mapping[str, str] = dataclasses.field(default_factory=dict)
  ties: Mapping[str, str] = dataclasses.field(default_factory=dict)
  fields: tuple[Field, ...] = ()
  inside: tuple[str, ...] = ()
  single: bool = False
  read: Callable[[Files], Reader] | None = None
  computed: bool = False

  def tensors(self, files: Files) -> Reader:
    """Its tensors; raises as `Files.tensors`."""
    return files.tensors(self.folder, self.stems) if self.read is None else self.read(files)


class Change(Protocol):
  """A changed vocabulary: a dataclass whose text says what changes."""

  def apply(self, part: Any) -> Any:
    """An `opened.Opened` with what changes, or as it is."""

  def write(self, directory: Path) -> None:
    """Changes the copied config.json and tokenizer files of a directory accordingly."""


@dataclasses.dataclass(frozen=True)
class Layout:
  """What a directory holds.

  Attributes:
    cfg: the system's Config where the directory is of a whole model, else None.
    parts: in the order in which they are read. notes: what is left out and why, a line each.
    unread: weight files that are left out.
    vocabulary: what an import does about the vocabulary when it is asked for a number of rows,
      "keep" or "auto"; None for nothing. None where the directory has none.
  """

  cfg: Any
  parts: tuple[Part, ...]
  notes: tuple[str, ...] = ()
  unread: tuple[Path, ...] = ()
  vocabulary: Callable[[str], Change | None] | None = None


@dataclasses.dataclass(frozen=True)
class Licence:
  """Attributes: name; "unknown" where the sizes are of no release. commercial: None if unknown."""

  name: str = "unknown"
  commercial: bool | None = None


class Describes(Protocol):
  """What reading a directory asks of a system, or of a part that has its own folder."""

  def parts(self, files: Files) -> Layout:
    """See `systems.System`."""

  def rows_of(self, kind: str, names: Collection[str], home: Path) -> list[table.Row]:
    """See `systems.System`."""


def shapes(
  make: Callable[[nnx.Rngs], nnx.Module], prefix: str = ""
) -> Callable[[], dict[str, Shape]]:
  """When called, {prefix + path: shape} of a module's parameters; nothing is allocated."""

  @functools.cache
  def traced() -> dict[str, Shape]:
    state = nnx.state(layers.abstract(make))
    flat = trees.flatten(nnx.to_pure_dict(state))
    return {prefix + path: tuple(v.shape) for path, v in flat.items()}

  return traced


# Writing -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Base:
  """A directory that a run started from.

  Attributes:
    directory: its place. parts: as its manifest has them (system, kind, folder, stem, modules,
      ties, index, files). whole: whether it is of a whole model, with a config.json.
  """

  directory: Path
  parts: tuple[Mapping[str, Any], ...]
  whole: bool


@dataclasses.dataclass(frozen=True)
class Export:
  """The directory that a run is written as.

  Attributes:
    base: whose other files are copied; None without one. parts: as a manifest has them; those that
      no file held yet have no files. extra: (folder, place) whose JSON files are copied there.
    dropped: paths of the sources that the run's design replaced.
  """

  base: Path | None
  parts: tuple[Mapping[str, Any], ...]
  extra: tuple[tuple[Path, str], ...] = ()
  dropped: frozenset[str] = frozenset()


def new_part(kind: str, folder: str, stem: str, modules: Iterable[str]) -> dict[str, Any]:
  """A part of which no file is there yet, as a manifest has it."""
  facts = {"kind": kind, "folder": folder, "stem": stem, "modules": sorted(modules), "ties": {}}
  return facts | {"index": None, "files": {}}


def fills(parts: Iterable[Mapping[str, Any]], path: str) -> bool:
  """Whether a conversion with these parts should hold a parameter of the modules that it has."""
  mine = [part for part in parts if trees.top(path) in part["modules"]]
  return any(path.startswith(tuple(part.get("inside") or ("",))) for part in mine)


def base_of(bases: Sequence[Base]) -> Base | None:
  """The one whose files are copied: the last one that is a whole model, or else the last."""
  found = [b for b in bases if b.whole] or list(bases)
  return found[-1] if found else None


def model_of(bases: Sequence[Base], tokenizer: Path | None) -> Base | None:
  """`base_of`, for a run that becomes a model of config.json and tokenizer.

  Raises:
    ValueError: no base with a config.json, and no tokenizer.
  """
  base = base_of(bases)
  if (base is None or not (base.directory / "config.json").is_file()) and tokenizer is None:
    raise ValueError("the run's model: none of its sources is a model; give --tokenizer DIR")
  return base


def refuse_lost(told: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
  """Raises ValueError where config.json and tiny.json, as written, tell other sizes than a run's.

  Args:
    told: fields as they are read again. mine: those of the run.
  """
  if told != mine:
    odd = [name for name in mine if told.get(name) != mine[name]]
    raise ValueError(f"config.json and tiny.json cannot tell the run's {', '.join(odd)}")
