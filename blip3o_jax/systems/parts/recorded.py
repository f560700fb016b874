"""What a recording may hold: calls of networks, which tensors each takes and gives, and how near.

A recording is a safetensors file of inputs and outputs of a system's PyTorch networks, in PyTorch's
layouts (channels first). Which calls there are, a system says; knows no network. Numpy only.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import difflib
import fnmatch
from typing import Any

import numpy as np

# A bar is met on the machine that set it; another one adds its own rounding: SLACK times the bar.
SLACK = 1.5
SHOWN = 30  # faults of one error


@dataclasses.dataclass(frozen=True)
class Bar:
  """How near an output must come.

  Attributes:
    float32: the relative error that an independent build reached, rounded up; 0 asks for equality.
    bfloat16: the largest relative error there; None for what is computed as in float32. Eight bits
      of mantissa in every layer: two to three times what the random miniature shows.
  """

  float32: float
  bfloat16: float | None = 0.05


@dataclasses.dataclass(frozen=True)
class Call:
  """One use of the networks.

  Attributes:
    inputs: names that it needs. outputs: {pattern of a name, as in fnmatch: bar}.
    check: raises ValueError for inputs {name: array} that no model could take.
  """

  inputs: tuple[str, ...]
  outputs: Mapping[str, Bar]
  check: Callable[[Mapping[str, np.ndarray]], None] = lambda inputs: None

  def gives(self, name: str) -> bool:
    """Whether `name` is one of the outputs."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.outputs)

  def bar(self, name: str) -> Bar:
    """The bar of one of the outputs.

    Raises:
      KeyError: a name that the call does not give.
    """
    for pattern, bar in self.outputs.items():
      if fnmatch.fnmatchcase(name, pattern):
        return bar
    raise KeyError(name)


@dataclasses.dataclass(frozen=True)
class Errors:
  """In place of an output that is not compared value by value: its relative errors, float[...]."""

  values: np.ndarray


Calls = Mapping[str, Call]
# What a recording holds of each call: {call: (its names, its recorded outputs)}.
Held = dict[str, tuple[Call, list[str]]]


def choose(offers: Mapping[str, Calls], names: Iterable[str], where: str) -> tuple[str, Held]:
  """Whose recording this is, and what has to be replayed, in the order of the offered calls.

  Args:
    offers: {system: the calls that a recording of it may hold}. names: of the recorded tensors.
    where: names the file in errors.

  Raises:
    ValueError: names that two systems know equally well; all unknown names and missing inputs at
      once; a file without outputs.
  """
  present = sorted(names)
  known = {
    who: sum(any(n in c.inputs or c.gives(n) for c in calls.values()) for n in present)
    for who, calls in offers.items()
  }
  most = max(known.values(), default=0)
  best = [who for who, count in known.items() if count == most]
  if not most:
    every = {f"{who}:{name}": call for who, calls in offers.items() for name, call in calls.items()}
    _held(every, present, f"{where}: of none of {', '.join(offers)}")  # raises: nothing is known
  if len(best) > 1:
    # A few names may be known to two systems, of which one has calls that they are all of.
    whole = [who for who in best if _fits(offers[who], present)]
    if len(whole) != 1:
      raise ValueError(f"{where}: its names are as much those of {' as of '.join(best)}")
    best = whole
  return best[0], _held(offers[best[0]], present, where)


def _fits(calls: Calls, present: Sequence[str]) -> bool:
  """Whether names are all of calls, which lack nothing."""
  try:
    _held(calls, present, "")
  except ValueError:
    return False
  return True


def _held(calls: Calls, present: Sequence[str], where: str) -> Held:
  """The calls of which outputs are present, checked: see `choose`."""
  inputs = {name for call in calls.values() for name in call.inputs}
  faults = []
  out: Held = {}
  for name, call in calls.items():
    wanted = [n for n in present if call.gives(n)]
    if wanted:
      out[name] = call, wanted
      lost = [n for n in call.inputs if n not in present]
      faults += [f"{n} is missing, the input of {wanted[0]}" for n in lost]
  outputs = {name for _, wanted in out.values() for name in wanted}
  candidates = sorted(inputs | {n for call in calls.values() for n in call.outputs})
  for name in present:
    if name not in inputs and name not in outputs:
      near = difflib.get_close_matches(name, candidates, 1)
      faults.append(f"{name} is not a name of a recording" + (f"; near: {near[0]}" if near else ""))
  if faults:
    more = [f"... and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
    lines = "\n  ".join([*faults[:SHOWN], *more])
    raise ValueError(f"{where}: {len(faults)} fault(s)\n  {lines}")
  if not out:
    raise ValueError(f"{where}: holds no recorded output; expected some of {', '.join(candidates)}")
  return out


def tolerance(name: str, bar: Bar, dtype: str, given: Sequence[tuple[str, float]] = ()) -> float:
  """The largest relative error of an output that passes.

  Args:
    name, bar: of the output. dtype: "float32" or "bfloat16".
    given: (pattern, tolerance) pairs of the user, the last that fits deciding; the pattern "*"
      leaves alone what must be equal.
  """
  value = SLACK * bar.float32
  if dtype == "bfloat16" and bar.bfloat16 is not None:
    value = bar.bfloat16
  for pattern, asked in given:
    if fnmatch.fnmatchcase(name, pattern) and (value or pattern != "*"):
      value = asked
  return value


def last(x: np.ndarray) -> np.ndarray:
  """Channels first to last."""
  return np.moveaxis(x, 1, -1)


def first(x: Any) -> np.ndarray:
  """Channels last to first, float32."""
  return np.moveaxis(np.asarray(x, np.float32), -1, 1)
