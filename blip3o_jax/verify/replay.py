"""Recordings replayed through a checkpoint: one comparison for every recorded output."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import json
from pathlib import Path
from typing import Any
from typing import Literal

import jax
import numpy as np

from blip3o_jax import files
from blip3o_jax import systems
from blip3o_jax.systems.parts import recorded
from blip3o_jax.verify import compare
from blip3o_jax.verify import recordings
from blip3o_jax.weights import hub

Dtype = Literal["float32", "bfloat16"]


def prove(
  model: str,
  paths: Sequence[str],
  *,
  dtype: Dtype = "float32",
  tolerances: Sequence[str] = (),
  report: Path | None = None,
  say: Callable[[str], None],
) -> bool:
  """Replays recordings through a model, a table each; whether all outputs are within tolerance.

  Args:
    model: a directory or a hub id. paths: of recordings. dtype: as in `replayed`.
    tolerances: see `recordings.parse_tolerance`. report: where figures go as JSON, if anywhere.
    say: is given each line as it comes.

  Raises:
    FileNotFoundError, ValueError: what is wrong with the files, before the model is loaded; see
      `replayed`.
  """
  given = [recordings.parse_tolerance(text) for text in tolerances]
  found = {file: recordings.read(file) for file in paths}
  for file, recording in found.items():
    recordings.check(recording, file)
  directory = hub.local_directory(model)
  rows = []
  for file, recording in found.items():
    width = max(len(name) for name in recording)
    say(compare.header(width))
    for row in verify(directory, recording, dtype=dtype, tolerances=given, where=file):
      say(compare.line(row, width))
      rows.append(row)
  bad = sum(not row.ok for row in rows)
  say(f"{len(rows)} outputs, " + (f"{bad} FAILED" if bad else "all within tolerance"))
  summary = compare.summary(rows)
  if report:
    report.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(report, json.dumps(summary, indent=2) + "\n")
  return bool(summary["ok"])


def verify(
  directory: str | Path,
  recording: Mapping[str, np.ndarray],
  *,
  dtype: Dtype = "float32",
  tolerances: Sequence[tuple[str, float]] = (),
  where: str = "recording",
) -> Iterator[compare.Row]:
  """Replays the recorded inputs and yields a comparison for every recorded output, as they come.

  Args:
    directory, recording, dtype, where: as in `replayed`.
    tolerances: of the user, see `recorded.tolerance`.

  Raises:
    See `replayed`.
  """
  for name, found, bar in replayed(directory, recording, dtype=dtype, where=where):
    allowed = recorded.tolerance(name, bar, dtype, tolerances)
    if isinstance(found, recorded.Errors):
      worst = float(np.max(found.values))
      yield compare.Row(name, recording[name].shape, worst, worst, allowed)
    else:
      yield compare.compare(name, found, recording[name], allowed)


def replayed(
  directory: str | Path,
  recording: Mapping[str, np.ndarray],
  *,
  dtype: Dtype = "float32",
  where: str = "recording",
) -> Iterator[tuple[str, Any, recorded.Bar]]:
  """Replays the recorded inputs and yields (name, what we make, its bar) of every recorded output.

  What we make is an array, or `recorded.Errors`.

  Args:
    directory: of the model, in any layout that its system loads.
    recording: from `recordings.read`. dtype: that the networks are stored and compute in.
    where: names the recording in errors.

  Raises:
    ValueError: a recording that is incomplete, contradicts itself or does not fit the model.
    FileNotFoundError, ValueError: what is wrong with the model.
  """
  who, calls = recordings.check(recording, where)
  systems.of(directory)  # says of a folder of another family which it is
  run = systems.SYSTEMS[who].replay(Path(directory), dtype, recording)
  for name, (call, wanted) in calls.items():
    inputs = {n: recording[n] for n in call.inputs}
    outputs = {n: recording[n] for n in wanted}
    try:
      with _precision(dtype):
        found = run(name, inputs, outputs)
    except (TypeError, ValueError, IndexError) as error:
      lines = str(error).strip().splitlines() or [repr(error)]
      raise ValueError(f"{where}: {name} does not fit the model: {lines[0]}") from error
    for output in wanted:
      value = found[output]
      made = value if isinstance(value, recorded.Errors) else np.asarray(value)
      yield output, made, call.bar(output)


def _precision(dtype: Dtype) -> Any:
  """Float32 matrix products in float32 on every platform; bfloat16 is tried as it is run."""
  return (
    contextlib.nullcontext() if dtype == "bfloat16" else jax.default_matmul_precision("highest")
  )
