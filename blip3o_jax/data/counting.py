"""A number of each record of a set, counted once and kept beside its index."""

from collections.abc import Callable
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
import hashlib
import itertools
import json
import os
from pathlib import Path
import random
import tempfile

from absl import logging
import numpy as np
from tqdm import tqdm

from blip3o_jax.data.columns import whole_npy
from blip3o_jax.data.records import Part
from blip3o_jax.data.storage import Stat

MOST = 65535
_CHUNK = 512  # records that a thread counts at a time
_TYPE = np.dtype(np.uint16)
Known = dict[tuple[str, int, str], np.ndarray]  # by fingerprint, size and stamp


def lengths(
  folder: Path,
  parts: Sequence[Part],
  stats: Sequence[Stat],
  name: str,
  count: Callable[[int], int],
  spare: Path,
) -> np.ndarray:
  """uint16[n], mapped into memory; see `Index.lengths`.

  Each part is stored when it is counted, so that a killed count goes on.

  Args:
    folder: of the index. spare: of the cache, for an index whose folder cannot be written.
    stats: of the parts' files: one that is written anew may have the same records with other words.
  """
  label = f"lengths-{hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}"
  total = sum(part.records for part in parts)
  if not total:
    return np.zeros(0, _TYPE)
  beside = spare / "lengths" / f"{folder.parent.name}-{folder.name}"
  for place in (folder, beside):
    if (path := place / f"{label}.npy").is_file():
      return np.load(path, mmap_mode="r")
  try:
    with tempfile.TemporaryFile(dir=folder):
      pass
  except OSError:
    folder = beside
    folder.mkdir(parents=True, exist_ok=True)
    logging.info("lengths of records are kept in %s", folder)
  known, path = _earlier(folder, label), folder / f"{label}.npy"
  starts = list(itertools.accumulate((part.records for part in parts), initial=0))
  pieces = [folder / f"{label}-{number}.npy" for number in range(len(parts))]
  workers = min(32, 2 * (os.cpu_count() or 1))
  shown = tqdm(total=total, unit="record", desc="lengths", disable=None)
  with ThreadPoolExecutor(workers) as pool, shown as bar:

    def counted(number: int) -> np.ndarray:
      start, part = starts[number], parts[number]
      values = _kept(known, pieces[number], part, stats[number])
      if values is None:
        values = _count(pool, range(start, start + part.records), count, bar)
        if part.records:
          whole_npy(pieces[number], _TYPE, values.shape, iter([values]))
      else:
        bar.update(part.records)
      return values

    # Processes that share a disk then mostly count other parts, and find each other's.
    for number in random.Random().sample(range(len(parts)), len(parts)):
      if path.is_file():
        break
      counted(number)
    if not path.is_file():
      bar.reset(total)
      whole_npy(path, _TYPE, (total,), map(counted, range(len(parts))))
  for piece in pieces:
    piece.unlink(missing_ok=True)
  return np.load(path, mmap_mode="r")


def _count(
  pool: ThreadPoolExecutor, records: range, count: Callable[[int], int], bar: tqdm
) -> np.ndarray:
  def some(chunk: range) -> np.ndarray:
    values = np.fromiter((min(count(i), MOST) for i in chunk), np.int64, len(chunk))
    bar.update(len(chunk))
    return values.astype(_TYPE)

  chunks = [records[i : i + _CHUNK] for i in range(0, len(records), _CHUNK)]
  return np.concatenate([np.zeros(0, _TYPE), *pool.map(some, chunks)])


def _kept(known: Known, piece: Path, part: Part, stat: Stat) -> np.ndarray | None:
  """What was counted of a part before: in an earlier index, or by a run that was killed."""
  before = known.get((part.fingerprint, *stat))
  if before is not None and len(before) == part.records:
    return before
  try:
    values = np.load(piece, mmap_mode="r")
  except (OSError, ValueError, EOFError):
    return None
  return values if values.shape == (part.records,) else None


def _earlier(folder: Path, label: str) -> Known:
  """{part: what was counted} of the latest earlier index."""
  found = sorted(folder.parent.glob(f"*/{label}.npy"), key=lambda path: path.stat().st_mtime_ns)
  for path in reversed(found):
    memory = path.with_name("index.json")
    if not memory.is_file():
      continue
    values, start, out = np.load(path, mmap_mode="r"), 0, Known()
    for about in json.loads(memory.read_text(encoding="utf-8"))["files"]:
      key = about["fingerprint"], about["size"], about["stamp"]
      out[key] = values[start : start + about["records"]]
      start += about["records"]
    return out
  return {}
