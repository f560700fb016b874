"""Records become batches: a pure function of (seed, step), the same on any number of processes.

Rows of a batch are of one prompt bucket (see `order`), so shapes are static and one program is
compiled a bucket. Where a run stands is what `Pipeline.position` says. Knows no system, no task and
no jax.
"""

from collections import Counter
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import threading
from typing import Any
from typing import Protocol

from absl import logging
import numpy as np

from blip3o_jax.data import marks
from blip3o_jax.data import order as orders
from blip3o_jax.data.batch import Arrays
from blip3o_jax.data.batch import Batch
from blip3o_jax.data.chosen import Chosen
from blip3o_jax.data.opening import open_source
from blip3o_jax.data.opening import used
from blip3o_jax.data.options import Data
from blip3o_jax.data.order import Leg
from blip3o_jax.data.order import Order
from blip3o_jax.data.records import DAMAGE
from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.records import Part
from blip3o_jax.data.records import Record
from blip3o_jax.data.records import Source
from blip3o_jax.data.sources import mixed

__all__ = ["Arrays", "BadDataError", "Data", "Pipeline", "Transform", "open_source"]

ATTEMPTS = 8  # replacements in a row that may fail before the data itself is to blame
ENOUGH = 20  # damaged records before their share says something


class BadDataError(ValueError):
  """More records are damaged than `Data.bad_rate` lets pass."""


class Transform(Protocol):
  """One record as arrays of fixed shapes, for one bucket.

  Attributes:
    counts: names what `tokens` gives: equal for transforms that give the same for every record; ""
      where there is nothing to count.
  """

  counts: str

  def __call__(self, record: Record, rng: np.random.Generator, /) -> Arrays:
    """The arrays, of the same shapes for every record; all randomness comes from `rng`.

    Raises:
      BadRecord: a record that cannot be used; the message names it.
    """
    ...

  def tokens(self, record: Record, /) -> int:
    """Tokens that the row of a record needs, uncut, given its words alone (`Source.words`)."""
    ...


