"""The engine of the weight tables: plan (account for everything), read, export.

A table is a list of `Row`s: PyTorch name -> our path, and a permutation. One table is read in two
directions. `{}` in a name is the layer index; the parameter then has a leading `layers` dim. A row
with several paths splits a fused tensor along PyTorch's first axis, as the parameters' sizes say.
Knows no network and no file format.
"""

import abc
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import difflib
import itertools
from pathlib import Path
import re
from typing import Any
from typing import Literal

import numpy as np

Shape = tuple[int, ...]
Index = tuple[slice, ...]
Read = Callable[[str, Index], np.ndarray]
Stored = Literal["float32", "float16"]  # what tensors of written files can be asked to be

LINEAR = (1, 0)  # (out, in) -> (in, out)
CONV = (2, 3, 1, 0)  # (out, in, kh, kw) -> (kh, kw, in, out)


class Reader(Mapping[str, Shape]):
  """{name: shape} of the tensors of some files.

  Attributes:
    files: {file: its own metadata}, in the order of the index. index: the index file, if any.
    absent: names that the index lists and no file holds. hidden: how many tensors of the files are
      left out here. chosen: which of several tables in the files these are, "" for the model's own.
    notes: what is left out or renamed, a line each.
  """

  files: dict[Path, dict[str, str]]
  index: Path | None
  absent: frozenset[str] = frozenset()
  hidden: int = 0
  chosen: str = ""
  notes: tuple[str, ...] = ()

  @abc.abstractmethod
  def dtype(self, name: str) -> np.dtype:
    """The stored dtype of a tensor."""

  @abc.abstractmethod
  def where(self, name: str) -> tuple[Path, int]:
    """The file of a tensor, and where among the bytes or tensors of the file it stands."""

  @abc.abstractmethod
  def view(self, name: str) -> Any:
    """A tensor, or what gives blocks of it when indexed with slices that have bounds."""


@dataclasses.dataclass(frozen=True)
class Row:
  """One line of a table.

  Attributes:
    name: PyTorch name, with `{}` where the index of a stacked layer stands.
    paths: our parameter paths ("a/b/kernel"); more than one for a fused tensor.
    perm: dim d of ours is dim perm[d] of PyTorch's (the layer dim not counted); () keeps all.
    zero: the files have no such tensor, the parameter is zero (a bias that a layout leaves out).
    ones: dims of size 1 behind PyTorch's others, which ours lacks (a linear layer that is stored as
      a 1x1 convolution has 2).
  """

  name: str
  paths: tuple[str, ...]
  perm: tuple[int, ...] = ()
  zero: bool = False
  ones: int = 0


def pattern(name: str) -> str:
  """The regex of a row's tensors; the index of a layer, where the name has one, is its group."""
  return re.escape(name).replace(r"\{\}", r"(\d+)")


def row(name: str, *paths: str, perm: tuple[int, ...] = ()) -> Row:
  """A `Row`; see there."""
  return Row(name, paths, perm)


def linear(name: str, *paths: str, bias: bool = True) -> list[Row]:
  """Rows of a linear layer `name.weight` (and `.bias`) to `path/kernel` (and `/bias`)."""
  rows = [Row(f"{name}.weight", tuple(f"{p}/kernel" for p in paths), LINEAR)]
  if bias:
    rows.append(Row(f"{name}.bias", tuple(f"{p}/bias" for p in paths)))
  return rows


def conv(name: str, path: str) -> list[Row]:
  """Rows of a 2-D convolution with bias."""
  return [Row(f"{name}.weight", (f"{path}/kernel",), CONV), Row(f"{name}.bias", (f"{path}/bias",))]


def norm(name: str, path: str, *, bias: bool) -> list[Row]:
  """Rows of a norm's weight (our `scale`) and, with `bias`, its bias."""
  rows = [Row(f"{name}.weight", (f"{path}/scale",))]
  return [*rows, Row(f"{name}.bias", (f"{path}/bias",))] if bias else rows


def prefixed(rows: Iterable[Row], name: str, path: str) -> list[Row]:
  """The rows under a PyTorch name prefix ("model.dit.model.") and a path prefix ("denoiser/")."""
  return [
    dataclasses.replace(r, name=name + r.name, paths=tuple(path + p for p in r.paths)) for r in rows
  ]


