"""Runs a frozen encoder over a data set, and keeps what it makes as a set of its own.

Each process encodes whole shards by itself, on its own devices: processes exchange nothing, none
waits for a slower one, and a shard has the same bytes whoever makes it. What is finished is kept,
so a run that was killed goes on, with any number of processes. The set that comes of it
(`data.packing`) is complete: captions, conversations and features, and pictures if they are asked
for. A record keeps the hash by which its split is chosen.

A cache holds, beside that, quarantine.jsonl: the records that were left out as damaged, a line
each with record (its number in the source), name, kind and error.
"""

from collections import Counter
from collections import deque
from collections.abc import Callable
from collections.abc import Generator
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from concurrent import futures
import contextlib
import dataclasses
import itertools
import json
from pathlib import Path
import time
from typing import Any

from absl import logging
import jax
import numpy as np
from tqdm import tqdm

import blip3o_jax
from blip3o_jax import files
from blip3o_jax.data import images
from blip3o_jax.data import index
from blip3o_jax.data import licence
from blip3o_jax.data import opening
from blip3o_jax.data import packing
from blip3o_jax.data.batch import Arrays
from blip3o_jax.data.chosen import Chosen
from blip3o_jax.data.options import Data
from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.records import Record
from blip3o_jax.data.records import Source
from blip3o_jax.data.sources import arrayrecord
from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.train import cached
from blip3o_jax.train import lock
from blip3o_jax.train import setup
from blip3o_jax.train.encoder import OnDevices
from blip3o_jax.train.run import Run

QUARANTINE = "quarantine.jsonl"
POLL = 0.5  # seconds between two looks for what other processes finish


@dataclasses.dataclass(frozen=True)
class Asked:
  """What a cache is to be.

  Attributes:
    output: its folder, local to all processes. name: of the set, in its files' names.
    per_shard: records of a file. per_device: records that a device encodes at a time.
    dtype: of the features. pixels: keep the pictures too. licence: of pictures and texts; "" takes
      what the source says.
  """

  output: Path
  name: str = "features"
  per_shard: int = 4096
  per_device: int = 32
  dtype: str = "bfloat16"
  pixels: bool = False
  licence: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
  """A record that was read, or why it is damaged, and its arrays as the encoder takes them."""

  index: int
  name: str
  digest: int
  record: Record | BadRecord
  arrays: Arrays | None = None


Encoded = tuple[Row, np.ndarray | None]


Made = Callable[[Record], Arrays]


class Reader:
  """Reads records and makes their arrays ready, in order, on threads."""

  def __init__(self, source: Source, data: Data, made: Made):
    self._source, self._data, self._made = source, data, made

  def batches(self, spans: Sequence[np.ndarray], rows: int) -> Generator[list[Row]]:
    """The rows of spans of records, at most `rows` at a time and never of two spans together."""
    ahead = 1 + self._data.prefetch
    waiting: deque[list[futures.Future[Row]]] = deque()
    images.reuse_memory(self._data.threads)
    pool = futures.ThreadPoolExecutor(self._data.threads, thread_name_prefix="reader")
    try:
      for span in spans:
        for start in range(0, len(span), rows):
          waiting.append([pool.submit(self._row, int(i)) for i in span[start : start + rows]])
          if len(waiting) > ahead:
            yield [each.result() for each in waiting.popleft()]
      while waiting:
        yield [each.result() for each in waiting.popleft()]
    finally:
      pool.shutdown(cancel_futures=True)

  def _row(self, number: int) -> Row:
    digest = int(self._source.hashes(number, number + 1)[0])
    try:
      record = self._source[number]
    except BadRecord as error:
      return Row(number, self._name(number), digest, error)
    try:
      arrays = self._made(record)
    except BadRecord as error:
      return Row(number, record.name, digest, error)
    return Row(number, record.name, digest, record, arrays)

  def _name(self, number: int) -> str:
    """What a record is called that cannot be read."""
    try:
      return self._source.words(number).name
    except BadRecord:
      return f"record {number}"