class Pipeline:
  """Batches of a source.

  Args:
    source: of records.
    transforms: {bucket: transform}; a bucket is the static length that its transform makes. The
      largest takes what is longer.
    cfg: split, holdout, records, batch, shuffle, window, seed, threads, prefetch, cache, strict and
      bad_rate are read.
    rows: of the global batch which this process loads, in any order; all by default. What stands in
      a row does not depend on who loads it.

  Attributes:
    steps_per_epoch: int. records: int, those of the source that are used. replaced: how many
      damaged ones another stood in for, so far.

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
    self._pieces = mixed.pieces(source)
    self._used = used(source, cfg)
    self.records = len(self._used)
    if self.records < cfg.batch:
      raise ValueError(f"{self.records} records do not fill one batch of {cfg.batch}")
    self._order = self._ordered()
    self.steps_per_epoch = self._order.steps_per_epoch
    if not self.steps_per_epoch:
      raise ValueError(f"no prompt bucket has the records of one batch of {cfg.batch}")
    self.replaced, self._tried = 0, 0
    self._lock = threading.Lock()
    self._cache: dict[tuple[int, int], Arrays] = {}
    self._damage: list[dict[str, Any]] = []
    self._kinds: Counter[str] = Counter()

  def _ordered(self) -> Order:
    cfg, first = self.cfg, self._transforms[0]
    lengths = []
    if len(self.buckets) > 1 and first.counts:
      lengths = [piece.source.lengths(first.counts, first.tokens) for piece in self._pieces]
    elif len(self.buckets) > 1:
      lengths = [np.zeros(len(self.source), np.uint8)]
    members = orders.divide(lengths, self.buckets, self._used, cfg.batch)
    parts = np.cumsum([0, *(part.records for part in self._parts)]).tolist() if cfg.window else ()
    weights = tuple(piece.weight for piece in self._pieces)
    starts = tuple(mixed.starts(self._pieces))
    mixing = orders.Mixing(starts, weights, tuple(parts), cfg.window)
    return Order(members, cfg.batch, mixing, seed=cfg.seed, shuffle=cfg.shuffle)

  @property
  def rows(self) -> int:
    """How many rows of a batch this process loads."""
    return len(self._rows)

  def batch_at(self, step: int) -> Arrays:
    """This process's rows of the batch of a step: {name: array[rows, ...]}.

    Raises:
      ValueError: rows of different shapes or types, by name.
    """
    batch = Batch(self.rows)
    for row in range(self.rows):
      batch.put(row, self.row_at(step, row))
    return batch.taken()

  def row_at(self, step: int, row: int) -> Arrays:
    """One of this process's rows of a step, the `row`-th of them."""
    epoch, bucket, records = self._order.at(step)
    return self._record(int(records[self._rows[row]]), bucket, epoch, step)

  def ids_at(self, step: int) -> list[int]:
    """The records of this process's rows at a step, by their index in the source, row by row.

    Where a record is damaged, another stands in for it.
    """
    return self._order.at(step)[2][self._rows].tolist()

  def bucket_at(self, step: int) -> int:
    """The bucket of a step, without reading a record."""
    return self.buckets[self._order.bucket(step)]

  def shares(self, first: int, end: int) -> dict[str, float]:
    """Of a mixture, the share that each set had of the samples of the steps from `first` to `end`.

    {} for one set.
    """
    if len(self._pieces) == 1 or first >= end:
      return {}
    found = np.concatenate([self._order.at(step)[2] for step in range(first, end)])
    counts = np.histogram(found, mixed.starts(self._pieces))[0]
    names = [piece.name for piece in self._pieces]
    return dict(zip(names, (counts / len(found)).tolist(), strict=True))

  def drained(self) -> list[dict[str, Any]]:
    """The damaged records that were met since the last call: name, kind, error and stand-in."""
    with self._lock:
      found, self._damage = self._damage, []
    return found

  def position(self, step: int) -> dict[str, Any]:
    """Where a run stands before a step, ready for JSON; `resume` reads it.

    samples: trained on so far. epoch: in progress. began: its first step in this leg. seen: the
    records that it had, marked among all of `parts`, which the source consists of (of a mixture,
    whose records come again, none). order: the fingerprint of all batches. leg: since when they
    have been in this order, what the epoch had before, and the records it consists of where that is
    not all.
    """
    epoch, at = self._order.epoch_of(step)
    seen = self._order.seen(step)[1] if len(self._pieces) == 1 else None
    return {
      "samples": self._order.samples(step),
      "epoch": epoch,
      "began": step - at,
      "seen": marks.pack(seen),
      "parts": [dataclasses.astuple(part) for part in self._parts],
      "order": self._fingerprint,
      "leg": self._order.leg.told,
      **self._choices(),
    }

  def resume(self, found: Mapping[str, Any], step: int) -> str:
    """Goes on before `step` from what `position` gave there, with these records in these batches.

    Returns:
      "" where nothing changed: every batch is as it would have been. Else what changed and what
      that means. Where records were only added, the epoch in progress goes on as it would have,
      and they take part from the next one on; else it goes on with what it had not had.

    Raises:
      ValueError: marks of records that cannot be read.
    """
    before = [Part(*part) for part in found["parts"]]
    had = sum(part.records for part in before)
    leg, marked = found["leg"], marks.unpack(found["seen"], had)
    begun = marks.unpack(leg["seen"], had), marks.unpack(leg.get("among", ""), had)
    if found["order"] == self._fingerprint:
      self._order.begin(Leg(leg["step"], leg["samples"], leg["epoch"], *begun))
      self._order.recall(step, marked)
      return ""
    changes = marks.differences(before, self._parts)
    choices = self._choices().items()
    changes += [f"{name} {found[name]} -> {new}" for name, new in choices if found[name] != new]
    if (said := self._grown(found, before, step, begun)) is not None:
      return f"{'; '.join(changes)}. {said}"
    if len(self._pieces) > 1:
      self._order.begin(Leg(step, found["samples"], found["epoch"] + 1))
      return f"{'; '.join(changes) or 'what is mixed changed'}. The mixture begins anew"
    now = None if marked is None else marks.moved(marked, before, self._parts) & self._used
    self._order.begin(Leg(step, found["samples"], found["epoch"], now))
    count, steps = 0 if now is None else len(now), self._order.steps_left
    left = self.records - count
    over = left - steps * self.cfg.batch
    return (
      f"{'; '.join(changes) or 'which records are chosen, or their lengths, changed'}. "
      f"{found['samples']} samples were trained on; the epoch in progress had {count} of these "
      f"{self.records} records, which do not come again in it, and goes on with the other "
      f"{left} in {steps} steps" + (f", {over} of them left over" if over else "")
    )

  def _grown(
    self,
    found: Mapping[str, Any],
    before: Sequence[Part],
    step: int,
    begun: tuple[Chosen | None, Chosen | None],
  ) -> str | None:
    """Goes on with a set that has only records more: what follows; None where that is not so."""
    there = marks.grown(before, self._parts)
    if there is None or len(there) == there.count:
      return None
    if self._order.fingerprint(*_told(before), among=there) != found["order"]:
      return None
    same = found["epoch"] == found["leg"]["epoch"]  # a later one is whole
    seen, among = (
      marks.moved(m, before, self._parts) if same and m is not None else None for m in begun
    )
    first = found["began"]
    samples = found["samples"] - (step - first) * self.cfg.batch
    of = there if among is None else among
    self._order.begin(Leg(first, samples, found["epoch"], seen, of))
    marked = marks.unpack(found["seen"], sum(part.records for part in before))
    if marked is not None:
      self._order.recall(step, marks.moved(marked, before, self._parts))
    left = self._order.leg.step + self._order.steps_left - step
    return (
      f"The epoch in progress goes on as it would have, for {left} steps; the "
      f"{there.count - len(there)} new records take part from the next one on"
    )

  def _choices(self) -> dict[str, Any]:
    """The fields that decide the order, as JSON gives them back."""
    cfg = self.cfg
    shown = {"batch": cfg.batch, "seed": cfg.seed, "shuffle": cfg.shuffle}
    return shown | {"buckets": list(cfg.buckets)}

  @property
  def fingerprint(self) -> str:
    """Equal where all batches to come are."""
    return f"{self._fingerprint} {self._order.leg.told}"

  @functools.cached_property
  def _parts(self) -> list[Part]:
    return self.source.parts()

  @functools.cached_property
  def _fingerprint(self) -> str:
    return self._order.fingerprint(*_told(self._parts))

  def _record(self, index: int, bucket: int, epoch: int, step: int) -> Arrays:
    """One record's arrays; a damaged one is replaced by another of its bucket, the same always."""
    if (index, bucket) in self._cache:
      return self._cache[index, bucket]
    at = index
    for attempt in range(ATTEMPTS):
      try:
        # Of a mixture a record may come several times in an epoch.
        again = (step,) if len(self._pieces) > 1 else ()
        draws: Any = Draws(self.cfg.seed, epoch, at, *again)
        out = self._transforms[bucket](self.source[at], draws)
        break
      except BadRecord as error:
        if self.cfg.strict:
          raise
        failed = at
        at = self._order.another(step, index, np.random.default_rng((index, attempt)))
        self._count(failed, at, error)
    else:
      raise BadRecord(f"{ATTEMPTS} replacements of record {index} are damaged too; is the data?")
    self._tried += 1
    if self.cfg.cache:
      self._cache[index, bucket] = out
    return out

  def _count(self, index: int, other: int, error: BadRecord) -> None:
    with self._lock:
      self.replaced += 1
      n, tried = self.replaced, self._tried + 1
      self._kinds[error.kind] += 1
      told = {"record": index, "kind": error.kind, "error": str(error), "stands_in": other}
      self._damage.append(told)
    if n <= 10 or n % 100 == 0:
      text = "damaged record %d (replacement %d so far): %s; record %d stands in"
      logging.warning(text, index, n, error, other)
    if n >= ENOUGH and n > self.cfg.bad_rate * max(tried, n):
      kinds = ", ".join(f"{count} {DAMAGE[kind]}" for kind, count in self._kinds.most_common())
      raise BadDataError(
        f"{n} of {max(tried, n)} records are damaged ({kinds}), the last: {error}. That is more "
        f"than config.data.bad_rate {self.cfg.bad_rate}: mend the data, or raise it"
      )


def _told(parts: Sequence[Part]) -> list[str]:
  return [part.fingerprint for part in parts]


class Draws:
  """A `np.random.Generator` that is seeded when it is first asked: few rows of a batch do.

  Seeding takes 15 us, as long as reading cached features.
  """

  def __init__(self, *seed: int):
    self._seed = seed

  @functools.cached_property
  def _made(self) -> np.random.Generator:
    return np.random.default_rng(self._seed)

  def __getattr__(self, name: str) -> Any:
    return getattr(self._made, name)
