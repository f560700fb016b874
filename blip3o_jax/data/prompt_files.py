"""Files of prompts, as a person writes them and as benchmarks publish them.

A text file has a prompt a line. JSONL has an object or a string a line, JSON a list of them or an
object of objects, CSV a header and rows. Every error names the file and the line. Imports no jax.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import csv
import io
import json
from pathlib import Path
from typing import Any
from typing import NamedTuple

from blip3o_jax import files

KEY = "key"  # the field that names a row of an object of objects


class Row(NamedTuple):
  """One row of a file.

  Attributes:
    where: the file and the line or entry, for errors. fields: of a text line {"prompt": line}.
  """

  where: str
  fields: Mapping[str, Any]

  def text(self, *names: str) -> str:
    """The first of the fields that is there, a text with a word in it.

    Raises:
      ValueError: none is there, or it is no such text.
    """
    for name in names:
      if name in self.fields:
        value = self.fields[name]
        if not isinstance(value, str) or not value.strip():
          raise ValueError(f"{self.where}: {name} is {_short(value)}; expected a text")
        return value
    expected = " or ".join(repr(name) for name in names)
    found = ", ".join(map(str, self.fields)) or "nothing"
    raise ValueError(f"{self.where}: no field {expected}; it has {found}")


def read(path: Path) -> list[Row]:
  """The rows of a file, blank lines and rows left out.

  What a file is, its name says (.txt, .jsonl, .json, .csv); of another name what it begins with: an
  object or a list of JSON, else text.

  Raises:
    FileNotFoundError: no such file. ValueError: a line that is not as it should be; no row at all.
  """
  if path.is_dir():
    raise ValueError(f"{path}: is a folder; name a file of prompts")
  if not path.is_file():
    raise FileNotFoundError(f"{path}: no such file of prompts")
  data = path.read_bytes()
  if what := files.stranger(data):
    raise ValueError(f"{path}: {what}")
  try:
    text = data.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    line = data.count(b"\n", 0, error.start) + 1
    raise ValueError(f"{path}, line {line}: not UTF-8 text") from None
  rows = list(_rows(path, text.replace("\r\n", "\n")))
  if not rows:
    raise ValueError(f"{path}: no prompts in it")
  return rows


def _rows(path: Path, text: str) -> Iterator[Row]:
  kind = path.suffix.lower()
  if kind not in (".txt", ".jsonl", ".json", ".csv"):
    kind = {"{": ".jsonl", "[": ".json"}.get(text.lstrip()[:1], ".txt")
  if kind == ".json":
    # JSONL is often called .json.
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) > 1 and all(_is_object(line) for line in lines[:2]):
      kind = ".jsonl"
  if kind == ".csv":
    return _csv(path, text)
  if kind == ".json":
    return _json(path, text)
  return _lines(path, text, kind)


def _lines(path: Path, text: str, kind: str) -> Iterator[Row]:
  # Not splitlines, which also cuts at characters that may stand in a prompt.
  for number, line in enumerate(text.split("\n"), 1):
    if not line.strip():
      continue
    where = f"{path}, line {number}"
    if kind == ".txt":
      yield Row(where, {"prompt": line.strip()})
      continue
    try:
      value = json.loads(line)
    except ValueError as error:
      raise ValueError(f"{where}: not valid JSON: {error}") from None
    yield _row(where, value)


def _json(path: Path, text: str) -> Iterator[Row]:
  try:
    value = json.loads(text)
  except ValueError as error:
    raise ValueError(f"{path}: not valid JSON: {error}") from None
  if isinstance(value, dict) and value and all(isinstance(v, dict) for v in value.values()):
    for key, fields in value.items():
      yield Row(f"{path}, entry {key!r}", {KEY: key, **fields})
    return
  if not isinstance(value, list):
    raise ValueError(f"{path}: expected a list of prompts, or an object of objects")
  for number, each in enumerate(value):
    yield _row(f"{path}, entry {number}", each)


def _csv(path: Path, text: str) -> Iterator[Row]:
  reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
  try:
    for fields in reader:
      where = f"{path}, line {reader.line_num}"
      if None in fields or None in fields.values():
        columns = len(reader.fieldnames or ())
        raise ValueError(f"{where}: another number of columns than the header, which has {columns}")
      if any(value.strip() for value in fields.values()):
        yield Row(where, fields)
  except csv.Error as error:
    raise ValueError(f"{path}, line {reader.line_num}: not valid CSV: {error}") from None


def _row(where: str, value: Any) -> Row:
  if isinstance(value, str):
    if not value.strip():
      raise ValueError(f"{where}: an empty prompt")
    return Row(where, {"prompt": value})
  if not isinstance(value, dict):
    raise ValueError(f"{where}: expected an object or a text, found {_short(value)}")
  return Row(where, value)


def _is_object(line: str) -> bool:
  try:
    return isinstance(json.loads(line), dict)
  except ValueError:
    return False


def _short(value: Any) -> str:
  return repr(value)[:60]
