"""Checkpoints that are not what was written: what is damage, and how it is said."""

from collections.abc import Sequence

from etils import epath
import jax


class DamagedError(ValueError):
  """A checkpoint whose files are missing, truncated or changed."""


def damaged(path: epath.Path, item: str, why: str, others: Sequence[int]) -> DamagedError:
  """The error of an item of a checkpoint; `others` are the steps of the run's other ones."""
  hint = f"; move it out of {path.parent} to use step {others[-1]}" if others else ""
  return DamagedError(f"{path}: item {item!r} is damaged: {why}{hint}")


def unreadable(path: epath.Path, item: str, error: Exception, others: Sequence[int]) -> Exception:
  """What an error of a reader is: damage, unless the fault is with who reads."""
  if isinstance(error, MemoryError | jax.errors.JaxRuntimeError):
    return error
  if isinstance(error, PermissionError) or "PERMISSION_DENIED" in str(error):
    return ValueError(f"{path}: item {item!r} may not be read ({text(error)})")
  return damaged(path, item, text(error), others)


def text(error: Exception) -> str:
  """An error in one line."""
  return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def some(names: Sequence[str]) -> str:
  """The first names of many."""
  return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