def encode(run: Run, system: Any, asked: Asked) -> dict[str, Any]:
  """Encodes the records of `run.data` and returns the manifest of the set; goes on where it ended.

  All records are encoded, of both splits, each once and in the order of the source; with
  `data.records` the first so many of each split. All processes call this and wait for each other.

  Raises:
    FileNotFoundError, ValueError: data or weights that do not fit; a folder that was begun with
      other data, another encoder or other options. lock.InUseError: another one encodes into it.
    OSError: a file that cannot be written; what is finished is kept.
  """
  if system.encoder is None:
    raise ValueError(f"config.system: {run.system!r} trains on no features that could be kept")
  encoder, data = system.encoder(run.model), _pictures(run.data)
  words = Tokenizer.load(run.tokenizer, system.SPECIAL) if run.tokenizer else None
  made = encoder.rows(data, words)
  source = opening.open_source(data)
  chosen = _chosen(source, data)
  network = OnDevices(run, system, encoder, asked.per_device, asked.dtype)
  about = {
    "source": _described(source, data, len(chosen)),
    "licence": asked.licence or licence.note(data.path).name,
    "encoder": {
      "fingerprint": network.fingerprint,
      "parameters": run.train.frozen_dtype,
      "design": encoder.design,
      "shape": encoder.shape,
      "dtype": asked.dtype,
      "transform": cached.transform(data, encoder),
      **({"tokenizer": words.fingerprint} if words and encoder.texts else {}),
      "versions": {"blip3o_jax": blip3o_jax.__version__, "jax": jax.__version__},
    },
    "pixels": asked.pixels,
  }
  count = packing.count(len(chosen), asked.per_shard)
  if done := _finished(asked, about):
    return done
  shards = _begun(asked, count, about)
  with lock.Lock(asked.output):
    reader = Reader(source, data, made)

    def rows(spans: Sequence[np.ndarray]) -> Generator[Encoded]:
      return _encoded(reader.batches(spans, network.rows), network)

    _encode(shards, rows, chosen, asked, data.strict)
    return _finish(shards)


def damaged(folder: Path) -> dict[str, int]:
  """Of a finished cache, how many records were left out, {kind of `DAMAGE`: count}."""
  path = folder / QUARANTINE
  lines = path.read_text().splitlines() if path.exists() else []
  return dict(Counter(json.loads(line)["kind"] for line in lines))


def _pictures(data: Data) -> Data:
  """What a run of cached features would read instead of them.

  Raises:
    ValueError: several sets.
  """
  if data.mixture or len(data.reading.captions()) > 1:
    what = "mixture" if data.mixture else "reading.caption"
    raise ValueError(
      f"config.data.{what}: names several sets; encode each by itself, with config.data.path and "
      "one caption, and mix the caches when training"
    )
  path = "" if data.source == "shapes" else data.path
  return dataclasses.replace(data, features=False, path=path)


def _chosen(source: Source, data: Data) -> np.ndarray:
  """The records to encode, int64[n] ascending."""
  splits = ("train", "test") if data.source == "files" and data.holdout else (data.split,)
  kept: list[Chosen] = []
  for split in splits:
    try:
      kept.append(opening.used(source, dataclasses.replace(data, split=split)))
    except ValueError:  # a small set may have nothing in one of them
      if split == splits[-1] and not kept:
        raise
  out = kept[0]
  for more in kept[1:]:
    out |= more
  return np.flatnonzero(out.mask())


def _described(source: Source, data: Data, records: int) -> dict[str, Any]:
  """What was encoded: parts with one fingerprint hold the same records."""
  parts = [part.fingerprint for part in source.parts()]
  out = {"path": data.path or data.source, "split": "" if data.holdout else data.split}
  return out | {"records": records, "fingerprint": index.digest(parts)}


def _finished(asked: Asked, about: Mapping[str, Any]) -> dict[str, Any] | None:
  """The manifest of a folder that was finished before; None where it was not.

  Raises:
    ValueError: it is of something else.
  """
  if not (asked.output / arrayrecord.MANIFEST).exists():
    return None
  manifest = arrayrecord.read_manifest(str(asked.output))
  had = {key: manifest.get(key) for key in ("source", "licence", "encoder")}
  now = {key: about[key] for key in had}
  if had["encoder"]:  # it is whole, by whatever versions
    now["encoder"] = now["encoder"] | {"versions": had["encoder"]["versions"]}
  _refuse_changes(asked.output, "holds another set", had, now)
  for path in (asked.output / packing.PLAN, *asked.output.glob(f"{asked.name}-*-of-*.json*")):
    path.unlink(missing_ok=True)  # of a run that was killed at its last step
  logging.info("%s: finished before", asked.output)
  return manifest


def _begun(asked: Asked, count: int, about: Mapping[str, Any]) -> packing.Shards:
  """The shards of a folder, new or begun with the same."""
  plan = asked.output / packing.PLAN
  if plan.exists():
    had = files.read_json(plan, nulls=True)
    now = {"name": asked.name, "shards": count, **about}
    _refuse_changes(asked.output, "was begun otherwise", had, now)
  return packing.Shards(asked.output, asked.name, count, about)


