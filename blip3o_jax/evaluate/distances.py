"""What distances of features need: sums over a set, which a file keeps, and the cosine of pairs."""

from collections.abc import Mapping
import dataclasses
import json
from pathlib import Path
from typing import Any
import zipfile

import numpy as np

from blip3o_jax import files

FORMAT = "blip3o statistics 1"
ENOUGH = 5  # pictures a dimension, below which a number is said to be biased


@dataclasses.dataclass(frozen=True)
class Statistics:
  """What the distance needs of a set of features.

  Attributes:
    count: of rows. total: float64[D], their sum. products: float64[D, D], the sum of x x^T.
    about: of JSON, what they are of: `folder` and `extractor`, with name and fingerprint each.
  """

  count: int
  total: np.ndarray
  products: np.ndarray
  about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def dimension(self) -> int:
    return len(self.total)

  def save(self, path: Path) -> None:
    """Writes an .npz that is whole or not there."""
    about = np.asarray(json.dumps({"format": FORMAT, **self.about}))
    with files.replacing(path, shared=True) as partial, partial.open("wb") as handle:
      np.savez(handle, count=self.count, total=self.total, products=self.products, about=about)


def empty(dimension: int) -> Statistics:
  return Statistics(0, np.zeros(dimension), np.zeros((dimension, dimension)))


def added(to: Statistics, features: np.ndarray) -> Statistics:
  """Statistics with the rows of float64[B, D] too; the arrays of `to` are used again.

  Raises:
    ValueError: another D.
  """
  if features.shape[1] != to.dimension:
    raise ValueError(
      f"an extractor gave {features.shape[1]} numbers a picture, and {to.dimension} before"
    )
  total, products = to.total, to.products
  total += features.sum(0)
  products += features.T @ features
  return Statistics(to.count + len(features), total, products, to.about)


def load(path: Path) -> Statistics:
  """The statistics of a file that `save` wrote.

  Raises:
    FileNotFoundError: no such file. ValueError: another kind of file.
  """
  if not path.is_file():
    raise FileNotFoundError(f"{path}: no such file of statistics")
  try:
    with np.load(path, allow_pickle=False) as found:
      about = json.loads(str(found["about"]))
      total, products = found["total"], found["products"]
      made = Statistics(int(found["count"]), total, products, about)
  except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
    raise ValueError(f"{path}: no statistics of `blip3o evaluate fid` ({error})") from None
  d = made.dimension if total.ndim == 1 else -1
  whole = about.get("format") == FORMAT if isinstance(about, dict) else False
  finite = np.isfinite(total).all() and np.isfinite(products).all()
  if not whole or products.shape != (d, d) or not finite or made.count < 1:
    raise ValueError(f"{path}: no statistics of `blip3o evaluate fid`, or damaged")
  return dataclasses.replace(made, about={k: v for k, v in about.items() if k != "format"})


def biased(name: str, statistics: Statistics) -> str:
  """What is to be said of a set that is too small; "" where it is not."""
  count, d = statistics.count, statistics.dimension
  if count >= ENOUGH * d:
    return ""
  singular = ", which is singular," if count <= d else ""
  return (
    f"{name}: {count} pictures are few for features of {d} numbers: the covariance{singular} is "
    f"poorly known and the distance biased, mostly upwards. Compare it only with numbers from as "
    f"many pictures; {ENOUGH * d} and more are usual"
  )


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """float64[B] of float64[B, D] and float64[B, D], row by row.

  Raises:
    ValueError: another shape, or a row of zeros, which has no direction.
  """
  if a.shape != b.shape:
    raise ValueError(f"features {list(a.shape)} and {list(b.shape)} cannot be compared row by row")
  norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
  if not norms.all():
    raise ValueError("an extractor gave a row of zeros, which has no direction")
  return (a * b).sum(1) / norms
