"""Names as training scripts leave them: an average beside the model, prefixes of wrappers.

Frameworks save the module that they wrapped, and averages among its tensors. What they add is known
and stands in no network's names, so it is taken off here, before any table is asked.
"""

from collections.abc import Iterable
from collections.abc import Mapping
import dataclasses
from pathlib import Path
import re
from typing import Any

import numpy as np

from blip3o_jax.weights.table import Reader
from blip3o_jax.weights.table import Shape

# A word of a table or prefix that holds an average of the model's parameters.
AVERAGE = re.compile(
  r"(\w+_)?(ema|swa|avg|averaged?|shadow)"
  r"(_(model|module|net|network|unet|state|state_dict|params|weights))?"
)
# Keys under which files keep the model itself; also prefixes of flat files.
MODEL = ("state_dict", "model_state_dict", "model", "module", "online_model")
# What wrappers put before all names (DDP, DeepSpeed, peft), and wherever they stand (compiled,
# FSDP, checkpointed modules).
OUTER = ("module.", "base_model.model.", "state_dict.", "model_state_dict.", "online_model.")
INNER = re.compile(
  r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)
# Scalars by which averages count their updates.
COUNTERS = frozenset(("n_averaged", "num_updates", "decay", "initted", "step"))
ADAPTER = re.compile(r".*\.(lora_[AB]|lora_embedding_[AB]|base_layer|modules_to_save)\..*")


@dataclasses.dataclass(frozen=True)
class Taken:
  """Which tensors are taken, and under which names.

  Attributes:
    names: {name without what was added: the stored one}. notes: what is said, without the file.
    chosen: the prefix of the average that is taken; "" for the model itself.
  """

  names: dict[str, str]
  notes: tuple[str, ...] = ()
  chosen: str = ""


def is_average(key: str) -> bool:
  """Whether a key such as "model_ema" or "ema.shadow" says that an average is under it."""
  return any(AVERAGE.fullmatch(word) for word in key.split("."))


def take(stored: Iterable[str], weights: str = "", prefix: str = "") -> Taken:
  """The model's own tensors, or the average of the prefix `weights` where there is one.

  Args:
    prefix: taken off too where all names have it.

  Raises:
    ValueError: two names that become one.
  """
  tables: dict[str, dict[str, str]] = {"": {}}
  for name in stored:
    top, dot, rest = name.partition(".")
    table = top if dot and is_average(top) else ""
    tables.setdefault(table, {})[rest if table else name] = name
  averages = [table for table in tables if table]
  chosen = weights if weights in tables else ""
  if not set(tables[chosen]) - COUNTERS and averages:
    chosen = averages[0]
  taken = tables[chosen]
  if set(taken) & COUNTERS and set(taken) - COUNTERS:
    taken = {name: whole for name, whole in taken.items() if name not in COUNTERS}
  notes = []
  if chosen:
    notes.append(f"the average {chosen!r} is taken")
  left = [f"{table!r} ({len(tables[table])} tensors)" for table in averages if table != chosen]
  if left:
    notes.append(left_out(left))
  if chosen and set(tables[""]) - COUNTERS:
    notes.append(f"{len(tables[''])} tensors of the model itself are left out")
  names, found = _stripped(taken, (prefix, *OUTER) if prefix else OUTER)
  if found:
    notes.append(f"{found} is taken off the names")
  return Taken(names, tuple(notes), chosen)


def left_out(averages: Iterable[str]) -> str:
  """Says that averages are not taken, and how they are."""
  return (
    f"beside the model there is an average, {', '.join(averages)}, which is left out; "
    "blip3o convert import --weights NAME takes it instead"
  )


def unwrap(reader: Reader, weights: str = "", prefix: str = "") -> Reader:
  """The tensors of files under their names proper; the reader itself where nothing was added.

  Args:
    weights, prefix: see `take`.

  Raises:
    ValueError: adapters that are not merged; two names that become one.
  """
  place = reader.index or next(iter(reader.files))
  adapters = [name for name in reader if ADAPTER.fullmatch(name)]
  if adapters:
    raise ValueError(
      f"{place}: holds {len(adapters)} tensors of adapters such as {adapters[0]}, not the weights "
      "that they make; merge them (peft: merge_and_unload) and save the model"
    )
  try:
    taken = take([*reader, *sorted(reader.absent)], "" if reader.chosen else weights, prefix)
  except ValueError as error:
    raise ValueError(f"{place}: {error}") from None
  if len(taken.names) == len(reader) + len(reader.absent) and not taken.notes:
    return reader
  return View(reader, taken, place)


class View(Reader):
  """Some tensors of a reader, under other names; see `take`."""

  def __init__(self, inner: Reader, taken: Taken, place: Path):
    self._inner = inner
    self._names = {name: whole for name, whole in taken.names.items() if whole in inner}
    self.files, self.index = inner.files, inner.index
    self.absent = frozenset(n for n, whole in taken.names.items() if whole in inner.absent)
    self.notes = (*inner.notes, *(f"{place}: {note}" for note in taken.notes))
    self.chosen = inner.chosen or taken.chosen
    self.hidden = inner.hidden + len(inner) - len(self._names)

  def __getitem__(self, name: str) -> Shape:
    return self._inner[self._names[name]]

  def __iter__(self) -> Any:
    return iter(self._names)

  def __len__(self) -> int:
    return len(self._names)

  def dtype(self, name: str) -> np.dtype:
    """The stored dtype of a tensor."""
    return self._inner.dtype(self._names[name])

  def where(self, name: str) -> tuple[Path, int]:
    """The file of a tensor, and where in it the bytes begin."""
    return self._inner.where(self._names[name])

  def view(self, name: str) -> Any:
    """A whole tensor."""
    return self._inner.view(self._names[name])


def common(names: Iterable[str]) -> list[str]:
  """The prefixes that all names have, the shortest first, each with its dot; [] for no names."""
  names = list(names)
  words = names[0].split(".")[:-1] if names else []
  found = [".".join(words[:count]) + "." for count in range(1, len(words) + 1)]
  return [prefix for prefix in found if all(name.startswith(prefix) for name in names)]


def _stripped(names: Mapping[str, str], outer: Iterable[str]) -> tuple[dict[str, str], str]:
  """({name without prefixes: stored}, the prefixes in words)."""
  found: list[str] = []
  bare = list(names)
  while bare:
    prefix = next((p for p in outer if all(name.startswith(p) for name in bare)), "")
    if not prefix and _twice(bare):
      prefix = "model."
    inner = [m for name in bare if (m := INNER.search(name))]
    if prefix:
      bare = [name.removeprefix(prefix) for name in bare]
      found.append(prefix)
    elif inner:
      found += dict.fromkeys(match.group() for match in inner)
      bare = [INNER.sub("", name, count=1) for name in bare]
    else:
      break
  out = dict(zip(bare, names.values(), strict=True))
  if len(out) < len(names):
    twin = next(name for name in bare if bare.count(name) > 1)
    raise ValueError(f"two tensors become {twin} when {found} is taken off the names")
  return out, " and ".join(dict.fromkeys(found))


def _twice(names: Iterable[str]) -> bool:
  """Whether "model." stands before all names, which begin so or with the head's by themselves."""
  names = list(names)
  more = ("model.model.", "model.lm_head.")
  return all(n.startswith("model.") for n in names) and any(n.startswith(more) for n in names)
