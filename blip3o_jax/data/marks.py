"""Marks of records that go through a file, and from the parts that a source had to those it has."""

import base64
from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Sequence
import zlib

import numpy as np

from blip3o_jax.data.chosen import Chosen
from blip3o_jax.data.records import Part


def pack(marked: Chosen | None) -> str:
  """Marked records as text for a JSON file: a bit each, compressed; "" for none."""
  if marked is None or not len(marked):
    return ""
  return base64.b64encode(zlib.compress(marked.bits.tobytes(), 1)).decode()


def unpack(text: str, count: int) -> Chosen | None:
  """What `pack` was given, of `count` records; None for none.

  Raises:
    ValueError: text of something else.
  """
  if not text:
    return None
  try:
    bits = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
  except (ValueError, zlib.error) as error:
    raise ValueError(f"not marks of records: {error}") from None
  if len(bits) != -(-count // 8):
    raise ValueError(f"marks of {8 * len(bits)} records or fewer, expected {count}")
  return Chosen(bits, count)


def moved(marked: Chosen, before: Sequence[Part], now: Sequence[Part]) -> Chosen:
  """Marks of all records of some parts as marks of those of others; what is new has none."""
  starts = np.cumsum([0, *(part.records for part in before)]).tolist()
  old, out = marked.mask(), np.zeros(sum(part.records for part in now), bool)
  start = 0
  for part, i in zip(now, _matches(before, now), strict=True):
    if i is not None:
      count = min(part.records, before[i].records)
      out[start : start + count] = old[starts[i] : starts[i] + count]
    start += part.records
  return Chosen(np.packbits(out), len(out))


def grown(before: Sequence[Part], now: Sequence[Part]) -> Chosen | None:
  """The records of `now` that `before` had, where it had all of its in this order; else None."""
  matches = _matches(before, now)
  there = [i for i in matches if i is not None]
  if there != list(range(len(before))):
    return None
  if any(i is not None and now[j].records < before[i].records for j, i in enumerate(matches)):
    return None
  return moved(Chosen.all(sum(part.records for part in before)), before, now)


def differences(before: Sequence[Part], now: Sequence[Part]) -> list[str]:
  """How the parts of a source changed, in words."""
  matches = _matches(before, now)
  kept = {i for i in matches if i is not None}
  old, names = {part.name for part in before}, {part.name for part in now}
  out = []
  for part, i in zip(now, matches, strict=True):
    if i is None:
      out.append(
        f"{part.name} ({part.records} records) {'changed' if part.name in old else 'is new'}"
      )
    elif part.records != before[i].records:
      out.append(f"{part.name} has {before[i].records} -> {part.records} records")
  for i, part in enumerate(before):
    if i not in kept and part.name not in names:
      out.append(f"{part.name} ({part.records} records) is gone")
  shown = 6
  return out if len(out) <= shown else [*out[:shown], f"{len(out) - shown} more"]


def _matches(before: Sequence[Part], now: Sequence[Part]) -> list[int | None]:
  """Which part of `before` each of `now` is: of the same content, and if there is one, name."""
  out: list[int | None] = [None] * len(now)
  left = dict.fromkeys(range(len(before)))
  keys: tuple[Callable[[Part], Hashable], ...] = (
    lambda part: (part.fingerprint, part.name),
    lambda part: part.fingerprint,
  )
  for key in keys:
    there: dict[Hashable, list[int]] = {}
    for i in left:
      there.setdefault(key(before[i]), []).append(i)
    for j, part in enumerate(now):
      if out[j] is None and (found := there.get(key(part))):
        out[j] = found.pop(0)
        del left[out[j]]  # type: ignore[arg-type]
  return out
