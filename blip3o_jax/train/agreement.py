"""What the processes of a run must know alike: short texts. One process agrees with itself."""

import json
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np


def first(text: str) -> str:
  """The first text of all processes that is not empty; all of them must call this."""
  return next((each for each in _gather(text) if each), "")


def of_primary(value: Any) -> Any:
  """The JSON-ready value of process 0, which all get; all of them must call this."""
  return json.loads(_gather(json.dumps(value))[0])


def _gather(text: str) -> list[str]:
  if jax.process_count() == 1:
    return [text]
  data = np.frombuffer(text.encode(), np.uint8)
  lengths = np.asarray(multihost_utils.process_allgather(np.int32(len(data))))
  row = np.zeros(max(1, lengths.max()), np.uint8)
  row[: len(data)] = data
  rows = np.asarray(multihost_utils.process_allgather(row))
  return [bytes(each[:n]).decode() for each, n in zip(rows, lengths, strict=True)]
