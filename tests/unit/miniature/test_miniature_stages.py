"""What the miniature's tuning is made of."""

import collections

from blip3o_jax.miniature import stages


def test_the_weakest_category_is_tuned_on_most():
  failed = {"position": 0.7, "counting": 0.2, "colors": 0.1, "single_object": 0.0}
  chosen = stages.shares(failed, 14)
  counts = collections.Counter(chosen)
  assert counts == {"position": 8, "counting": 3, "colors": 2, "single_object": 1}
  # Spread over the turn, so that a batch holds all of them.
  assert 3 <= chosen[:7].count("position") <= 5


def test_without_failures_all_come_equally_often():
  chosen = stages.shares(dict.fromkeys("abc", 0.0), 12)
  assert collections.Counter(chosen) == dict.fromkeys("abc", 4)
