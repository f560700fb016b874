"""A list (JSON, JSONL, parquet) of rows that name pictures and their captions, as an index.

Of JSONL the index holds where each line lies, of JSON and parquet the captions themselves.
"""

import array
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
import itertools
import json
from typing import Any
from typing import NamedTuple

import numpy as np

from blip3o_jax.data import storage
from blip3o_jax.data.index import Scanned
from blip3o_jax.data.sources import groups
from blip3o_jax.data.sources.archives import sizes
from blip3o_jax.data.sources.fields import value_of
from blip3o_jax.files import stranger

CAPTIONS = ("prompt", "caption", "text")
NAMES = ("file_name", "image", "img_path", "path", "key", "id")
INPUTS = ("input_images", "input_image")
LINES = (".jsonl", ".ndjson")
LOOKED = 100  # rows at the beginning that a field is guessed by
_ROWS = 4096
LEFT = {
  "object": "rows that are no JSON objects",
  "name": "rows that name no picture, or more than one",
  "caption": "rows without a caption, or with one that is no text",
  "blank": "rows whose caption is empty or white space",
  "inputs": "rows whose input pictures are no list of names",
}


class _Row(NamedTuple):
  value: Any
  offset: int = -1  # of a line of JSONL
  size: int = 0
  key: str = ""  # of a row in a JSON object


class Fields(NamedTuple):
  """Fields of a row: of the caption, of the picture's name, of the input pictures ("" for none)."""

  caption: str = ""
  name: str = ""
  inputs: str = ""


def scan(path: str, *, named: Fields) -> Scanned:
  """The rows of a list.

  Args:
    named: fields, "" to choose: the first of `CAPTIONS`, of `NAMES`, of `INPUTS` that rows at the
      beginning have.

  Returns:
    The key is the picture's name. Columns caption, inputs uint8[n], the number of the field, from
    1, of `choices`; of JSONL also line int64[n] and line_bytes uint32[n]; texts caption (empty for
    JSONL) and inputs, a JSON list of names.

  Raises:
    ValueError: a file of another kind, damaged JSON, a field that no row has.
  """
  rows = _rows(path)
  head = list(itertools.islice(rows, LOOKED))
  fields = _chosen(path, head, named)
  counts: Counter[str] = Counter()
  first: dict[str, str] = {}
  keys: list[bytes] = []
  captions: list[bytes] = []
  inputs: list[bytes] = []
  places = array.array("q")  # tuples would take more memory than all else
  total, problem = 0, ""
  for number, row in enumerate(itertools.chain(head, rows)):
    total += 1
    if isinstance(row.value, json.JSONDecodeError) and row.size < 0:
      problem = f"cut in its last line ({row.value})"
      continue
    said, name, caption, names = _read(row, fields)
    if said:
      counts[said] += 1
      first.setdefault(LEFT[said], f"row {number}")
      continue
    keys.append(name.encode("utf-8", "surrogateescape"))
    is_line = row.offset >= 0
    captions.append(b"" if is_line else caption.encode("utf-8", "surrogatepass"))
    inputs.append(json.dumps(names).encode() if names else b"[]")
    places.extend((row.offset, row.size))
  lines = np.array(places, np.int64).reshape(-1, 2)
  columns: dict[str, np.ndarray] = {"line": lines[:, 0], "line_bytes": sizes(lines[:, 1])}
  for field, known in zip(("caption", "inputs"), (CAPTIONS, INPUTS), strict=True):
    value = getattr(fields, field)
    number = choices(getattr(named, field), known).index(value) + 1 if value else 0
    columns[field] = np.full(len(keys), number, np.uint8)
  noted = {
    f"rows have their {what} in the field {getattr(fields, field)!r}": len(keys)
    for field, what in zip(Fields._fields, ("caption", "picture's name", "inputs"), strict=True)
    if getattr(fields, field) and not getattr(named, field)
  }
  left = {words: counts[kind] for kind, words in LEFT.items() if counts[kind]}
  texts = {"caption": captions, "inputs": inputs}
  return Scanned(columns, keys, left, first, problem, noted=noted, texts=texts)


def choices(named: str, known: tuple[str, ...]) -> tuple[str, ...]:
  """The fields that a number in the index stands for."""
  return (named,) if named else known


