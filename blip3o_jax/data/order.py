"""Which records stand in which batch, and where a run stands in them, counted in samples.

A bucket has in each epoch as many tickets as records; with several sources as many of each as its
weight asks for. Tickets are shuffled, cut into full batches, and the batches of all buckets mixed.
A ticket draws the next record of its source, which hands out each of its own once before any comes
again. All of it is computed place by place, from the seed and the epoch: no array of the set's
length. Where records or batch change between two calls of a run, it begins a new leg: of the epoch
in progress it takes what it has not seen, and all from the next one on. Knows no record, only their
numbers.
"""

from collections.abc import Hashable
from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import threading
from typing import Any

from absl import logging
import numpy as np

from blip3o_jax.data import marks
from blip3o_jax.data.chosen import CHUNK
from blip3o_jax.data.chosen import Chosen
from blip3o_jax.data.permutation import permuted

VERSION = 2  # of the order itself, so that a run of an earlier one is told
KEPT = 2048  # steps whose records are kept: a checkpoint marks them, a log line counts them


@dataclasses.dataclass(frozen=True, eq=False)
class Leg:
  """A stretch of a run in which neither records nor batches change.

  Fields:
    step: that it begins at. samples: trained on before. epoch: that it begins in.
    seen: the records that this epoch had before. among: the records that this epoch consists of;
      None for all that there are.
  """

  step: int = 0
  samples: int = 0
  epoch: int = 0
  seen: Chosen | None = None
  among: Chosen | None = None

  @functools.cached_property
  def told(self) -> dict[str, Any]:
    """Ready for JSON, marks as text; kept, as each checkpoint says it and packing takes long."""
    out: dict[str, Any] = {"step": self.step, "samples": self.samples, "epoch": self.epoch}
    return out | {"seen": marks.pack(self.seen), "among": marks.pack(self.among)}


@dataclasses.dataclass(frozen=True)
class Mixing:
  """What is mixed, and how far.

  Fields:
    starts: where the records of each source begin, and the end of the last. weights: of sources.
    parts: where each part of the sources begins, and the end of the last. window: 0 shuffles all;
      else the parts are shuffled, and so many records one after another.
  """

  starts: tuple[int, ...]
  weights: tuple[float, ...] = (1.0,)
  parts: tuple[int, ...] = ()
  window: int = 0


