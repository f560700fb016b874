"""Values of a row: texts, lists, and marks of where pictures stand. Knows no form of rows.

A row is a dict, of JSON or of parquet.
"""

from collections.abc import Mapping
import json
import re
from typing import Any
from typing import NamedTuple

from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.records import Record
from blip3o_jax.data.text.chat import MARK

_LEADING = re.compile(rf"(?:\s*{MARK})*\s*")
Row = Mapping[str, Any]


class Unread:
  """Stands for pictures of a row that were not read: how many there are is not known."""


UNREAD = Unread()


class Made(NamedTuple):
  """A record without its pictures, and what they are: names, bytes, or {bytes, path}."""

  record: Record
  image: Any = None
  inputs: tuple[Any, ...] = ()
  rejected: tuple[Any, ...] = ()


def value_of(row: Row, field: str) -> Any:
  """A field of a row; `a.b` is b inside a, which may be JSON in a text. None for what is absent."""
  value: Any = row
  for part in [field] if field in row else field.split("."):
    value = decoded(value)
    if not isinstance(value, Mapping):
      return None
    value = value.get(part)
  return value


def first_of(row: Row, named: str, known: tuple[str, ...]) -> str | None:
  """The field that is meant: the one that is named, or the first known one with a value."""
  if named:
    return named
  for field in known:  # millions of rows come by: no generator
    if field in row and has(row[field]):
      return field
  return None


def has(value: Any) -> bool:
  """Whether a field has a value: not null, "" or an empty list."""
  return value is not None and value != "" and value != []


def listed(value: Any) -> list[Any]:
  """A value as a list: nothing, one, or what is in a list."""
  if isinstance(value, list | tuple):
    return list(value)
  return [value] if has(value) else []


def decoded(value: Any) -> Any:
  """An object or a list that stands in a text as JSON, or what was given."""
  if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
    try:
      return json.loads(value)
    except (ValueError, RecursionError):
      return value
  return value


def text(value: Any, name: str, *, blank: bool = False) -> str:
  """A text of a row.

  Args:
    blank: whether it may be white space. name: how errors call the record.

  Raises:
    BadRecord: of kind "text", no text, or one that UTF-8 cannot hold; of kind "empty".
  """
  try:
    out = value.decode("utf-8") if isinstance(value, bytes) else value
    if not isinstance(out, str):
      raise BadRecord(f"{name}: a text is a {type(value).__name__}, expected a string", "text")
    out.encode("utf-8")
  except UnicodeError as error:
    raise BadRecord(f"{name}: a text is not UTF-8: {error}", "text") from None
  if not blank and not out.strip():
    raise BadRecord(f"{name}: a caption, question or answer of it is empty", "empty")
  return out


def placed(texts: list[str], pictures: int | None, name: str) -> tuple[list[str], bool]:
  """Texts with the marks of their pictures, and whether they keep them; see `rows`.

  Args:
    pictures: how many there are, None where that is not known.

  Raises:
    BadRecord: of kind "lists", another number of marks.
  """
  marks = sum(each.count(MARK) for each in texts)
  if pictures is not None and marks != pictures:
    raise BadRecord(f"{name}: {marks} marks {MARK} for {pictures} pictures", "lists")
  if not marks:
    return texts, False
  leading = _LEADING.match(texts[0])
  assert leading is not None  # it matches nothing as well
  if leading.group().count(MARK) < marks:
    return texts, True
  return [texts[0][leading.end() :], *texts[1:]], False
