"""Which records come when: each once, in the shares asked for, near each other where asked."""

import itertools

import numpy as np
import pytest

from blip3o_jax.data import order as orders
from blip3o_jax.data.chosen import Chosen
from blip3o_jax.data.permutation import permuted

BATCH = 8


@pytest.mark.parametrize("count", [1, 2, 5, 4096, 4097, 16384, 16385, 70001])
def test_a_permutation_is_one(count):
  places = np.arange(count)
  found = permuted(places, count, 3, "x")
  np.testing.assert_array_equal(np.sort(found), places)
  some = np.random.default_rng(0).integers(0, count, 40).reshape(8, 5)
  np.testing.assert_array_equal(permuted(some, count, 3, "x"), found[some])
  if count > 5:
    assert (permuted(places, count, 4, "x") != found).any()
    assert (found != places).any()


def test_a_permutation_looks_random():
  """Where a place goes, and which neighbours it keeps, over keys: as chance would have it."""
  count, bins, keys = 50_000, 10, 200
  goes = np.array([permuted(np.array([0, 1, 2]), count, key) for key in range(keys)])
  for column in goes.T:
    expected = keys / bins
    counts = np.histogram(column, bins, (0, count))[0]
    assert np.square(counts - expected).sum() / expected < 27.9  # 9 degrees, 1 in 1000
  one = permuted(np.arange(count), count, 0)
  assert abs(np.corrcoef(one[:-1], one[1:])[0, 1]) < 0.02
  assert np.count_nonzero(np.diff(one) == 1) < 10


def test_the_kth_of_some_numbers():
  for count in (1, 511, 512, 513, 5000):
    mask = np.random.default_rng(count).random(count) < 0.3
    mask[-1] = True
    made, numbers = Chosen(np.packbits(mask), count), np.flatnonzero(mask)
    assert len(made) == len(numbers)
    np.testing.assert_array_equal(made[np.arange(len(numbers))], numbers)
    np.testing.assert_array_equal(made.mask(), mask)
    for end in (0, 1, count // 2, count):
      assert made.below(end) == mask[:end].sum()
    first = made.first(len(numbers) // 2)
    np.testing.assert_array_equal(np.flatnonzero(first.mask()), numbers[: len(numbers) // 2])
    np.testing.assert_array_equal(
      made.within(count // 3, count).mask()[count // 3 :], mask[count // 3 :]
    )
    assert not made.within(count // 3, count).mask()[: count // 3].any()


def made(sizes, weights=(), buckets=(12,), window=0, batch=BATCH, seed=0):
  rng, starts = np.random.default_rng(0), np.cumsum([0, *sizes]).tolist()
  lengths = [rng.integers(1, 13, size).astype(np.uint16) for size in sizes]
  members = orders.divide(lengths, buckets, Chosen.all(starts[-1]), batch)
  parts = tuple(sorted({*range(0, starts[-1], 50), *starts}))
  weights = tuple(weights or [1.0] * len(sizes))
  mixing = orders.Mixing(tuple(starts), weights, parts, window)
  made = orders.Order(members, batch, mixing, seed=seed, shuffle=True)
  return made, np.concatenate(lengths), starts


@pytest.mark.parametrize("window", [0, 64, 999])
@pytest.mark.parametrize("buckets", [(12,), (3, 7, 12)])
@pytest.mark.parametrize(
  ("sizes", "weights"), [((1000,), (1,)), ((300, 900), (1, 2)), ((7, 700, 200), (1, 2, 3))]
)
def test_shares_and_turns(sizes, weights, buckets, window):
  """Each set has its share of samples; none of its records comes twice before all came once."""
  order, lengths, starts = made(sizes, weights, buckets, window)
  counts = np.zeros(starts[-1], int)
  for step in range(4 * order.steps_per_epoch):
    epoch, bucket, found = order.at(step)
    assert epoch == step // order.steps_per_epoch
    assert (np.searchsorted(buckets, lengths[found]) == bucket).all()
    np.add.at(counts, found, 1)
  shares = [counts[a:z].sum() / counts.sum() for a, z in itertools.pairwise(starts)]
  np.testing.assert_allclose(shares, np.array(weights) / sum(weights), atol=0.01)
  for a, z in itertools.pairwise(starts):
    for bucket in range(len(buckets)):
      mine = counts[a:z][np.searchsorted(buckets, lengths[a:z]) == bucket]
      if len(mine) >= 50:
        assert mine.max() - mine.min() <= 5  # one a turn, and what four ends of epochs leave over


def test_one_set_is_seen_once_an_epoch():
  for window in (0, 64):
    order, _, _ = made((1003,), window=window)
    for epoch in range(3):
      steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
      found = np.concatenate([order.at(step)[2] for step in steps])
      assert len(set(found.tolist())) == len(found) == 1000


def test_a_window_reads_few_parts_at_a_time():
  order, _, _ = made((100_000,), window=400)
  parts = [set((order.at(step)[2] // 50).tolist()) for step in range(50)]
  assert len(set.union(*parts)) == 8  # 400 records are 8 parts of 50
  order, _, _ = made((100_000,))
  assert len(set.union(*(set((order.at(s)[2] // 50).tolist()) for s in range(50)))) > 300


def test_seen_is_what_came():
  order, _, _ = made((1000,), buckets=(3, 7, 12))
  for step in (0, 3, 40, order.steps_per_epoch + 7, 5):
    epoch, marked = order.seen(step)
    first = epoch * order.steps_per_epoch
    came = [order.at(s)[2] for s in range(first, step)]
    expected = np.unique(np.concatenate(came)) if came else np.zeros(0)
    found = np.zeros(0) if marked is None else np.flatnonzero(marked.mask())
    np.testing.assert_array_equal(found, expected)


def test_50_million_records_take_no_array_of_their_number():
  """Bits, and blocks of them: two buckets of 50 million are 12.5 MB."""
  import tracemalloc

  count = 50_000_000
  tracemalloc.start()
  half = np.full(-(-count // 8), 0b10101010, np.uint8)
  members = [Chosen(half, count), Chosen(~half, count)]
  mixing = orders.Mixing((0, count))
  order = orders.Order(members, 4096, mixing, seed=0, shuffle=True)
  found = [order.at(step)[2] for step in (0, 5000, 3 * order.steps_per_epoch + 7)]
  assert tracemalloc.get_traced_memory()[1] < 120e6
  tracemalloc.stop()
  assert all(len(set(f.tolist())) == 4096 and f.max() < count for f in found)