def _chosen(path: str, head: list[_Row], named: Fields) -> Fields:
  """The fields that are read; raises ValueError where rows at the beginning have none of them."""
  objects = [row.value for row in head if isinstance(row.value, dict)]
  found = []
  for value, known, what in zip(
    named, (CAPTIONS, NAMES, INPUTS), ("caption", "join", "inputs"), strict=True
  ):
    there = [
      f for f in choices(value, known) if any(value_of(row, f) is not None for row in objects)
    ]
    bare = {"caption": any(isinstance(row.value, str) for row in head), "inputs": not value}
    bare["join"] = any(row.key for row in head)
    if what == "join" and bare["join"] and not value:
      there = [""]
    if not there and not bare[what]:
      shown = ", ".join(sorted({field for row in objects for field in row})[:20]) or "none"
      raise ValueError(
        f"{path}: its first rows have no field {' or '.join(choices(value, known))}; they have "
        f"{shown}. Name one in reading.{what}"
      )
    found.append(there[0] if there else "")
  return Fields(*found)


def _read(row: _Row, fields: Fields) -> tuple[str, str, str, list[str]]:
  """(why it is left out, of `LEFT`, or ""; picture, caption, input pictures) of a row."""
  value = row.value
  if isinstance(value, str) and row.key:
    value = {fields.caption: value}
  if not isinstance(value, dict):
    return "object", "", "", []
  name: Any = value_of(value, fields.name) if fields.name else row.key
  if isinstance(name, list) and len(name) == 1:
    name = name[0]
  if isinstance(name, int) and not isinstance(name, bool):
    name = str(name)
  if not isinstance(name, str) or not name:
    return "name", "", "", []
  caption = value_of(value, fields.caption)
  if not isinstance(caption, str):
    return "caption", "", "", []
  if not caption.strip():
    return "blank", "", "", []
  names = value_of(value, fields.inputs) if fields.inputs else None
  names = [] if names is None else [names] if isinstance(names, str) else names
  if not isinstance(names, list) or not all(isinstance(each, str) and each for each in names):
    return "inputs", "", "", []
  return "", name, caption, names


def _rows(path: str) -> Iterator[_Row]:
  if path.lower().endswith(".parquet"):
    return _parquet(path)
  with storage.opened(path) as stream:
    start = stream.read(4096)
  if what := stranger(start):
    raise ValueError(f"{path}: {what}")
  if path.lower().endswith(LINES):
    return _lines(path)
  return _json(path)


def _lines(path: str) -> Iterator[_Row]:
  """Rows of JSONL; the value is an error for a line that is no JSON, the size -1 for a cut one."""
  offset = 0
  with storage.opened(path) as stream:
    for line in stream:
      if line.strip():
        value: Any
        size = len(line)
        try:
          value = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
          value = error
          if isinstance(error, json.JSONDecodeError) and not line.endswith(b"\n"):
            size = -1
        yield _Row(value, offset, size)
      offset += len(line)


def _json(path: str) -> Iterator[_Row]:
  """Rows of a JSON list or object, or of lines in a file that is called .json."""
  with storage.opened(path) as stream:
    data = stream.read()
  try:
    value = json.loads(data.decode("utf-8-sig"))
  except (ValueError, RecursionError) as error:
    if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
      yield from _lines(path)
      return
    raise ValueError(f"{path}: not valid JSON: {error}. Fetch it again") from None
  if isinstance(value, dict):
    yield from (_Row(row, key=name) for name, row in value.items())
  elif isinstance(value, list):
    yield from (_Row(row) for row in value)
  else:
    raise ValueError(f"{path}: expected a JSON list or object, got {type(value).__name__}")


def _parquet(path: str) -> Iterator[_Row]:
  parquet = groups.pyarrow_parquet()
  import pyarrow

  with storage.opened(path) as stream:
    try:
      file = parquet.ParquetFile(stream)
      # Pictures that stand in the list as well would fill the memory.
      wanted = [
        field.name
        for field in file.schema_arrow
        if not pyarrow.types.is_binary(field.type) and not pyarrow.types.is_struct(field.type)
      ]
      for batch in file.iter_batches(_ROWS, columns=wanted):
        yield from (_Row(row) for row in batch.to_pylist())
    except pyarrow.ArrowInvalid as error:
      raise ValueError(f"{path}: not readable as parquet: {error}. Fetch it again") from None


def caption_reader(path: str, named: str) -> Callable[[int, int, int], str]:
  """Reads the caption of a line of JSONL, given its offset, bytes and the number of the field.

  Raises:
    OSError: it cannot be read. ValueError, KeyError, TypeError: the list is another one.
  """
  fields = choices(named, CAPTIONS)

  def read(offset: int, size: int, number: int) -> str:
    value = json.loads(storage.read(path, offset, size).decode("utf-8-sig"))
    caption = value_of(value, fields[number - 1])
    if not isinstance(caption, str):
      raise TypeError("expected text")
    return caption

  return read