class Order:
  """The batches of a run, by step.

  Args:
    members: the records of each bucket, see `divide`. batch: its rows. mixing: sources.
    seed, shuffle: of the order; without shuffle it is that of the records.

  Attributes:
    leg: that the run is in. steps_per_epoch: int, of a whole epoch. steps_left: of the leg's first.
  """

  def __init__(
    self, members: Sequence[Chosen], batch: int, mixing: Mixing, *, seed: int, shuffle: bool
  ):
    self._members, self._batch, self._mixing = list(members), batch, mixing
    self._seed, self._shuffle = seed, shuffle
    self.steps_per_epoch = self._whole.steps
    for b, count in enumerate(self._whole.idle if self.steps_per_epoch else ()):
      if count:
        text = "%d records of prompt bucket %d (of %d) never occur: they do not fill a batch of %d"
        logging.warning(text, count, b + 1, len(members), batch)
    self._lock = threading.Lock()
    self.begin(Leg())

  @functools.cached_property
  def _whole(self) -> "_Epochs":
    return _Epochs(self._members, self._batch, self._mixing, self._seed, self._shuffle)

  def begin(self, leg: Leg) -> None:
    """Goes on with a leg; its steps alone can be asked for then."""
    self.leg = leg
    self._first = self._whole
    if leg.seen is not None or leg.among is not None:
      members = self._members
      if leg.among is not None:
        members = settled([m & leg.among for m in members], self._batch)
      if leg.seen is not None:
        members = _rest(members, leg.seen, self._batch)
      self._first = _Epochs(members, self._batch, self._mixing, self._seed, self._shuffle)
    self.steps_left = self._first.steps
    self._marked: tuple[int, int, Chosen | None] = (leg.epoch, 0, leg.seen)
    self._rows: dict[int, tuple[int, int, np.ndarray]] = {}

  def at(self, step: int) -> tuple[int, int, np.ndarray]:
    """Of a step: its epoch, which bucket it is of, and the records of its batch, int64[batch]."""
    found = self._rows.get(step)
    if found is None:
      epoch, at = self.epoch_of(step)
      with self._lock:  # each row of a batch asks: one of them computes it
        found = self._rows.get(step)
        if found is None:
          while len(self._rows) > KEPT:
            del self._rows[next(iter(self._rows))]
          found = self._rows[step] = (epoch, *self._of(epoch).batch(epoch, at))
    return found

  def bucket(self, step: int) -> int:
    """Which bucket a step is of."""
    epoch, at = self.epoch_of(step)
    return int(self._of(epoch).plan(epoch)[0][at])

  def another(self, step: int, record: int, draw: np.random.Generator) -> int:
    """A record of the same bucket and source in the epoch of a step, at random."""
    epoch, bucket, _ = self.at(step)
    return self._of(epoch).another(bucket, record, draw)

  def seen(self, step: int) -> tuple[int, Chosen | None]:
    """The epoch of a step, and the records that came in it before the step; of one source."""
    epoch, at = self.epoch_of(step)
    known, done, marked = self._marked
    if known != epoch or done > at:
      done, marked = 0, self.leg.seen if epoch == self.leg.epoch else None
    if at > done:
      found = [self.at(i)[2] for i in range(step - at + done, step)]
      count = self._members[0].count
      bits = np.zeros(-(-count // 8), np.uint8) if marked is None else marked.bits.copy()
      numbers = np.concatenate(found)
      np.bitwise_or.at(bits, numbers >> 3, (128 >> (numbers & 7)).astype(np.uint8))
      marked = Chosen(bits, count)
    self._marked = (epoch, at, marked)
    return epoch, marked

  def recall(self, step: int, marked: Chosen | None) -> None:
    """Says what `seen` gives for a step, so that it need not be computed."""
    self._marked = (*self.epoch_of(step), marked)

  def samples(self, step: int) -> int:
    """Samples trained on before a step."""
    return self.leg.samples + (step - self.leg.step) * self._batch

  def fingerprint(self, *more: Hashable, among: Chosen | None = None) -> str:
    """Equal where the batches are, if also `more` is what a record's number stands for.

    Args:
      among: as if there were only these records, numbered one after another.
    """
    mixing = self._mixing
    starts = mixing.starts if among is None else tuple(among.below(s) for s in mixing.starts)
    choices = (VERSION, self._batch, self._seed, self._shuffle, mixing.weights, mixing.window)
    said = (choices, starts, more)
    digest = hashlib.blake2b(repr(said).encode(), digest_size=16)
    members = self._members
    if among is not None:
      there = among.mask()
      kept = settled([m & among for m in members], self._batch)
      members = [Chosen(np.packbits(m.mask()[there]), int(there.sum())) for m in kept]
    for member in members:
      digest.update(b"%d:" % len(member))
      digest.update(member.bits.tobytes())
    return digest.hexdigest()

  def epoch_of(self, step: int) -> tuple[int, int]:
    """The epoch of a step, and its number among the steps that this leg takes in it."""
    step -= self.leg.step
    if step < 0:
      raise ValueError(f"step {step + self.leg.step} lies before the leg from {self.leg.step} on")
    if step < self.steps_left:
      return self.leg.epoch, step
    epoch, at = divmod(step - self.steps_left, self.steps_per_epoch)
    return self.leg.epoch + 1 + epoch, at

  def _of(self, epoch: int) -> "_Epochs":
    return self._first if epoch == self.leg.epoch else self._whole


class _Epochs:
  """All epochs over some records.

  Attributes:
    steps: of one. idle: for each bucket the records that it has and no batch.
  """

  def __init__(
    self, members: Sequence[Chosen], batch: int, mixing: Mixing, seed: int, shuffle: bool
  ):
    self._members, self._batch, self._mixing = members, batch, mixing
    self._seed, self._shuffle = seed, shuffle
    self._base = np.array([[m.below(s) for s in mixing.starts] for m in members], np.int64)
    self._have = np.diff(self._base, axis=1)  # [buckets, sources]
    self._tickets = _tickets(self._have, mixing.weights)
    self._counts = self._tickets.sum(1) // batch
    self.steps = int(self._counts.sum())
    self.idle = np.where(self._counts, 0, self._have.sum(1)).tolist()
    self._plans: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    self._turns: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]] = {}
    self._lock = threading.Lock()

  def plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """For each step of an epoch its bucket, and which of the bucket's batches it is."""
    with self._lock:
      if epoch not in self._plans:
        while len(self._plans) > 1:  # the neighbours of an epoch's border are both in use
          del self._plans[min(self._plans)]
        bucket = np.repeat(np.arange(len(self._counts), dtype=np.int16), self._counts)
        if self._shuffle:
          bucket = np.random.default_rng((self._seed, epoch)).permutation(bucket)
        number = np.zeros(len(bucket), np.int64)
        for b, count in enumerate(self._counts):
          number[bucket == b] = np.arange(count)
        self._plans[epoch] = bucket, number
      return self._plans[epoch]

  def batch(self, epoch: int, at: int) -> tuple[int, np.ndarray]:
    """The bucket and the records, int64[batch], of a step of an epoch."""
    buckets, numbers = self.plan(epoch)
    b, tickets = int(buckets[at]), self._tickets[int(buckets[at])]
    places = numbers[at] * self._batch + np.arange(self._batch)
    which, nth = self._drawn(b, epoch, places)
    out = np.zeros(self._batch, np.int64)
    turn, place = np.divmod(epoch * tickets[which] + nth, np.maximum(self._have[b, which], 1))
    for k, t in np.unique(np.stack([which, turn], 1), axis=0).tolist():
      mine = (which == k) & (turn == t)
      out[mine] = self._members[b][self._base[b, k] + self._handed(b, k, t, place[mine])]
    return b, out

  def another(self, bucket: int, record: int, draw: np.random.Generator) -> int:
    """A record of the same bucket and source, at random."""
    k = int(np.searchsorted(self._mixing.starts, record, side="right")) - 1
    place = self._base[bucket, k] + draw.integers(self._have[bucket, k])
    return int(self._members[bucket][np.array([place])][0])

  def _drawn(self, b: int, epoch: int, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For places in a bucket's epoch: of which source each is, and which of its tickets."""
    tickets = self._tickets[b]
    total = int(tickets.sum())
    window = min(self._mixing.window or total, total)

    def given(chunk: np.ndarray) -> np.ndarray:
      """What each source has given before a chunk: its share of the windows, rounded down."""
      return np.minimum(chunk[:, None] * window * tickets // total, tickets)

    chunk = places // window
    chunk = chunk + (places >= given(chunk + 1).sum(1))
    before, share = given(chunk), given(chunk + 1) - given(chunk)
    inside = places - before.sum(1)
    if self._shuffle:
      sizes = share.sum(1)
      for c in np.unique(chunk).tolist():
        mine = chunk == c
        size, key = int(sizes[mine][0]), (self._seed, epoch, b, c)
        inside[mine] = permuted(inside[mine], size, "tickets", *key)
    ends = np.cumsum(share, axis=1)
    which, row = (inside[:, None] >= ends).sum(1), np.arange(len(places))
    return which, (before + inside[:, None] - ends + share)[row, which]

  def _handed(self, b: int, k: int, turn: int, places: np.ndarray) -> np.ndarray:
    """Which records of a source's bucket stand at some places of one turn over all of them."""
    if not self._shuffle:
      return places
    key, count = (self._seed, turn, b, k), int(self._have[b, k])
    if not self._mixing.window:
      return permuted(places, count, "records", *key)
    if key not in self._turns:
      while len(self._turns) > 64:
        del self._turns[next(iter(self._turns))]
      self._turns[key] = self._turned(b, k, key)
    begins, ends = self._turns[key]
    at = np.searchsorted(ends, places, side="right")
    return begins[at] + places - np.concatenate([[0], ends])[at]

  def _turned(self, b: int, k: int, key: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Where the parts of a turn begin among a source's records of a bucket, and end in the turn."""
    first, end = self._mixing.starts[k], self._mixing.starts[k + 1]
    inner = [part for part in self._mixing.parts if first < part < end]
    bounds = np.array([self._members[b].below(p) for p in (first, *inner, end)]) - self._base[b, k]
    bounds = np.unique(bounds)  # without parts that have none of these, such as new ones
    sizes = np.diff(bounds)
    turned = permuted(np.arange(len(sizes)), len(sizes), "parts", *key)
    return bounds[:-1][turned], np.cumsum(sizes[turned])


def _tickets(have: np.ndarray, weights: Sequence[float]) -> np.ndarray:
  """How many tickets of an epoch each bucket of each source has, int64[buckets, sources].

  An epoch is as long as all sources together; within a source the buckets keep their shares.
  """
  if have.shape[1] == 1:
    return have
  totals = np.maximum(have.sum(0), 1)
  share = np.array(weights) * (have.sum(0) > 0)
  wanted = have / totals * (share / max(share.sum(), 1e-300)) * have.sum()
  return np.where(have > 0, np.maximum(np.rint(wanted), 1), 0).astype(np.int64)


def divide(
  lengths: Sequence[np.ndarray], buckets: Sequence[int], among: Chosen, batch: int
) -> list[Chosen]:
  """The records of each bucket.

  Args:
    lengths: int[n] of each source, tokens that each record's row needs; none for one bucket.
    buckets: ascending; the largest takes what is longer. among: the records that there are.
    batch: rows; see `settled`.
  """
  if len(buckets) == 1:
    return [among]
  starts = np.cumsum([0, *map(len, lengths)]).tolist()
  table = np.searchsorted(buckets, np.arange(buckets[-1] + 1)).astype(np.uint8)
  bits: list[list[np.ndarray]] = [[] for _ in buckets]
  for first in range(0, among.count, CHUNK):
    end = min(first + CHUNK, among.count)
    found = np.concatenate(
      [
        piece[max(first - start, 0) : max(end - start, 0)]
        for start, piece in zip(starts, lengths, strict=False)
      ]
    )
    which = table[np.minimum(found.astype(np.int64), buckets[-1])]
    there = among.mask(first, end)
    for b, made in enumerate(bits):
      made.append(np.packbits((which == b) & there))
  out = [Chosen(np.concatenate(made), among.count) for made in bits]
  return settled(out, batch)


def settled(members: Sequence[Chosen], batch: int) -> list[Chosen]:
  """Buckets in which those of one that fills no batch moved to the next larger."""
  out = list(members)
  for b in range(len(out) - 1):
    if len(out[b]) < batch:
      out[b + 1] = out[b + 1] | out[b]
      out[b] = out[b].without(out[b])
  return out


def _rest(members: Sequence[Chosen], seen: Chosen, batch: int) -> list[Chosen]:
  """What an epoch has left in each bucket; what fills no batch moves on, so little is left over."""
  out: list[Chosen] = []
  over: Chosen | None = None
  for bucket, found in enumerate(members):
    left = found.without(seen) if over is None else found.without(seen) | over
    full = len(left) // batch * batch if bucket < len(members) - 1 else len(left)
    out.append(left.first(full))
    over = left.without(out[-1])
  return out
