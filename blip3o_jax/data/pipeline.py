"""Records become batches: a pure function of (seed, step), the same on any number of processes.

Rows of a batch are of one prompt bucket (see `order`), so shapes are static and one program is
compiled a bucket. Where a run stands is what `Pipeline.position` says. Knows no system, no task and
no jax.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import math
import threading
from typing import Any
from typing import Literal
from typing import Protocol

from absl import logging
import numpy as np

from blip3o_jax import config
from blip3o_jax.data import order as orders
from blip3o_jax.data.order import Leg
from blip3o_jax.data.order import Order
from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.records import Part
from blip3o_jax.data.records import Record
from blip3o_jax.data.records import Source
from blip3o_jax.data.records import Subset
from blip3o_jax.data.records import text_bytes
from blip3o_jax.data.shapes import source as embedded
from blip3o_jax.data.sources import tars

Arrays = dict[str, np.ndarray]

SAMPLE = 256  # records whose tokens are counted to estimate the lengths of all
ATTEMPTS = 8  # replacements in a row that may fail before the data itself is to blame


@dataclasses.dataclass(frozen=True)
class Data:
  """Which records, as what, in which batches.

  A system may have no use for a field; what it needs beside them stands in its own config.

  Attributes:
    source: the embedded set, or a folder of tars. path: of the folder.
    split: "train" or "test" of a folder, one of `shapes.SPLITS` of the embedded set. holdout: share
      of a folder's records that are its test split, chosen by a hash of the key.
    records: how many to use, 0 for all of a folder. shapes: texts of the embedded set.
    task: what the records are to teach, one of the tasks of the system.
    batch: rows of the global batch. buckets: static lengths of token rows.
    image_size: side of the picture that the encoder, the autoencoder or the vision tower takes; 0
      is for understanding rows that never show one.
    features: read cached features instead of pictures ("pixels": beside them).
    values: of `images`: normalised as EVA takes them, or in [-1, 1] for an autoencoder's latents;
      "pixels" always gives the latter.
    squash: resize to a square, whatever the ratio, instead of cutting out the centre.
    friendly: see `images.rgb`.
    shuffle: off keeps the order of the source, for evaluation. seed: of the order.
    threads, prefetch: batches loaded at a time, and kept ready. cache: keep transformed records.
    strict: raise for a damaged record, instead of taking another with a warning.
  """

  source: Literal["shapes", "tars"] = "tars"
  path: str = ""
  split: str = "train"
  holdout: float = 0.0
  records: int = 0
  shapes: embedded.Mixture = embedded.Mixture()
  task: str = ""
  batch: int = 32
  buckets: tuple[int, ...] = (64, 160, 448)
  image_size: int = 448
  features: bool = False
  values: Literal["clip", "signed"] = "clip"
  squash: bool = False
  friendly: bool = True
  shuffle: bool = True
  seed: int = 0
  threads: int = 8
  prefetch: int = 4
  cache: bool = False
  strict: bool = False

  def __post_init__(self) -> None:
    if not self.buckets or list(self.buckets) != sorted({b for b in self.buckets if b > 0}):
      raise ValueError(f"buckets {self.buckets} are not positive and ascending")
    for name in ("batch", "threads", "prefetch"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name} {getattr(self, name)} is not positive")
    if self.seed < 0:
      raise ValueError(f"seed {self.seed}: expected 0 or more")
    if not 0 <= self.holdout < 1:
      raise ValueError(f"holdout {self.holdout} is not a share in [0, 1)")
    if self.source == "tars" and self.split not in ("train", "test"):
      raise ValueError(f"split {self.split!r} of a folder of tars: expected 'train' or 'test'")
    fields = ("holdout", "friendly") if self.source == "shapes" else ("shapes",)
    why = f"source {self.source!r} does not read it"
    unread = dict.fromkeys(fields, why)
    if self.source == "shapes" and not self.features:
      unread["path"] = f"{why} without features"
    config.refuse_unread(self, unread)

  def check_task(self, *known: str) -> None:
    """For a system: raises ValueError for a task that is none of those it has."""
    if self.task not in known:
      raise ValueError(f"config.data.task: {self.task!r} is not one of {', '.join(known)}")


class Transform(Protocol):
  """One record as arrays of fixed shapes, for one bucket."""

  def __call__(self, record: Record, rng: np.random.Generator, /) -> Arrays:
    """The arrays, of the same shapes for every record; all randomness comes from `rng`.

    Raises:
      BadRecord: a record that cannot be used; the message names it.
    """
    ...

  def tokens(self, record: Record, /) -> int:
    """Tokens that the record's row needs, uncut; 0 where there is nothing to choose by."""
    ...