@dataclasses.dataclass(frozen=True)
class Source:
  """Where one parameter comes from.

  Attributes:
    names: PyTorch tensors, one per layer (a single one when not stacked); none for zeros.
    stacked: whether the parameter has a leading `layers` dim.
    perm: the row's permutation in full, of the dims that ours has too.
    start, rows: which part along PyTorch's axis 0.
    shape: of one whole PyTorch tensor.
  """

  names: tuple[str, ...]
  stacked: bool
  perm: tuple[int, ...]
  start: int
  rows: int
  shape: Shape


class WeightsError(ValueError):
  """All faults of one reading in one message; `faults` holds the lines."""

  def __init__(self, where: str, faults: Sequence[str]):
    self.faults = list(faults)
    shown = "\n  ".join(self.faults[:60])
    more = f"\n  ... and {len(self.faults) - 60} more" if len(self.faults) > 60 else ""
    listed = f"{len(self.faults)} fault(s)\n  {shown}{more}"
    super().__init__(f"{where}: {listed if len(self.faults) > 1 else shown}")


def plan(
  rows: Sequence[Row],
  tensors: Mapping[str, Shape],
  params: Mapping[str, Shape],
  *,
  ignore: Sequence[str] = (),
  where: str = "weights",
) -> dict[str, Source]:
  """Accounts for every tensor and every parameter, or fails with the whole list.

  Args:
    rows: the table.
    tensors: {PyTorch name: shape} of what the files hold.
    params: {path: shape} of what must be filled.
    ignore: regexes of tensors that may be left over.
    where: names the source in the error.

  Returns:
    {path: Source} for every path in `params`.

  Raises:
    WeightsError: unexpected, missing, non-contiguous or wrongly shaped tensors, parameters that no
      row fills or that two rows fill.
  """
  faults: list[str] = []
  out: dict[str, Source] = {}
  used: set[str] = set()
  for r in rows:
    names = _match(r, tensors)
    absent = [p for p in r.paths if p not in params]
    if absent:
      faults += [
        f"table names a parameter that the model lacks: {p} (from {r.name})" for p in absent
      ]
      used |= set(names)
      continue
    depth = params[r.paths[0]][0] if "{}" in r.name else 1
    wanted = [] if r.zero else [r.name.replace("{}", str(i)) for i in range(depth)]
    free = set(tensors) - used - set(wanted)
    for name in wanted:
      if name not in tensors:
        near = difflib.get_close_matches(name, free, 1, cutoff=0.8)
        hint = f" (nearest found: {near[0]})" if near else ""
        faults.append(f"missing {name}, needed by {r.paths[0]}{hint}")
    faults += [f"unexpected {n}: the model has {depth} layers" for n in names if n not in wanted]
    used |= set(names)
    starts = _starts(r, params)
    for path, (start, stop) in zip(r.paths, itertools.pairwise(starts), strict=True):
      if path in out:
        faults.append(f"{path}: filled twice, second by {r.name}")
      shape = _torch_shape(r, params[path], starts[-1])
      faults += [
        f"shape of {name}: expected {shape} for {path}, found {tuple(tensors[name])}"
        for name in wanted
        if name in tensors and tuple(tensors[name]) != shape
      ]
      perm = r.perm or tuple(range(len(shape) - r.ones))
      out[path] = Source(tuple(wanted), "{}" in r.name, perm, start, stop - start, shape)
  allowed = [re.compile(p) for p in ignore]
  known = [r.name for r in rows if not r.zero]
  for name in tensors:
    if name not in used and not any(rx.fullmatch(name) for rx in allowed):
      near = difflib.get_close_matches(re.sub(r"\.\d+\.", ".{}.", name), known, 1)
      faults.append(f"unexpected {name}" + (f" (nearest known: {near[0]})" if near else ""))
  faults += [f"no tensor fills {path}" for path in params if path not in out]
  if faults:
    raise WeightsError(where, list(dict.fromkeys(faults)))
  return out


def read_shard(source: Source, read: Read, index: Index, shape: Shape) -> np.ndarray:
  """One slice `index` of a parameter of `shape`, in our layout."""
  bounds = [s.indices(n)[:2] for s, n in zip(index, shape, strict=True)]
  if not source.names:
    return np.zeros([stop - start for start, stop in bounds], np.float32)
  layers = range(*bounds.pop(0)) if source.stacked else range(1)
  torch_index = [slice(None)] * len(source.perm)
  for ours, theirs in enumerate(source.perm):
    start, stop = bounds[ours]
    skip = source.start if theirs == 0 else 0
    torch_index[theirs] = slice(start + skip, stop + skip)
  ones = [slice(0, 1)] * (len(source.shape) - len(source.perm))
  found = [read(source.names[i], (*torch_index, *ones)) for i in layers]
  parts = [np.transpose(x.reshape(x.shape[: len(source.perm)]), source.perm) for x in found]
  return np.stack(parts) if source.stacked else parts[0]


