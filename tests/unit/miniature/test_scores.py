"""Verbs are called with few shapes."""

from blip3o_jax.miniature import scores


def test_chunks():
  assert list(scores.chunks(range(3))) == [[0, 1, 2]]
  first, last = scores.chunks(range(scores.BATCH + 2))
  assert first == list(range(scores.BATCH))
  # Filled up to one shape with its first value, so that one program is compiled.
  start = scores.BATCH
  assert last == [start, start + 1] + [start] * (scores.BATCH - 2)
