"""Extractors that tests name: quick functions of pictures and of texts, in one space."""

from collections.abc import Sequence

import numpy as np

COLORS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}


def colors(pixels: np.ndarray) -> np.ndarray:
  """float64[B, 3]: the mean of each colour, 0 to 1."""
  assert pixels.dtype == np.uint8
  assert pixels.ndim == 4
  return pixels.mean((1, 2)) / 255


def words(texts: Sequence[str]) -> np.ndarray:
  """float64[B, 3]: which colours a text names."""
  return np.asarray(
    [np.sum([COLORS[w] for w in text.split() if w in COLORS], axis=0) for text in texts], np.float64
  )


def moments(pixels: np.ndarray) -> np.ndarray:
  """float32[B, 6]: mean and spread of each colour."""
  return np.concatenate([pixels.mean((1, 2)), pixels.std((1, 2))], axis=1).astype(np.float32)


def flat(pixels: np.ndarray) -> np.ndarray:
  """Not as an extractor should be: one number for all."""
  return pixels.mean(keepdims=True)[0]


def nothing(pixels: np.ndarray) -> np.ndarray:
  """Not finite."""
  return np.full((len(pixels), 2), np.nan)


moments.fingerprint = "moments of tests, 1"  # type: ignore[attr-defined]