@dataclasses.dataclass(frozen=True)
class Target:
  """What one tensor of the files is made of: the opposite of a `Source`.

  Attributes:
    paths: our parameters, one after the other along PyTorch's axis 0.
    layer: the index into their leading dim; None when they are not stacked.
    starts: of each along it, and the end. perm: the row's permutation in full.
    shape: of the tensor.
  """

  paths: tuple[str, ...]
  starts: tuple[int, ...]
  layer: int | None
  perm: tuple[int, ...]
  shape: Shape


def targets(rows: Sequence[Row], params: Mapping[str, Shape]) -> dict[str, Target]:
  """The table read backwards, names and shapes only: {PyTorch name: Target}, in the table's order.

  Raises:
    WeightsError: a parameter that no row names, or a row without its parameter.
  """
  named = {p for r in rows for p in r.paths}
  faults = [f"no row exports {p}" for p in params if p not in named]
  faults += [f"absent parameter {p}" for p in sorted(named) if p not in params]
  if faults:
    raise WeightsError("export", faults)
  out: dict[str, Target] = {}
  for r in rows:
    stacked = "{}" in r.name
    starts = _starts(r, params)
    shape = _torch_shape(r, params[r.paths[0]], starts[-1])
    perm = r.perm or tuple(range(len(shape) - r.ones))
    if r.zero:
      continue
    for i in range(params[r.paths[0]][0] if stacked else 1):
      name = r.name.replace("{}", str(i))
      out[name] = Target(r.paths, starts, i if stacked else None, perm, shape)
  return out


def export(rows: Sequence[Row], params: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
  """The table read backwards: yields (PyTorch name, array) for every tensor, one at a time.

  Raises:
    WeightsError: see `targets`.
  """
  shapes = {path: tuple(value.shape) for path, value in params.items()}
  for name, target in targets(rows, shapes).items():
    parts = []
    for path in target.paths:
      value = np.asarray(params[path] if target.layer is None else params[path][target.layer])
      parts.append(np.transpose(value, np.argsort(target.perm)))
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts, 0)
    yield name, np.ascontiguousarray(whole).reshape(target.shape)


def cast(name: str, value: Any, dtype: Stored | np.dtype) -> np.ndarray:
  """The array of tensor `name` in `dtype`; values that are NaN or infinite before may be.

  Raises:
    ValueError: a finite value that is too large for `dtype`.
  """
  before = np.asarray(value)
  with np.errstate(over="ignore", invalid="ignore"):  # said by name below
    after = before.astype(dtype)
  made = np.isfinite(before) & ~np.isfinite(after)
  if np.any(made):
    largest = float(np.abs(before[made].astype(np.float64)).max())
    hint = "; bfloat16 and float32 reach further" if np.dtype(dtype) == np.float16 else ""
    raise ValueError(
      f"{name}: {np.dtype(dtype)} cannot hold {largest:.3g}, its largest value; the cast would "
      f"make {np.count_nonzero(made)} infinite{hint}"
    )
  return after


def _match(r: Row, tensors: Mapping[str, Shape]) -> list[str]:
  if r.zero:
    return []
  if "{}" not in r.name:
    return [r.name] if r.name in tensors else []
  rx = re.compile(pattern(r.name))
  return [n for n in tensors if rx.fullmatch(n)]


def _starts(r: Row, params: Mapping[str, Shape]) -> tuple[int, ...]:
  """Where along PyTorch's axis 0 each of a row's parameters begins, and where the last ends."""
  at = (r.perm or (0,)).index(0) + ("{}" in r.name)
  return tuple(itertools.accumulate((params[p][at] for p in r.paths), initial=0))


def _torch_shape(r: Row, shape: Shape, rows: int) -> Shape:
  """The shape of a PyTorch tensor of so many rows of which some fill a parameter of `shape`."""
  ours = shape[1:] if "{}" in r.name else shape
  perm = r.perm or tuple(range(len(ours)))
  theirs = [0] * len(ours)
  for dim, size in zip(perm, ours, strict=True):
    theirs[dim] = size
  theirs[0] = rows
  return (*theirs, *(1,) * r.ones)
