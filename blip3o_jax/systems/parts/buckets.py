"""The few shapes that calls are padded to, so that another number of rows compiles nothing."""

import numpy as np


def power(n: int, least: int = 1) -> int:
  """The smallest power of two that is at least n and `least`."""
  return max(least, 1 << (n - 1).bit_length())


def fine(n: int, least: int) -> int:
  """As `power`, or three quarters of it where that is enough; `least` is a power of two."""
  whole = power(n, least)
  return whole * 3 // 4 if n <= whole * 3 // 4 and whole > least else whole


def repeat_last(x: np.ndarray, count: int) -> np.ndarray:
  """[B, ...] -> [count, ...]: the last row as often as there are rows too few."""
  return np.concatenate([x, np.repeat(x[-1:], count - len(x), 0)]) if count > len(x) else x
