"""A record as bytes that say what they are: what the files of `blip3o pack` hold.

Layout, version 1. All numbers are little-endian.

  4 bytes    "B3R1"
  4 bytes    n, the length of the header
  n bytes    the header: JSON in UTF-8, filled up with blanks
  the rest   what the header's fields name

The header is an object: "id" (of the record in the set that was packed), "hash" (uint32, by which
that set chooses its held-out records), "prompt", "answer", "turns" ([[question, answer], ...]),
"kind", "extra" (an object), each left out where it is empty, and "fields", a list of
[name, kind, offset, size, dtype, shape]: `offset` bytes behind the header's end lie `size` bytes. A
name is "image", "inputs" (once for each, in order), "features", "extra.NAME" or, once for each of
several, "extra.NAME[]"; a kind is "encoded" (a picture's file, as it was; bytes of "extra"),
without dtype and shape, or "array" (in C order, of a dtype in DTYPES). The header's end and each
offset are multiples of 64.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import json
import struct
from typing import Any

from ml_dtypes import bfloat16
import numpy as np

from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.records import Record

LAYOUT, VERSION = "blip3o-records", 1
MAGIC = b"B3R1"
DTYPES: dict[str, Any] = {"bfloat16": np.dtype(bfloat16)}
DTYPES |= {n: np.dtype(n) for n in ("float16", "float32", "float64", "bool", "uint8", "uint16")}
DTYPES |= {n: np.dtype(n) for n in ("uint32", "int8", "int16", "int32", "int64")}
_PREFIX = struct.Struct("<4sI")
_ALIGN = 64
_DECODER = json.JSONDecoder()
_EXTRA, _SEVERAL = "extra.", "[]"


def pack(record: Record, key: str, digest: int) -> bytes:
  """A record as bytes, the same for the same record. Pictures and arrays are kept as they are.

  Args:
    key: the record's id. digest: uint32, its hash of `Source.hashes`.

  Raises:
    ValueError: something in it that the layout has no place for, by name.
  """
  blobs: list[bytes] = []
  fields: list[list[Any]] = []
  offset = 0

  def add(name: str, value: bytes | np.ndarray) -> None:
    nonlocal offset
    data = value if isinstance(value, bytes) else np.ascontiguousarray(value).tobytes()
    fields.append([name, "encoded", offset, len(data)])
    if not isinstance(value, bytes):
      dtype = value.dtype.name
      if DTYPES.get(dtype) != value.dtype:
        raise ValueError(f"{key}: {name} is {value.dtype}; expected one of {', '.join(DTYPES)}")
      fields[-1] = [name, "array", offset, len(data), dtype, value.shape]
    blobs.append(data.ljust(_up(len(data)), b"\0"))
    offset += _up(len(data))

  for name, value in parts(record):
    add(name, value)
  plain = {k: v for k, v in record.extra.items() if not (_is_blob(v) or _are_blobs(v))}
  words: dict[str, Any] = {"prompt": record.prompt, "answer": record.answer}
  words |= {"turns": record.turns, "kind": record.kind, "extra": plain}
  head = {"id": key, "hash": int(digest)} | {k: v for k, v in words.items() if v}
  head |= {"fields": fields}
  try:
    text = json.dumps(head, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
  except (TypeError, ValueError) as error:
    raise ValueError(f"{key}: its extra fields have no JSON: {error}") from None
  data = text.encode("utf-8", "surrogatepass")
  data = data.ljust(_up(_PREFIX.size + len(data)) - _PREFIX.size)
  return b"".join([_PREFIX.pack(MAGIC, len(data)), data, *blobs])


def parts(record: Record) -> Iterator[tuple[str, bytes | np.ndarray]]:
  """The fields of a record that are no words, by name, in the order in which they are laid out."""
  for name, value in (("image", record.image), ("features", record.features)):
    if value is not None:
      yield name, value
  for value in record.inputs:
    yield "inputs", value
  for name, value in record.extra.items():
    if _is_blob(value):
      yield f"{_EXTRA}{name}", value
    elif _are_blobs(value):
      for each in value:
        yield f"{_EXTRA}{name}{_SEVERAL}", each


def _is_blob(value: Any) -> bool:
  return isinstance(value, bytes | np.ndarray)


def _are_blobs(value: Any) -> bool:
  """Whether it is several pictures, such as those that a person rejected."""
  return isinstance(value, tuple) and bool(value) and all(map(_is_blob, value))


def unpack(data: bytes | np.ndarray, name: str) -> Record:
  """The record of `pack`; arrays are views of `data`, pictures are copied out.

  Args:
    name: how errors call it.

  Raises:
    BadRecord: cut, damaged, or not of this layout.
  """
  view = data.data if isinstance(data, np.ndarray) else memoryview(data)
  return read(view, *header(view, name), name)


def read(view: memoryview, head: Mapping[str, Any], start: int, name: str) -> Record:
  """As `unpack`, of a record whose header was read: `head`, and where it ends."""
  inputs: list[bytes | np.ndarray] = []
  found: dict[str, Any] = {}
  extra = head.get("extra", {})
  try:
    for field in head["fields"]:
      called, kind, first, size = field[:4]
      first += start
      end = first + size
      if end > len(view):
        raise BadRecord(f"{name}: cut: {called} ends at byte {end} of {len(view)}", "read")
      value: bytes | np.ndarray
      if kind == "array":
        value = np.ndarray(field[5], DTYPES[field[4]], view, first)  # faster than frombuffer
        if value.nbytes != size:
          raise ValueError(f"{called} of {value.nbytes} bytes in {size}")
      else:
        value = bytes(view[first:end])
      if called == "inputs":
        inputs.append(value)
      elif called.startswith(_EXTRA) and called.endswith(_SEVERAL):
        own = called[len(_EXTRA) : -len(_SEVERAL)]
        extra[own] = (*extra.get(own, ()), value)
      elif called.startswith(_EXTRA):
        extra[called[len(_EXTRA) :]] = value
      else:
        found[called] = value
    image, features = found.pop("image", None), found.pop("features", None)
    if found:
      raise ValueError(f"fields {', '.join(found)}")
  except (LookupError, TypeError, ValueError) as error:
    if isinstance(error, BadRecord):
      raise
    raise BadRecord(f"{name}: its header does not say what lies in it: {error!r}", "read") from None
  return Record(image, tuple(inputs), features, *_words(head), extra, head.get("kind", ""), name)


def texts(head: Mapping[str, Any], name: str) -> Record:
  """The record without pictures and features, of its header; `extra` says how many there are."""
  called = [field[0] for field in head["fields"]]
  inputs = called.count("inputs")
  shown = {"pictures": inputs + called.count("image"), "inputs": inputs}
  extra = {**head.get("extra", {}), **shown}
  return Record(None, (), None, *_words(head), extra, head.get("kind", ""), name)


def _words(head: Mapping[str, Any]) -> tuple[str, str, tuple[tuple[str, str], ...]]:
  turns = tuple([(q, a) for q, a in head["turns"]]) if "turns" in head else ()
  return head.get("prompt", ""), head.get("answer", ""), turns


def length(data: bytes | memoryview) -> int:
  """Bytes up to the end of the header, of the first 8 bytes of a record; 0 if it is none."""
  if len(data) < _PREFIX.size:
    return 0
  magic, size = _PREFIX.unpack(data[: _PREFIX.size])
  return _PREFIX.size + size if magic == MAGIC else 0


def header(data: bytes | memoryview, name: str) -> tuple[dict[str, Any], int]:
  """The header of a record, and where it ends.

  Raises:
    BadRecord: not a record, cut in the header, or no JSON.
  """
  end = length(data)
  if not end or end > len(data):
    raise BadRecord(f"{name}: {'cut in its header' if end else 'not a packed record'}", "read")
  try:
    head, _ = _DECODER.raw_decode(str(data[_PREFIX.size : end], "utf-8", "surrogatepass"))
    if not isinstance(head["id"], str) or not 0 <= head["hash"] < 2**32:
      raise ValueError(f"id {head['id']!r}, hash {head['hash']!r}")
  except (ValueError, KeyError, TypeError) as error:
    raise BadRecord(f"{name}: its header is damaged: {error!r}", "read") from None
  return head, end


def _up(size: int) -> int:
  return -(-size // _ALIGN) * _ALIGN