class Pipeline:
  """Batches of a source.

  Args:
    source: of records.
    transforms: {bucket: transform}; a bucket is the static length that its transform makes. The
      largest takes what is longer.
    cfg: batch, shuffle, seed, threads, prefetch, cache, strict are read.
    rows: of the global batch which this process loads, in any order; all by default. What stands in
      a row does not depend on who loads it.

  Attributes:
    steps_per_epoch: int. replaced: how many damaged records another one stood in for, so far.

  Raises:
    ValueError: fewer records than one batch, rows outside.
  """

  def __init__(
    self,
    source: Source,
    transforms: Mapping[int, Transform],
    cfg: Data,
    rows: Sequence[int] = (),
  ):
    self.source, self.cfg = source, cfg
    self.buckets = tuple(sorted(transforms))
    self._transforms = [transforms[b] for b in self.buckets]
    self._rows = np.array(rows if len(rows) else range(cfg.batch), np.int64)
    if self._rows.min() < 0 or self._rows.max() >= cfg.batch:
      raise ValueError(f"rows {self._rows.min()} to {self._rows.max()} of a batch of {cfg.batch}")
    lengths = np.zeros(len(source), np.int64)
    if len(self.buckets) > 1:
      lengths = estimate_lengths(source, self._transforms[0])
    self._order = Order(lengths, self.buckets, cfg.batch, seed=cfg.seed, shuffle=cfg.shuffle)
    self.steps_per_epoch = self._order.steps_per_epoch
    if not self.steps_per_epoch:
      raise ValueError(f"{len(source)} records do not fill one batch of {cfg.batch}")
    self.replaced = 0
    self._lock = threading.Lock()
    self._cache: dict[tuple[int, int], Arrays] = {}

  @property
  def rows(self) -> int:
    """How many rows of a batch this process loads."""
    return len(self._rows)

  def batch_at(self, step: int) -> Arrays:
    """This process's rows of the batch of a step: {name: array[rows, ...]}."""
    return stack([self.row_at(step, row) for row in range(self.rows)])

  def row_at(self, step: int, row: int) -> Arrays:
    """One of this process's rows of a step, the `row`-th of them; `stack` joins them."""
    epoch, bucket, records = self._order.at(step)
    return self._record(int(records[self._rows[row]]), bucket, epoch)

  def ids_at(self, step: int) -> list[int]:
    """The records of this process's rows at a step, by their index in the source, row by row.

    Where a record is damaged, another stands in for it.
    """
    return self._order.at(step)[2][self._rows].tolist()

  def bucket_at(self, step: int) -> int:
    """The bucket of a step, without reading a record."""
    return self.buckets[self._order.at(step)[1]]

  def position(self, step: int) -> dict[str, Any]:
    """Where a run stands before a step, ready for JSON; `resume` reads it.

    samples: trained on so far. epoch: in progress. seen: the records that it had, marked among all
    of `parts`, which the source consists of. order: the fingerprint of all batches. leg: since when
    they have been in this order, and what the epoch had before.
    """
    epoch, seen = self._order.seen(step)
    leg = self._order.leg
    begun = {"step": leg.step, "samples": leg.samples, "epoch": leg.epoch}
    return {
      "samples": self._order.samples(step),
      "epoch": epoch,
      "seen": self._marked(seen),
      "parts": [dataclasses.astuple(part) for part in self._parts],
      "order": self._fingerprint,
      "leg": begun | {"seen": self._marked(leg.seen)},
      **self._choices(),
    }

  def resume(self, found: Mapping[str, Any], step: int) -> str:
    """Goes on before `step` from what `position` gave there, with these records in these batches.

    Returns:
      "" where nothing changed: every batch is as it would have been. Else what changed and what
      that means: the epoch in progress goes on with what it had not had.

    Raises:
      ValueError: marks of records that cannot be read.
    """
    before = [Part(*part) for part in found["parts"]]
    if found["order"] == self._fingerprint:
      leg = found["leg"]
      seen = self._marks(leg["seen"], before)
      self._order.begin(Leg(leg["step"], leg["samples"], leg["epoch"], seen))
      return ""
    seen = self._marks(found["seen"], before)
    self._order.begin(Leg(step, found["samples"], found["epoch"], seen))
    changes = orders.differences(before, self._parts)
    choices = self._choices().items()
    changes += [f"{name} {found[name]} -> {new}" for name, new in choices if found[name] != new]
    had, steps = int(seen.sum()), self._order.steps_left
    left = len(self.source) - had
    over = left - steps * self.cfg.batch
    return (
      f"{'; '.join(changes) or 'which records are chosen, or their lengths, changed'}. "
      f"{found['samples']} samples were trained on; the epoch in progress had {had} of these "
      f"{len(self.source)} records, which do not come again in it, and goes on with the other "
      f"{left} in {steps} steps" + (f", {over} of them left over" if over else "")
    )

  def _choices(self) -> dict[str, Any]:
    """The fields that decide the order, as JSON gives them back."""
    cfg = self.cfg
    shown = {"batch": cfg.batch, "seed": cfg.seed, "shuffle": cfg.shuffle}
    return shown | {"buckets": list(cfg.buckets)}

  @functools.cached_property
  def _parts(self) -> list[Part]:
    return self.source.parts()

  @functools.cached_property
  def _fingerprint(self) -> str:
    places = hashlib.blake2b(self.source.places().astype("<i8").tobytes()).hexdigest()
    return self._order.fingerprint(*(part.fingerprint for part in self._parts), places)

  def _marked(self, seen: np.ndarray) -> str:
    """Marks of the source's records as text, among all of its parts; "" for none."""
    if not seen.any():
      return ""
    out = np.zeros(sum(part.records for part in self._parts), bool)
    out[self.source.places()] = seen
    return orders.pack(out)

  def _marks(self, text: str, before: Sequence[Part]) -> np.ndarray:
    """Marks of this source's records from the text of one with the parts `before`."""
    if not text:
      return np.zeros(0, bool)
    seen = orders.unpack(text, sum(part.records for part in before))
    seen = orders.moved(seen, before, self._parts)[self.source.places()]
    return seen if seen.any() else np.zeros(0, bool)

  def _record(self, index: int, bucket: int, epoch: int) -> Arrays:
    """One record's arrays; a damaged one is replaced by another of its bucket, the same always."""
    if (index, bucket) in self._cache:
      return self._cache[index, bucket]
    at, members = index, self._order.members(epoch, bucket)
    for attempt in range(ATTEMPTS):
      try:
        rng = np.random.default_rng((self.cfg.seed, epoch, at))
        out = self._transforms[bucket](self.source[at], rng)
        break
      except BadRecord as error:
        if self.cfg.strict:
          raise
        at = int(members[np.random.default_rng((index, attempt)).integers(len(members))])
        self._count(index, at, error)
    else:
      raise BadRecord(f"{ATTEMPTS} replacements of record {index} are damaged too; is the data?")
    if self.cfg.cache:
      self._cache[index, bucket] = out
    return out

  def _count(self, index: int, other: int, error: BadRecord) -> None:
    with self._lock:
      self.replaced += 1
      n = self.replaced
    if n <= 10 or n % 100 == 0:
      text = "damaged record %d (replacement %d so far): %s; record %d stands in"
      logging.warning(text, index, n, error, other)


