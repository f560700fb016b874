"""Checkpoints that are not what was written: what is damage, and how it is said."""

from collections.abc import Sequence
import errno
import logging
import sys
from typing import Any

from etils import epath
import jax

# What a disk without room makes the checkpoint library say.
ROOM = ("No space left", "File too large", "Disk quota exceeded", "RESOURCE_EXHAUSTED")
ERRNOS = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


class DamagedError(ValueError):
  """A checkpoint whose files are missing, truncated or changed."""


class SaveError(OSError):
  """A checkpoint could not be written."""


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


def unwritten(path: epath.Path, error: Exception, whole: Sequence[int]) -> SaveError:
  """The error of a checkpoint that could not be written; `whole` are the run's steps that are."""
  left = f"the newest that is whole is of step {whole[-1]}" if whole else "no other is there"
  said = " ".join(str(error).split())
  known = next((words for words in ROOM if words in said), "")
  why = f"{known}; make room" if known else f"{text(error)}; mend that"
  return SaveError(f"{path}: the checkpoint could not be written: {why} and start again; {left}")


def quietly(found: Any) -> None:
  """For writes that end after the one that failed: each would print a traceback of its own."""
  if "Event loop is closed" not in str(found.exc_value):
    sys.__unraisablehook__(found)


def not_late(record: logging.LogRecord) -> bool:
  """Whether an event loop says something else than that a write after the failed one failed too.

  The library is named where the task is of its own function; where that only hands a file to a
  thread, a disk without room is what tells.
  """
  said = record.getMessage()
  if "exception was never retrieved" not in said:
    return True
  error = record.exc_info[1] if record.exc_info else None
  return not ("orbax" in said or is_full(error))


def is_full(error: BaseException | None) -> bool:
  """Whether an error is of a disk that has no room."""
  return isinstance(error, OSError) and error.errno in ERRNOS


def text(error: Exception) -> str:
  """An error in one line."""
  return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def some(names: Sequence[str]) -> str:
  """The first names of many."""
  return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