def _refuse_changes(
  folder: Path, what: str, had: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
  plain = json.loads(json.dumps(now))
  if lines := setup.changes(had, plain):
    raise ValueError(
      f"{folder}: {what}: {'; '.join(lines)}. Give what it was made with, or another --output"
    )


def _encode(
  shards: packing.Shards,
  rows: Callable[[Sequence[np.ndarray]], Generator[Encoded]],
  chosen: np.ndarray,
  asked: Asked,
  strict: bool,
) -> None:
  """Writes those shards of this process that are not finished.

  Args:
    rows: gives those of some spans of records, one after another.
  """
  own = range(jax.process_index(), shards.count, jax.process_count())
  todo = [number for number in own if shards.entry(number) is None]
  if kept := len(own) - len(todo):
    logging.info("%s: %d of %d shards are finished", shards.folder, kept, len(own))
  size = asked.per_shard
  spans = [chosen[number * size : (number + 1) * size] for number in todo]
  bar = tqdm(
    total=sum(map(len, spans)), unit="record", disable=jax.process_index() > 0, dynamic_ncols=True
  )
  # One stream for all shards, so that the next one's pictures are read while one is finished.
  with bar, contextlib.closing(rows(spans)) as stream:
    for number, span in zip(todo, spans, strict=True):
      mine = itertools.islice(stream, len(span))
      shards.write(number, _given(mine, _notes(shards, number), asked.pixels, strict, bar))


def _given(
  rows: Iterator[Encoded], notes: Path, pixels: bool, strict: bool, bar: tqdm
) -> Iterator[packing.Given]:
  """The records of a shard, ready to be written; what is damaged also stands in `notes`."""
  left: list[dict[str, Any]] = []
  for row, features in rows:
    bar.update()
    record = row.record
    if isinstance(record, BadRecord):
      if strict:
        raise record
      told = {"record": row.index, "name": row.name, "kind": record.kind, "error": str(record)}
      left.append(told)
      yield packing.Given(row.name, row.digest, record)
      continue
    assert features is not None  # only damaged records have none
    if not np.isfinite(features).all():
      raise ValueError(f"{row.name}: its features are not finite; are the encoder's weights whole?")
    record = dataclasses.replace(record, image=record.image if pixels else None, features=features)
    yield packing.Given(row.name, row.digest, record)
  if left:  # before the shard is renamed, and so finished
    files.write_text(notes, "".join(f"{json.dumps(each)}\n" for each in left))


def _encoded(batches: Generator[list[Row]], network: OnDevices) -> Generator[Encoded]:
  """Rows with their features, None for damaged ones; a batch is encoded while another is taken."""
  waiting: deque[tuple[list[Row], Any]] = deque()

  def taken() -> Iterator[Encoded]:
    rows, features = waiting.popleft()
    found = [None] * len(rows) if features is None else np.asarray(features)
    for row, grid in zip(rows, found, strict=False):  # what pads a short batch comes last
      yield row, None if row.arrays is None else grid

  with contextlib.closing(batches):
    for rows in batches:
      whole: Arrays = {}
      for place, row in enumerate(rows):
        for name, value in (row.arrays or {}).items():
          if name not in whole:
            whole[name] = np.zeros((network.rows, *value.shape), value.dtype)
          whole[name][place] = value
      waiting.append((rows, network(whole) if whole else None))
      if len(waiting) > 1:
        yield from taken()
    while waiting:
      yield from taken()


def _notes(shards: packing.Shards, number: int) -> Path:
  """Where the damaged records of a shard stand until all are finished."""
  return shards.path(number).with_suffix(".jsonl")


def _finish(shards: packing.Shards) -> dict[str, Any]:
  """Waits for the shards of all processes; the first one writes the manifest, which all return."""
  if jax.process_index():
    while not (shards.folder / arrayrecord.MANIFEST).exists():
      time.sleep(POLL)
    return arrayrecord.read_manifest(str(shards.folder))
  texts: list[str] = []
  for number in range(shards.count):
    notes = _notes(shards, number)
    # Folders that several machines share may show a file late.
    while (entry := shards.entry(number)) is None or (entry["left"] and not notes.exists()):
      time.sleep(POLL)
    texts += [notes.read_text()] if entry["left"] else []
  if texts:
    files.write_text(shards.folder / QUARANTINE, "".join(texts))
  manifest = shards.finish()
  for number in range(shards.count):
    _notes(shards, number).unlink(missing_ok=True)
  return manifest
