"""Writes records as sharded ArrayRecord files that are whole or not there, with a manifest.

A folder holds NAME-00000-of-00004.arrayrecord and so on, of records as `packed` lays them out, one
a group and not compressed (a picture does not get smaller), and manifest.json:

  layout, version   of `packed`
  name, records     of the set
  shards            [{"file", "records", "bytes", "fields", "left"}], in order: `fields` counts the
                    fields of `packed` that its records have, `left` the damaged ones left out
  source            what was packed, as the caller describes it
  licence           of the pictures and texts, as the source says it
  encoder           with cached features: what made them, as the caller describes it

Until the manifest is there, the folder also holds packing.json, what was asked for, and for each
shard that is finished its entry as NAME-00000-of-00004.json: a later call keeps those shards.
"""

from collections import Counter
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from concurrent import futures
import contextlib
import json
import os
from pathlib import Path
import threading
from typing import Any
from typing import NamedTuple

from absl import logging
from tqdm import tqdm

from blip3o_jax import files
from blip3o_jax.data import packed
from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.records import Record
from blip3o_jax.data.records import Source
from blip3o_jax.data.sources import chunks
from blip3o_jax.data.sources.arrayrecord import ENDING
from blip3o_jax.data.sources.arrayrecord import MANIFEST

PLAN = "packing.json"
OPTIONS = "group_size:1,uncompressed,max_parallelism:1"


class Given(NamedTuple):
  """A record to pack: its id, its hash of `Source.hashes`, and itself, or why it is damaged."""

  key: str
  digest: int
  record: Record | BadRecord


