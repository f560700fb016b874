"""A recording read and checked, before a model is loaded; whose it is, the systems say."""

from collections.abc import Iterable
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from blip3o_jax import systems
from blip3o_jax.systems.parts import recorded
from blip3o_jax.weights.safetensors import Tensors


def read(file: str | Path) -> dict[str, np.ndarray]:
  """The tensors of a recording.

  Raises:
    FileNotFoundError, ValueError: an absent or damaged file.
  """
  tensors = Tensors(Path(file))
  return {name: tensors.read(name) for name in tensors}


def held(names: Iterable[str], where: str) -> tuple[str, recorded.Held]:
  """The system that knows the names of a recording, and {call: (names, recorded outputs)}.

  Args:
    names: of the recorded tensors. where: names the file in errors.

  Raises:
    ValueError: see `recorded.choose`.
  """
  present = list(names)
  offers = {name: system.recorded(present) for name, system in systems.SYSTEMS.items()}
  return recorded.choose(offers, present, where)


def check(recording: Mapping[str, np.ndarray], where: str) -> tuple[str, recorded.Held]:
  """What `held` finds of a recording whose inputs a model could take.

  Raises:
    ValueError: see `held`; an input that holds NaN or infinity, or that its call refuses.
  """
  who, calls = held(recording, where)
  for call, _ in calls.values():
    inputs = {name: recording[name] for name in call.inputs}
    for name, value in inputs.items():
      if not np.isfinite(np.asarray(value, np.float64)).all():
        raise ValueError(f"{where}: the input {name} holds NaN or infinity")
    try:
      call.check(inputs)
    except ValueError as error:
      raise ValueError(f"{where}: {error}") from None
  return who, calls


def parse_tolerance(text: str) -> tuple[str, float]:
  """A (pattern, tolerance) pair from "1e-4" or "train.grad.*=1e-3".

  Raises:
    ValueError: no number, or one that is negative or NaN.
  """
  pattern, sep, number = text.rpartition("=")
  try:
    value = float(number)
  except ValueError:
    raise ValueError(f"--tolerance {text}: expected a number or NAME=number") from None
  if not value >= 0:
    raise ValueError(f"--tolerance {text}: expected 0 or more")
  return (pattern if sep else "*"), value
