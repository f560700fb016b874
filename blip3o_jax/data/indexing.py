"""Makes the index of a set: files are scanned side by side, each stored when it is done.

A killed run goes on with the files that it had not finished; a whole index appears by a rename.
"""

from collections.abc import Callable
from collections.abc import Container
from collections.abc import Iterator
from collections.abc import Sequence
from concurrent.futures import Executor
from concurrent.futures import Future
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
import contextlib
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
from pathlib import Path
import random
import shutil
import tempfile
import time
from typing import Any
import uuid
import zipfile
import zlib

from absl import logging
import numpy as np
from tqdm import tqdm

from blip3o_jax import files
from blip3o_jax.data import columns
from blip3o_jax.data import index as indices
from blip3o_jax.data import storage
from blip3o_jax.data.columns import Piece
from blip3o_jax.data.index import Scanned

# Starting a process takes as long as scanning so many bytes, or a few hundred files.
WORTH_BYTES, WORTH_FILES = 2**28, 256
TOGETHER = 16  # files behind addresses that are read at a time
SAID = 5  # files of which is told what they leave out; the index says the sums
KEPT = 30 * 86400  # seconds that an earlier index is kept: a long run may still read it
About = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Work:
  """A set to index.

  Attributes:
    home, scan, partial, workers: see `index.opened`. stats: [name, size, stamp] of its files.
  """

  home: str
  scan: Callable[[str], Scanned]
  stats: list[tuple[str, int, str]]
  partial: bool
  workers: int


def stats_of(home: str, files: Sequence[str], stat: indices.Stat) -> list[tuple[str, int, str]]:
  """(name, size, stamp) of each file; raises FileNotFoundError for one that is not there."""

  def one(name: str) -> tuple[str, int, str]:
    return (name, *stat(storage.join(home, name)))

  if not storage.is_remote(home):
    return [one(name) for name in files]
  with ThreadPoolExecutor(TOGETHER) as pool:
    return list(pool.map(one, files))


def home_for(places: Sequence[indices.Folder], write: bool) -> tuple[Path, Any]:
  """A folder that an index can be written to, and what it lives as long as (None: for good)."""
  failed = ""
  for place in places if write else ():
    try:
      place.path.mkdir(parents=True, exist_ok=True)
      with tempfile.TemporaryFile(dir=place.path):
        pass
    except OSError as error:
      failed = failed or str(error)
      continue
    if failed or storage.is_remote(place.home):
      logging.info("%s: its index is kept in %s", place.home, place.path)
    return place.path, None
  keep = tempfile.TemporaryDirectory(prefix="blip3o-index-", ignore_cleanup_errors=True)
  if write:
    logging.warning("%s: its index cannot be kept (%s), it is made anew", places[0].home, failed)
  return Path(keep.name), keep


def make(work: Work, folder: Path, state: str, old: indices.Index | None) -> None:
  """Writes the index `folder/state`.

  Args:
    old: of an earlier state of the files, whose unchanged ones are taken over.

  Raises:
    ValueError: a file that is cut or damaged, what `scan` raises. What was scanned is kept.
  """
  pieces = folder / "pieces"
  pieces.mkdir(exist_ok=True)
  paths = [pieces / f"{indices.digest(*entry)}.npz" for entry in work.stats]
  known = _known(work, old)
  todo = [i for i in range(len(work.stats)) if i not in known and _stored(paths[i]) is None]
  _scan(work, todo, paths)
  try:
    _write(
      work, folder, state, [known.get(i) or _load(path) for i, path in enumerate(paths)], known
    )
  except FileNotFoundError:  # another process, which made the same index, took the pieces away
    if not (folder / state / indices.MEMORY).is_file():
      raise
  _clean(folder, paths, state)


def _write(
  work: Work,
  folder: Path,
  state: str,
  found: Sequence[tuple[About, Piece]],
  known: Container[int],
) -> None:
  """Writes an index from the pieces of its files.

  Args:
    found: what is known of each file, and its piece. known: those that an earlier index had.

  Raises:
    ValueError: a file that is cut or damaged, and was not accepted before.
  """
  for (about, piece), (name, size, stamp) in zip(found, work.stats, strict=True):
    about |= {"name": name, "size": size, "stamp": stamp, "records": piece.meta["records"]}
  _say(work, [about for i, (about, _) in enumerate(found) if i not in known])
  partial = folder / f".{state}.{uuid.uuid4().hex[:12]}.partial"
  partial.mkdir()
  try:
    meta = columns.merge(partial, [piece for _, piece in found])
    memory: About = {"columns": meta, "files": [about for about, _ in found]}
    memory["sizes"] = {path.name: path.stat().st_size for path in partial.iterdir()}
    (partial / indices.MEMORY).write_text(json.dumps(memory), encoding="utf-8")
    with contextlib.suppress(OSError):  # another process made it meanwhile: the same one
      partial.rename(folder / state)
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  if not (folder / state / indices.MEMORY).is_file():
    raise OSError(f"{folder / state}: the index could not be put there")


