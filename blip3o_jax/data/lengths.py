"""Prompt buckets: how much of their tokens is padding, and which ones have the least."""

from collections.abc import Sequence

import numpy as np


def padding(lengths: np.ndarray, buckets: Sequence[int]) -> float:
  """The share of tokens that is padding when each row stands in the smallest bucket that holds it.

  Args:
    lengths: int[n], tokens of each row. buckets: ascending; longer rows are cut to the last.
  """
  rows = np.minimum(np.asarray(lengths, np.int64), buckets[-1])
  total = np.asarray(buckets, np.int64)[np.searchsorted(buckets, rows)].sum()
  return float(1 - rows.sum() / max(int(total), 1))


def best(lengths: np.ndarray, most: int = 6, step: int = 16) -> tuple[int, ...]:
  """The buckets with the least padding that hold every row: at most `most`, multiples of `step`.

  Exact, by dynamic programming over the multiples that occur.

  Raises:
    ValueError: no rows.
  """
  if not len(lengths):
    raise ValueError("no rows to choose buckets for")
  cells = -(-np.maximum(np.asarray(lengths, np.int64), 1) // step)
  ends, counts = np.unique(cells, return_counts=True)
  rows = np.concatenate([[0], np.cumsum(counts)])
  n = len(ends)
  # cost[j]: tokens, in steps, of the first j lengths, the last bucket being ends[j - 1].
  cost, chosen = np.where(np.arange(n + 1) == 0, 0.0, np.inf), []
  for _ in range(min(most, n)):
    after = cost[:, None] + np.concatenate([[0], ends]) * (rows[None, :] - rows[:, None])
    after = np.where(np.arange(n + 1)[:, None] < np.arange(n + 1), after, np.inf)
    chosen.append(after.argmin(0))
    cost = np.minimum(after.min(0), np.where(np.arange(n + 1) == 0, 0.0, np.inf))
  out, at = [], n
  for last in reversed(chosen):
    if not at:
      break
    out.append(int(ends[at - 1]) * step)
    at = int(last[at])
  return tuple(reversed(out))
