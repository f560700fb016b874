"""Recordings of a checkpoint: random or given inputs, and what PyTorch makes of them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.systems.blip3o.prompts import SPECIAL
from blip3o_jax.verify import recordings
from blip3o_jax.verify.torch import decoder
from blip3o_jax.verify.torch import system
from blip3o_jax.verify.torch.checkpoint import Checkpoint

Arrays = dict[str, np.ndarray]
FOLDER = "diffusion-decoder"


def given_inputs(recorded: Mapping[str, np.ndarray], where: str) -> Arrays:
  """The inputs of a recording, its outputs left out.

  Raises:
    ValueError: see `recordings.calls`.
  """
  wanted = {n for call, _ in recordings.calls(recorded, where).values() for n in call.inputs}
  return {name: recorded[name] for name in wanted}


def record_system(directory: Path, *, seed: int, given: Arrays | None, allowed: int = 0) -> Arrays:
  """Inputs and outputs of the system of a released-layout directory.

  Args:
    directory: of the model. seed: of random inputs, where none are `given`.
    allowed: greedy answers take ids below it; 0 takes all below the special ones.

  Raises:
    FileNotFoundError, ValueError, RuntimeError: files that are absent, damaged or incomplete.
  """
  checkpoint = Checkpoint(directory)
  if given is None:
    given = system.inputs(checkpoint, np.random.default_rng(seed))
  _complete(given, recordings.SYSTEM, directory)
  allowed = allowed or Tokenizer.load(directory, SPECIAL).pad
  return {**given, **system.record(checkpoint, given, allowed)}


def record_decoder(directory: Path, *, seed: int, given: Arrays | None) -> Arrays:
  """Inputs and outputs of the pixel decoder of a released-layout directory.

  Raises:
    FileNotFoundError: no pixel decoder. ValueError: files that are incomplete.
  """
  home = directory / FOLDER
  if not home.is_dir():
    raise FileNotFoundError(f"{directory}: no folder {FOLDER}")
  if given is None:
    given = decoder.inputs(home, np.random.default_rng(seed))
  _complete(given, recordings.DECODER, directory)
  return {**given, **decoder.record(home, given)}


def _complete(given: Arrays, calls: Mapping[str, recordings.Call], directory: Path) -> None:
  lost = sorted({n for call in calls.values() for n in call.inputs} - set(given))
  if lost:
    raise ValueError(f"inputs to record {directory} lack {', '.join(lost)}")


def save(recorded: Arrays, file: Path) -> None:
  """Writes a recording under another name and renames it."""
  file.parent.mkdir(parents=True, exist_ok=True)
  partial = file.with_name(f".{file.name}.partial")
  save_file({n: np.asarray(v, order="C") for n, v in sorted(recorded.items())}, partial)
  partial.replace(file)


def has_decoder(directory: Path) -> bool:
  """Whether a model has a pixel decoder to record."""
  return (directory / FOLDER).is_dir()