def _known(work: Work, old: indices.Index | None) -> dict[int, tuple[About, Piece]]:
  """{number of a file: what an earlier index says of it} of those that did not change."""
  if old is None:
    return {}
  out, numbers = {}, {entry: number for number, entry in enumerate(work.stats)}
  for i in range(len(old.files)):
    about, piece = old.file(i)
    number = numbers.get((about["name"], about["size"], about["stamp"]))
    if number is not None:
      out[number] = (dict(about), piece)
  return out


def _scan(work: Work, todo: Sequence[int], paths: Sequence[Path]) -> None:
  """Scans files and stores a piece of each."""
  if not todo:
    return
  size = sum(work.stats[i][1] for i in todo)
  one = functools.partial(_scan_one, work.scan)
  jobs = {i: (storage.join(work.home, work.stats[i][0]), str(paths[i])) for i in todo}
  left = dict(jobs)
  text = f"indexing {work.home}"
  with tqdm(total=len(todo), unit="file", desc=text, disable=None) as bar:
    try:
      with _pool(work, len(todo), size) as pool:
        if pool is not None:
          # Hosts that share a disk then do not all scan the same file.
          mixed = random.Random().sample(todo, len(todo))
          futures: dict[Future[None], int] = {pool.submit(one, *jobs[i]): i for i in mixed}
          try:
            for future in as_completed(futures):
              future.result()
              left.pop(futures[future])
              bar.update()
          except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    except BrokenProcessPool:
      # Such as a script without `if __name__ == "__main__"`, or a process that was killed.
      logging.warning("%s: its files are scanned one by one: processes could not work", work.home)
    for i in list(left):
      one(*jobs[i])
      bar.update()


@contextlib.contextmanager
def _pool(work: Work, count: int, size: int) -> Iterator[Executor | None]:
  """What scans files side by side, or None where that is not worth it."""
  workers = work.workers or min(count, os.cpu_count() or 1)
  if storage.is_remote(work.home):
    workers = work.workers or min(count, TOGETHER)
    if workers > 1:  # waiting takes the time, which threads do as well
      with ThreadPoolExecutor(workers) as threads:
        yield threads
      return
  elif workers > 1 and count > 1 and (work.workers or size >= WORTH_BYTES or count >= WORTH_FILES):
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, count), mp_context=spawn) as processes:
      yield processes
    return
  yield None


def _scan_one(scan: Callable[[str], Scanned], path: str, piece: str) -> None:
  """Scans a file and stores its piece, where no other did; runs in another process."""
  if _stored(Path(piece)) is not None:
    return
  found = scan(path)
  hashes = np.fromiter(map(zlib.crc32, found.keys), np.uint32, len(found.keys))
  meta, arrays = columns.packed(
    {**found.columns, "hash": hashes}, {**found.texts, "key": found.keys}, len(found.keys)
  )
  about: About = {"fingerprint": found.fingerprint or _fingerprint(meta, arrays)}
  about |= {"left": dict(found.left), "noted": dict(found.noted), "first": dict(found.first)}
  about["problem"] = found.problem
  text = json.dumps({"meta": meta, "about": about}).encode()
  with files.replacing(Path(piece), shared=True) as partial, open(partial, "wb") as file:
    np.savez(file, memory=np.frombuffer(text, np.uint8), **arrays)  # type: ignore[arg-type]


def _fingerprint(meta: columns.Meta, arrays: columns.Arrays) -> str:
  """Equal for the same records in the same order."""
  out = hashlib.blake2b(json.dumps(meta, sort_keys=True).encode(), digest_size=16)
  for name in sorted(arrays):
    out.update(np.ascontiguousarray(arrays[name]).data)
  return out.hexdigest()


def _stored(path: Path) -> tuple[About, Piece] | None:
  """A piece that an earlier run stored; its arrays are read when they are asked for."""
  try:
    return _load(path)
  except FileNotFoundError:
    return None
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    logging.warning("%s: not readable (%s), its file is scanned again", path, error)
    return None


def _load(path: Path) -> tuple[About, Piece]:
  with np.load(path) as file:
    memory = json.loads(file["memory"].tobytes())

  def load(name: str) -> np.ndarray:
    with np.load(path) as file:
      return file[name]

  return memory["about"], Piece(memory["meta"], load)


def _say(work: Work, fresh: Sequence[About]) -> None:
  """Says what the files that were scanned leave out; raises ValueError for one that is cut."""
  if not work.partial:
    indices.refuse_cut(work.home, fresh)
  said = 0
  for about in fresh:
    text = indices.told(about["left"], about["noted"], about["first"])
    if text and said < SAID:
      logging.warning("%s: %s", storage.join(work.home, about["name"]), text)
    said += bool(text)
  if said > SAID:
    logging.warning("%s: %d more files leave something out", work.home, said - SAID)


def _clean(folder: Path, pieces: Sequence[Path], state: str) -> None:
  """Removes the pieces that stand in the index, and what is too old to be read by anybody."""
  for path in pieces:
    path.unlink(missing_ok=True)
  now = time.time()
  for path in folder.iterdir():
    with contextlib.suppress(OSError):  # another process removes it as well
      if path.name not in (state, "pieces") and now - path.stat().st_mtime > KEPT:
        shutil.rmtree(path)
