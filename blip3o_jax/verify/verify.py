"""A recording replayed through a checkpoint: one comparison for every recorded output."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
from pathlib import Path
from typing import Any
from typing import Literal

import jax
import numpy as np

from blip3o_jax.systems.blip3o import replay
from blip3o_jax.systems.blip3o import verbs
from blip3o_jax.systems.parts import painter_replay
from blip3o_jax.verify import compare
from blip3o_jax.verify import recordings
from blip3o_jax.weights.safetensors import Tensors

Dtype = Literal["float32", "bfloat16"]


def read(file: str | Path) -> dict[str, np.ndarray]:
  """The tensors of a recording.

  Raises:
    FileNotFoundError, ValueError: an absent or damaged file, an input that is not finite.
  """
  tensors = Tensors(Path(file))
  return {name: tensors.read(name) for name in tensors}


def check(recorded: Mapping[str, np.ndarray], where: str) -> None:
  """Everything that can be wrong with a recording before a model is loaded.

  Raises:
    ValueError: see `recordings.calls`; an input that holds NaN.
  """
  calls = recordings.calls(recorded, where)
  for call, _ in calls.values():
    for name in call.inputs:
      if not np.isfinite(np.asarray(recorded[name], np.float64)).all():
        raise ValueError(f"{where}: the input {name} holds NaN or infinity")
  if "unet" in calls or "loop" in calls:
    for name in ("features", "null_features"):
      try:
        painter_replay.grid_of(recorded[name])
      except ValueError as error:
        raise ValueError(f"{where}: {name}: {error}") from None


def verify(
  directory: str | Path,
  recorded: Mapping[str, np.ndarray],
  *,
  dtype: Dtype = "float32",
  tolerances: Sequence[tuple[str, float]] = (),
  where: str = "recording",
) -> Iterator[compare.Row]:
  """Replays the recorded inputs and yields a comparison for every recorded output, as they come.

  Args:
    directory, recorded, dtype, where: as in `replayed`.
    tolerances: of the user, see `recordings.tolerance`.

  Raises:
    See `replayed`.
  """
  for name, found in replayed(directory, recorded, dtype=dtype, where=where):
    allowed = recordings.tolerance(name, dtype, tolerances)
    if name == "und.greedy_tokens" and dtype == "bfloat16":
      worst = float(np.max(found))  # a shortfall, already relative: see `replay.replay`
      yield compare.Row(name, found.shape, worst, worst, allowed)
    else:
      yield compare.compare(name, found, recorded[name], allowed)


def replayed(
  directory: str | Path,
  recorded: Mapping[str, np.ndarray],
  *,
  dtype: Dtype = "float32",
  where: str = "recording",
) -> Iterator[tuple[str, np.ndarray]]:
  """Replays the recorded inputs and yields (name, what we make) for every recorded output.

  Args:
    directory: of the model, in any layout that `verbs.load` reads.
    recorded: from `read`. dtype: that the networks are stored and compute in.
    where: names the recording in errors.

  Raises:
    ValueError: a recording that is incomplete, contradicts itself or does not fit the model.
    FileNotFoundError, ValueError: what is wrong with the model.
  """
  check(recorded, where)
  model = _load(Path(directory), recorded, dtype)
  for name, (call, wanted) in recordings.calls(recorded, where).items():
    inputs = {n: recorded[n] for n in call.inputs}
    outputs = {n: recorded[n] for n in wanted}
    try:
      with _precision(dtype):
        found = (
          replay.replay(model, name, inputs, outputs)
          if isinstance(model, verbs.Model)
          else painter_replay.replay(model, name, inputs)
        )
    except (TypeError, ValueError, IndexError) as error:
      lines = str(error).strip().splitlines() or [repr(error)]
      raise ValueError(f"{where}: {name} does not fit the model: {lines[0]}") from error
    yield from ((output, np.asarray(found[output])) for output in wanted)


def _precision(dtype: Dtype) -> Any:
  """Float32 matrix products in float32 on every platform; bfloat16 is tried as it is run."""
  return (
    contextlib.nullcontext() if dtype == "bfloat16" else jax.default_matmul_precision("highest")
  )


def _load(directory: Path, recorded: Mapping[str, np.ndarray], dtype: Dtype) -> Any:
  if recordings.kind_of(recorded) == "system":
    return verbs.load(directory, dtype=dtype, decoder=False)
  grid = painter_replay.grid_of(recorded["features"]) if "features" in recorded else 1
  return verbs.load_decoder(directory, grid, dtype)