class Shards:
  """The shards of one output folder; several processes may write different ones of them.

  Args:
    folder: local; is made. name: of the set. count: of shards, positive.
    about: what is packed and how, JSON: a folder that was begun with another is refused. Its fields
      "source", "licence" and "encoder" are those of the manifest.

  Raises:
    ValueError: a folder of another packing, or a bad name.
    FileExistsError: it holds a finished set.
  """

  def __init__(self, folder: Path, name: str, count: int, about: Mapping[str, Any]):
    if not name or "/" in name or name.startswith("."):
      raise ValueError(f"name {name!r}: expected a file's name without folder, not hidden")
    self.folder, self.name, self.count = folder, name, count
    self._about = json.loads(json.dumps(about))
    if (folder / MANIFEST).exists():
      raise FileExistsError(f"{folder}: holds a packed set already; nothing was written")
    asked = {"name": name, "shards": count} | self._about
    folder.mkdir(parents=True, exist_ok=True)
    plan = folder / PLAN
    if plan.exists():
      begun = files.read_json(plan, nulls=True)
      for key in {**asked, **begun}:
        if asked.get(key) != begun.get(key):
          raise ValueError(
            f"{folder}: was begun with {key} {begun.get(key)!r}, and now it is {asked.get(key)!r}; "
            "give what it was begun with, or another output"
          )
    elif others := sorted(folder.glob(f"*{ENDING}")):
      raise ValueError(f"{folder}: {others[0].name} is of no packing that was begun here")
    else:
      with files.replacing(plan, shared=True) as partial:
        partial.write_text(json.dumps(asked, indent=1))

  def path(self, number: int) -> Path:
    """Of a shard."""
    return self.folder / f"{self.name}-{number:05d}-of-{self.count:05d}{ENDING}"

  def entry(self, number: int) -> dict[str, Any] | None:
    """What the manifest says of a shard; None where it is not finished."""
    path = self.path(number)
    try:
      entry = files.read_json(path.with_suffix(".json"))
      return entry if path.stat().st_size == entry["bytes"] else None
    except (OSError, KeyError, ValueError):
      return None

  def write(self, number: int, records: Iterable[Given]) -> dict[str, Any]:
    """Writes a shard and returns its entry. Damaged records are left out, with a warning.

    Raises:
      OSError: the shard cannot be written; nothing is left of it.
      ValueError: a record that cannot be packed.
    """
    path = self.path(number)
    fields: Counter[str] = Counter()
    left: Counter[str] = Counter()
    written = 0
    with files.replacing(path) as partial, _writing(path, partial) as write:
      for given in records:
        if isinstance(given.record, BadRecord):
          left[given.record.kind] += 1
          logging.warning("left out: %s", given.record)
          continue
        write(packed.pack(given.record, given.key, given.digest))
        fields.update({name for name, _ in packed.parts(given.record)})
        written += 1
    entry = {"file": path.name, "records": written, "bytes": path.stat().st_size}
    entry |= {"fields": dict(sorted(fields.items())), "left": dict(sorted(left.items()))}
    files.write_text(path.with_suffix(".json"), json.dumps(entry))
    return entry

  def finish(self) -> dict[str, Any]:
    """Writes the manifest, removes what was kept until then, and returns the manifest.

    Raises:
      ValueError: shards that are not finished, or no record in all of them.
    """
    entries = [self.entry(number) for number in range(self.count)]
    if absent := [self.path(i).name for i, entry in enumerate(entries) if entry is None]:
      raise ValueError(f"{self.folder}: {len(absent)} shards are not finished, such as {absent[0]}")
    shards = [entry for entry in entries if entry]
    records = sum(entry["records"] for entry in shards)
    if not records:
      raise ValueError(f"{self.folder}: no record could be packed; see the warnings")
    # An empty file of records is not told from one of another kind.
    for entry in shards:
      if not entry["records"]:
        (self.folder / entry["file"]).unlink()
    manifest: dict[str, Any] = {"layout": packed.LAYOUT, "version": packed.VERSION}
    manifest |= {"name": self.name, "records": records}
    manifest |= {
      key: self._about[key] for key in ("source", "licence", "encoder") if key in self._about
    }
    manifest["shards"] = [entry for entry in shards if entry["records"]]
    files.write_text(self.folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    for number in range(self.count):
      self.path(number).with_suffix(".json").unlink(missing_ok=True)
    (self.folder / PLAN).unlink(missing_ok=True)
    return manifest


def pack(
  source: Source, shards: Shards, per_shard: int, *, workers: int = 4, bar: bool = True
) -> dict[str, Any]:
  """Packs all records of a source; shards that are finished are kept. Returns the manifest.

  Args:
    shards: of the output, as many as `count(len(source), per_shard)`. workers: shards written at a
      time. bar: show how far it is, on a terminal.

  Raises:
    OSError, ValueError: see `Shards`; what is finished is kept.
  """
  total = len(source)
  assert shards.count == count(total, per_shard)
  stop = threading.Event()
  with tqdm(total=total, unit="record", disable=None if bar else True, dynamic_ncols=True) as shown:

    def given(first: int, end: int) -> Iterator[Given]:
      digests = source.hashes(first, end).tolist()
      for index, digest in zip(range(first, end), digests, strict=True):
        if stop.is_set():
          raise InterruptedError("another shard could not be written")
        try:
          record: Record | BadRecord = source[index]
        except BadRecord as error:
          record = error
        key = record.name if isinstance(record, Record) else ""
        yield Given(key, digest, record)
        shown.update()

    def write(number: int) -> None:
      first, end = number * per_shard, min((number + 1) * per_shard, total)
      if shards.entry(number) is not None:
        shown.update(end - first)
      elif not stop.is_set():
        shards.write(number, given(first, end))

    with futures.ThreadPoolExecutor(workers) as pool:
      pending = [pool.submit(write, number) for number in range(shards.count)]
      try:
        for done in futures.as_completed(pending):
          done.result()
      finally:
        stop.set()  # after an error, or an interrupt, the others end at their next record
  return shards.finish()


def count(records: int, per_shard: int) -> int:
  """How many shards records take."""
  return max(1, -(-records // per_shard))


@contextlib.contextmanager
def _writing(path: Path, partial: Path) -> Iterator[Callable[[bytes], None]]:
  """Takes the records of one file; at the end they are on disk, and counted.

  Raises:
    OSError: naming the file.
  """
  try:
    from array_record.python import array_record_module
  except ImportError:
    raise ValueError("writing ArrayRecord needs array_record: pip install array_record") from None
  writer = array_record_module.ArrayRecordWriter(str(partial), OPTIONS)
  written = 0

  def told(call: Callable[[], None]) -> None:
    try:
      call()
    except RuntimeError as error:
      raise OSError(f"{path}: cannot be written: {error}; nothing is left of it") from None

  def write(data: bytes) -> None:
    nonlocal written
    told(lambda: writer.write(data))
    written += 1

  try:
    yield write
    # It holds back what it was given, so that a full disk is found here at the latest.
    told(writer.close)
  finally:
    with contextlib.suppress(RuntimeError):
      writer.close()
  try:
    found = sum(1 for _ in chunks.walk(str(partial), packed.MAGIC)) if written else 0
  except (chunks.Cut, chunks.Foreign) as error:
    raise OSError(f"{path}: was not written whole: {error}; nothing is left of it") from None
  if found != written:
    raise OSError(f"{path}: {written} records were written, {found} are there; is the disk full?")
  descriptor = os.open(partial, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
