"""The chunks of an ArrayRecord file that holds one record a chunk, uncompressed.

That is the Riegeli records format, with an index at the end. Reading it here instead of through
array_record copies a record once instead of thrice, knows a file that is cut from an empty one and
what of it is whole, and goes through `storage`, so that addresses work as well.

A file is a stream of chunks, into which each 64 KiB block puts a header of 24 bytes at its own
beginning. Positions here are those of the stream. A chunk has a header of 40 bytes (hash, bytes of
data, hash of them, type and number of records, bytes of the records) and its data: for one record
without compression a zero, the length of its size, its size (both varints), and the record.
"""

from collections.abc import Iterator
import struct
from typing import NamedTuple

import numpy as np

from blip3o_jax import files
from blip3o_jax.data import storage

BLOCK, BLOCK_HEADER = 2**16, 24
_INSIDE = BLOCK - BLOCK_HEADER  # bytes of the stream in a block
_HEADER = struct.Struct("<QQQQQ")
_SIGNATURE, _RECORDS, _OTHERS = ord("s"), ord("r"), b"smtp"
_BEGINNING = 4096  # bytes of a chunk that are read to know it and, mostly, how its record begins
_VARINTS = 12


class Chunk(NamedTuple):
  """A record: where it lies in the stream, its bytes, and how it begins."""

  position: int
  size: int
  head: bytes


class Cut(Exception):
  """A file that ends, or is damaged, where no end should be; the message says where."""


class Foreign(Exception):
  """A file of other contents, or no ArrayRecord; the message says what was found."""


def walk(path: str, magic: bytes) -> Iterator[Chunk]:
  """The records of a file that begin with `magic`, in order, up to the first that does not.

  Raises:
    Cut: after the last whole record. Foreign: before the first. OSError: see `storage.read`.
  """
  end = storage.stat(path).size
  if what := files.stranger(storage.read(path, 0, 400)):
    raise Foreign(what)
  position, found, tail = 0, 0, 0
  while _place(position) < end or position == 0:
    head = _beginning(path, position, end)
    _, size, _, kind, decoded = _HEADER.unpack_from(head)
    kind, records = kind & 0xFF, kind >> 8
    if position == 0 and (kind != _SIGNATURE or size or records):
      raise Foreign("it does not begin as an ArrayRecord file")
    if kind != _RECORDS and kind not in _OTHERS:
      raise Cut(f"damaged at byte {_place(position)}")
    data, position = position + _HEADER.size, position + _HEADER.size + size
    if size and _place(position - 1) >= end:
      raise Cut(f"cut: byte {_place(position - 1) + 1} is needed, it ends at byte {end}")
    if kind != _RECORDS:
      continue
    taken = _alone(head, size, decoded) if records == 1 and not tail else None
    if taken is not None and head[taken : taken + len(magic)] == magic:
      found += 1
      yield Chunk(data + taken - _HEADER.size, decoded, head[taken : taken + decoded])
    elif not found:
      raise Foreign("an ArrayRecord file of other records, or of compressed ones")
    else:
      tail += 1  # the index, and what points to it: both stand behind the records
  if tail != 2 or end % BLOCK:
    raise Cut(f"cut at byte {end}, where a record ends: the index that follows is not there")


def read(path: str, position: int, size: int) -> np.ndarray:
  """Bytes of the stream, uint8[size]; fewer where the file ends before. Errors: see `storage`."""
  out = np.empty(size, np.uint8)
  view, headers = out.data, bytearray(BLOCK_HEADER)
  at = _INSIDE - position % _INSIDE
  buffers: list[storage.Writable] = [view[:at]]
  while at < size:
    buffers += [headers, view[at : at + _INSIDE]]
    at += _INSIDE
  count = storage.read_into(path, _place(position), buffers)
  wanted = size + BLOCK_HEADER * (len(buffers) // 2)
  if count == wanted:
    return out
  first = len(buffers[0])
  whole, rest = divmod(max(count - first, 0), BLOCK)
  return out[: min(count, first) + whole * _INSIDE + max(rest - BLOCK_HEADER, 0)]


def _place(position: int) -> int:
  """Where a byte of the stream lies in the file."""
  return position + BLOCK_HEADER * (position // _INSIDE + 1)


def _beginning(path: str, position: int, end: int) -> bytes:
  head = read(path, position, _BEGINNING).tobytes()
  if len(head) < _HEADER.size:
    what = "it is empty" if not end else f"cut at byte {end}, in the header of a record"
    raise Cut(what)
  return head


def _alone(head: bytes, size: int, decoded: int) -> int | None:
  """Where in a chunk its one record begins; None if it is compressed, or not one record."""
  at = _HEADER.size
  if not size or head[at]:
    return None
  length, at = _varint(head, at + 1)
  inside, after = _varint(head, at)
  whole = after - at == length and inside == decoded and after - _HEADER.size + inside == size
  return after if whole else None


def _varint(data: bytes, at: int) -> tuple[int, int]:
  """A number of seven bits a byte, the lowest first; and where it ends."""
  value = shift = 0
  for byte in data[at : at + _VARINTS]:
    at += 1
    value |= (byte & 0x7F) << shift
    if byte < 0x80:
      break
    shift += 7
  return value, at
