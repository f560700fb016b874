"""Recordings of a checkpoint: random or given inputs, and what PyTorch makes of them."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from typing import Literal

import numpy as np

from blip3o_jax import files
from blip3o_jax import systems
from blip3o_jax.data import images
from blip3o_jax.systems.parts import painter_recordings as of_decoder
from blip3o_jax.systems.parts import recorded
from blip3o_jax.verify.torch import decoder
from blip3o_jax.verify.torch import nexus
from blip3o_jax.verify.torch import system
from blip3o_jax.verify.torch.checkpoint import Checkpoint
from blip3o_jax.weights import hub
from blip3o_jax.weights import safetensors
from blip3o_jax.weights.safetensors import Tensors

Arrays = dict[str, np.ndarray]
Part = Literal["all", "system", "decoder"]
FOLDER = "diffusion-decoder"
# What records a system: `inputs(checkpoint, rng)`, and `record(checkpoint, given, allowed)`.
RECORDERS: dict[str, Any] = {"blip3o": system, "nexus_gen": nexus}


def record(
  model: str,
  output: Path,
  *,
  part: Part = "all",
  seed: int = 0,
  inputs: Sequence[str] = (),
  allowed: int = 0,
  say: Callable[[str], None],
) -> None:
  """Writes recordings of a released-layout directory, or of a hub id.

  Args:
    output: of the system; that of the pixel decoder stands beside it, NAME.decoder.safetensors.
    part: "all" is the pixel decoder, too, where there is one. seed: of random inputs.
    inputs: recordings whose inputs are taken instead. allowed: as in `record_system`.
    say: is given a line for each file.

  Raises:
    ImportError: the test extra is absent. FileNotFoundError, ValueError, RuntimeError: files that
      are absent, damaged or incomplete.
  """
  if output.suffix != ".safetensors":
    raise ValueError(f"--output {output}: expected a name that ends in .safetensors")
  directory = hub.local_directory(model)
  kind = "" if part == "decoder" else kind_of(directory)
  given = dict(given_inputs(kind, file) for file in inputs)
  if part != "decoder":
    made = record_system(directory, seed=seed, given=given.get("system"), allowed=allowed)
    save(made, output)
    say(f"{output}: {len(made)} tensors")
  if part == "decoder" or (part == "all" and (directory / FOLDER).is_dir()):
    made = record_decoder(directory, seed=seed, given=given.get("decoder"))
    beside = output.with_suffix(".decoder.safetensors")
    save(made, beside)
    say(f"{beside}: {len(made)} tensors")


def kind_of(directory: Path) -> str:
  """The system of a directory, which must be one that PyTorch can record.

  Raises:
    FileNotFoundError, ValueError: no config.json, or of another system.
  """
  Checkpoint.check(directory)
  kind = systems.of(directory)
  if kind not in RECORDERS:
    raise ValueError(f"{directory}: of the system {kind}; recorded are {', '.join(RECORDERS)}")
  return kind


def given_inputs(kind: str, file: str) -> tuple[str, Arrays]:
  """ "system" or "decoder", and the inputs of a recording, its outputs left out.

  Args:
    kind: of the system; "" for a decoder alone.

  Raises:
    FileNotFoundError, ValueError: an absent or damaged file; see `recorded.choose`.
  """
  tensors = Tensors(Path(file))
  offers = {"decoder": of_decoder.recorded(tensors)}
  if kind:
    offers["system"] = dict(systems.SYSTEMS[kind].recorded(tensors))
  part, calls = recorded.choose(offers, tensors, file)
  return part, {n: tensors.read(n) for call, _ in calls.values() for n in call.inputs}


def record_system(directory: Path, *, seed: int, given: Arrays | None, allowed: int = 0) -> Arrays:
  """Inputs and outputs of the system of a released-layout directory.

  Args:
    directory: of the model. seed: of random inputs, where none are `given`.
    allowed: greedy answers take ids below it; 0 is as the system's recorder has it.

  Raises:
    FileNotFoundError, ValueError, RuntimeError: files that are absent, damaged or incomplete.
  """
  kind, checkpoint = kind_of(directory), Checkpoint(directory)
  recorder = RECORDERS[kind]
  if given is None:
    given = recorder.inputs(checkpoint, np.random.default_rng(seed))
  _complete(given, systems.SYSTEMS[kind].recorded(given), directory)
  return {**given, **recorder.record(checkpoint, given, allowed)}


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
  _complete(given, of_decoder.CALLS, directory)
  return {**given, **decoder.record(home, given)}


def _complete(given: Arrays, calls: Mapping[str, recorded.Call], directory: Path) -> None:
  asked = {n for call in calls.values() for n in call.inputs} - set(given)
  lost = sorted(n for n in asked if not any(call.gives(n) for call in calls.values()))
  if lost:
    raise ValueError(f"inputs to record {directory} lack {', '.join(lost)}")


def save(made: Arrays, file: Path) -> None:
  """Writes a recording under another name and renames it.

  Its metadata say in which order pictures are resized here, for inputs that were pictures.
  """
  file.parent.mkdir(parents=True, exist_ok=True)
  arrays = {n: np.asarray(v, order="C") for n, v in sorted(made.items())}
  with files.replacing(file) as partial:
    safetensors.save(arrays, partial, {"resize": images.RESIZE})