def open_source(cfg: Data) -> Source:
  """The records of a data config.

  Raises:
    FileNotFoundError, ValueError: see `tars.TarSource`, `embedded.EmbeddedSource`; no path to a
      folder, an empty split.
  """
  if cfg.source == "shapes":
    home = cfg.path if cfg.features else ""
    return embedded.EmbeddedSource(cfg.split, cfg.records, cfg.shapes, features=home)
  if not cfg.path:
    raise ValueError("config.data.path: expected a folder of tars (docs/data.md)")
  source = tars.TarSource(cfg.path)
  if not cfg.holdout and cfg.split == "train":
    chosen = np.arange(len(source))
  else:
    held = source.hashes() < math.floor(cfg.holdout * 2**32)
    chosen = np.flatnonzero(held if cfg.split == "test" else ~held)
  if not len(chosen):
    raise ValueError(f"{cfg.path}: the split {cfg.split!r} is empty; holdout is {cfg.holdout}")
  return Subset(source, chosen[: cfg.records or None])


def estimate_lengths(source: Source, transform: Transform) -> np.ndarray:
  """Tokens that each record's row needs, int64[n], estimated from the bytes of its text.

  What a row needs without its text is counted; its text's tokens are taken as its bytes times the
  largest ratio seen. Both are the largest among 256 records over the whole source, so that few
  texts, if any, are cut.
  """
  ratio, template = 0.0, transform.tokens(Record())
  for index in np.unique(np.linspace(0, len(source) - 1, SAMPLE).astype(np.int64)):
    try:
      record = source[int(index)]
    except BadRecord:
      continue
    bare = transform.tokens(dataclasses.replace(record, prompt="", answer="", turns=()))
    template = max(template, bare)
    ratio = max(ratio, (transform.tokens(record) - bare) / max(text_bytes(record), 1))
  return template + np.ceil(source.lengths() * ratio).astype(np.int64)


def stack(rows: Sequence[Arrays]) -> Arrays:
  """Rows as one batch.

  Raises:
    ValueError: rows of different shapes, by name.
  """
  out = {}
  for name in rows[0]:
    shapes = {row[name].shape for row in rows}
    if len(shapes) > 1:
      raise ValueError(f"{name}: records of one batch have different shapes, {sorted(shapes)}")
    out[name] = np.stack([row[name] for row in rows])
  return out
