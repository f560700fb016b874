"""Two arrays compared, and a table of such comparisons. Numpy; knows no network."""

from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import numpy as np

# One wrong value hides in the norm of a large tensor. A value may be off by this many tolerances of
# its own size plus the tensor's root mean square; rounding alone reaches two.
SINGLE = 10


@dataclasses.dataclass(frozen=True)
class Row:
  """One comparison.

  Attributes:
    name, shape: of the recorded tensor. relative_error: |a - b| / |b|. max_error: max |a - b|.
    tolerance: of the relative error. note: what else is wrong.
  """

  name: str
  shape: tuple[int, ...]
  relative_error: float
  max_error: float
  tolerance: float
  note: str = ""

  @property
  def ok(self) -> bool:
    """False above the tolerance, and for NaN."""
    return self.relative_error <= self.tolerance and not self.note


def relative_error(a: Any, b: Any) -> float:
  """|a - b| / |b| in float64, over all elements.

  0 where both are all zero, infinite where `b` alone is, NaN where either holds a NaN.

  Raises:
    ValueError: different shapes; a broadcast would hide a wrong one.
  """
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  if a.shape != b.shape:
    raise ValueError(f"shapes {a.shape} and {b.shape}")
  difference, size = float(np.linalg.norm(a - b)), float(np.linalg.norm(b))
  if size == 0:
    return math.inf if difference > 0 else difference  # a NaN stays
  return difference / size


def compare(name: str, found: Any, recorded: np.ndarray, tolerance: float) -> Row:
  """One output of ours beside the recorded one; arrays of any real dtype, compared in float64.

  A found shape other than the recorded one is a failure, not an exception.
  """
  a, b = np.asarray(found, np.float64), np.asarray(recorded, np.float64)
  if a.shape != b.shape:
    return Row(name, b.shape, math.inf, math.inf, tolerance, f"found shape {a.shape}")
  notes = [
    f"{who} holds NaN or infinity"
    for who, value in (("ours", a), ("the recording", b))
    if not np.isfinite(value).all()
  ]
  if notes:
    return Row(name, b.shape, math.nan, math.nan, tolerance, "; ".join(notes))
  largest = float(np.max(np.abs(a - b), initial=0.0))
  if a.size:
    allowed = SINGLE * tolerance * (np.abs(b) + np.sqrt(np.mean(np.square(b))))
    worst = np.unravel_index(np.argmax(np.abs(a - b) - allowed), b.shape)
    if abs(a[worst] - b[worst]) > allowed[worst]:
      place = ", ".join(str(i) for i in worst)
      notes.append(f"at [{place}] ours is {a[worst]:.8g}, recorded {b[worst]:.8g}")
  return Row(name, b.shape, relative_error(a, b), largest, tolerance, "; ".join(notes))


HEADER = f"{'shape':<20}  {'relative':>9}  {'max':>9}  {'tolerance':>9}  verdict"


def header(width: int) -> str:
  """The first line of the table for names of `width` characters."""
  return f"{'tensor':<{width}}  {HEADER}"


def line(row: Row, width: int) -> str:
  """A line of the table."""
  verdict = "ok" if row.ok else "FAILED" + (f": {row.note}" if row.note else "")
  return (
    f"{row.name:<{width}}  {row.shape!s:<20}  {row.relative_error:>9.2e}  {row.max_error:>9.2e}  "
    f"{row.tolerance:>9.1e}  {verdict}"
  )


def summary(rows: Sequence[Row]) -> dict[str, Any]:
  """{"tensors": {name: ...}, "ok": all of them}, for JSON; an error that is no number is null."""

  def number(value: float) -> float | None:
    return value if math.isfinite(value) else None

  tensors = {
    row.name: {
      "relative_error": number(row.relative_error),
      "max_error": number(row.max_error),
      "shape": list(row.shape),
      "tolerance": row.tolerance,
      "ok": row.ok,
    }
    for row in rows
  }
  return {"tensors": tensors, "ok": bool(rows) and all(row.ok for row in rows)}
