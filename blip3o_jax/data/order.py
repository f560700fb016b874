"""Which records stand in which batch, and where a run stands in them, counted in samples.

Each epoch shuffles the records of every prompt bucket, cuts them into full batches and mixes the
batches of all buckets: a function of the seed, of the records and of the batch. Where records or
batch change between two calls of a run, it begins a new leg: of the epoch in progress it takes what
it has not seen, and all from the next one on. Knows no record, only their numbers.
"""

import base64
from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Sequence
import dataclasses
import hashlib
import threading
import zlib

from absl import logging
import numpy as np

from blip3o_jax.data.records import Part


@dataclasses.dataclass(frozen=True, eq=False)
class Leg:
  """A stretch of a run in which neither records nor batches change.

  Fields:
    step: that it begins at. samples: trained on before. epoch: that it begins in.
    seen: bool[n], the records that this epoch had before; bool[0] for none.
  """

  step: int = 0
  samples: int = 0
  epoch: int = 0
  seen: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, bool))


@dataclasses.dataclass(frozen=True)
class _Epoch:
  members: Sequence[np.ndarray]  # for each bucket its records, in this epoch's order
  bucket: np.ndarray  # int[steps], which bucket
  start: np.ndarray  # int[steps], where its batch begins


class Order:
  """The batches of a run, by step.

  Args:
    lengths: int[n], tokens that each record's row needs. buckets: ascending. batch: its rows.
    seed, shuffle: of the order; without shuffle it is that of the records.

  Attributes:
    leg: that the run is in. steps_per_epoch: int, of a whole epoch. steps_left: of the leg's first.
  """

  def __init__(
    self, lengths: np.ndarray, buckets: Sequence[int], batch: int, *, seed: int, shuffle: bool
  ):
    self._count, self._batch, self._seed, self._shuffle = len(lengths), batch, seed, shuffle
    self._members = _divide(lengths, buckets, batch)
    self.steps_per_epoch = sum(len(m) // batch for m in self._members)
    self._lock = threading.Lock()
    self.begin(Leg())

  def begin(self, leg: Leg) -> None:
    """Goes on with a leg; its steps alone can be asked for then."""
    self.leg = leg
    self._first = _rest(self._members, leg.seen, self._batch) if len(leg.seen) else self._members
    self.steps_left = sum(len(m) // self._batch for m in self._first)
    self._epochs: dict[int, _Epoch] = {}

  def at(self, step: int) -> tuple[int, int, np.ndarray]:
    """Of a step: its epoch, which bucket it is of, and the records of its batch, int[batch]."""
    epoch, at = self._epoch_of(step)
    order = self._epoch(epoch)
    bucket, start = int(order.bucket[at]), int(order.start[at])
    return epoch, bucket, order.members[bucket][start : start + self._batch]

  def members(self, epoch: int, bucket: int) -> np.ndarray:
    """The records that a bucket has in an epoch, in the order of the source."""
    return (self._first if epoch == self.leg.epoch else self._members)[bucket]

  def seen(self, step: int) -> tuple[int, np.ndarray]:
    """The epoch of a step, and the records that came in it before the step, bool[n]."""
    epoch, at = self._epoch_of(step)
    out = np.zeros(self._count, bool)
    if epoch == self.leg.epoch and len(self.leg.seen):
      out |= self.leg.seen
    if at:
      order = self._epoch(epoch)
      for bucket, members in enumerate(order.members):
        starts = order.start[:at][order.bucket[:at] == bucket]
        out[members[starts[:, None] + np.arange(self._batch)]] = True
    return epoch, out

  def samples(self, step: int) -> int:
    """Samples trained on before a step."""
    return self.leg.samples + (step - self.leg.step) * self._batch

  def fingerprint(self, *more: Hashable) -> str:
    """Equal where the batches are, if also `more` is what a record's number stands for."""
    said = repr((self._batch, self._seed, self._shuffle, more)).encode()
    digest = hashlib.blake2b(said, digest_size=16)
    for members in self._members:
      digest.update(b"%d:" % len(members))
      digest.update(members.astype("<i8").tobytes())
    return digest.hexdigest()

  def _epoch_of(self, step: int) -> tuple[int, int]:
    """The epoch of a step, and its number among the steps that this leg takes in it."""
    step -= self.leg.step
    if step < 0:
      raise ValueError(f"step {step + self.leg.step} lies before the leg from {self.leg.step} on")
    if step < self.steps_left:
      return self.leg.epoch, step
    epoch, at = divmod(step - self.steps_left, self.steps_per_epoch)
    return self.leg.epoch + 1 + epoch, at

  def _epoch(self, epoch: int) -> _Epoch:
    with self._lock:
      if epoch not in self._epochs:
        while len(self._epochs) > 1:  # the neighbours of an epoch's border are both in use
          del self._epochs[min(self._epochs)]
        self._epochs[epoch] = self._shuffled(epoch)
      return self._epochs[epoch]

  def _shuffled(self, epoch: int) -> _Epoch:
    of = [self.members(epoch, b) for b in range(len(self._members))]
    counts = [len(m) // self._batch for m in of]
    bucket = np.repeat(np.arange(len(counts)), counts)
    start = np.concatenate([np.arange(n) * self._batch for n in counts])
    if not self._shuffle:
      return _Epoch(of, bucket, start)
    members = [
      np.random.default_rng((self._seed, epoch, b)).permutation(m) for b, m in enumerate(of)
    ]
    mixed = np.random.default_rng((self._seed, epoch, len(counts))).permutation(len(bucket))
    return _Epoch(members, bucket[mixed], start[mixed])


def _divide(lengths: np.ndarray, buckets: Sequence[int], batch: int) -> list[np.ndarray]:
  """The records of each bucket; those of a bucket that fills no batch move to the next larger."""
  which = np.minimum(np.searchsorted(buckets, lengths), len(buckets) - 1)
  for b in range(len(buckets) - 1):
    if np.count_nonzero(which == b) < batch:
      which[which == b] = b + 1
  members = [np.flatnonzero(which == b) for b in range(len(buckets))]
  if 0 < len(members[-1]) < batch < len(lengths):
    text = "%d records of bucket %d never occur: they do not fill a batch of %d"
    logging.warning(text, len(members[-1]), buckets[-1], batch)
  return members


def _rest(members: Sequence[np.ndarray], seen: np.ndarray, batch: int) -> list[np.ndarray]:
  """What an epoch has left in each bucket; what fills no batch moves on, so little is left over."""
  out, over = [], np.zeros(0, np.int64)
  for bucket, found in enumerate(members):
    left = np.sort(np.concatenate([over, found[~seen[found]]]))
    full = len(left) // batch * batch if bucket < len(members) - 1 else len(left)
    out.append(left[:full])
    over = left[full:]
  return out


def pack(seen: np.ndarray) -> str:
  """bool[n] as text for a JSON file: a bit each, compressed."""
  return base64.b64encode(zlib.compress(np.packbits(seen).tobytes(), 1)).decode()


def unpack(text: str, count: int) -> np.ndarray:
  """What `pack` was given, bool[count].

  Raises:
    ValueError: text of something else.
  """
  try:
    bits = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
  except (ValueError, zlib.error) as error:
    raise ValueError(f"not marks of records: {error}") from None
  if len(bits) != -(-count // 8):
    raise ValueError(f"marks of {8 * len(bits)} records or fewer, expected {count}")
  return np.unpackbits(bits, count=count).astype(bool)


def moved(seen: np.ndarray, before: Sequence[Part], now: Sequence[Part]) -> np.ndarray:
  """Marks of all records of some parts as marks of those of others; what is new has none."""
  starts = np.cumsum([0, *(part.records for part in before)]).tolist()
  out = np.zeros(sum(part.records for part in now), bool)
  start = 0
  for part, i in zip(now, _matches(before, now), strict=True):
    if i is not None:
      count = min(part.records, before[i].records)
      out[start : start + count] = seen[starts[i] : starts[i] + count]
    start += part.records
  return out


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
