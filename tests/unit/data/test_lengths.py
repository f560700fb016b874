"""Prompt buckets: the ones with the least padding, and those of the released stages."""

import itertools

from fakes import TINY
import numpy as np
import pytest

from blip3o_jax import recipes
from blip3o_jax.data import lengths
from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.systems.blip3o import prompts


def test_padding_is_counted():
  assert lengths.padding(np.array([4, 8, 5]), (8,)) == pytest.approx(7 / 24)
  assert lengths.padding(np.array([4, 8, 5, 40]), (4, 8)) == pytest.approx(3 / 28)


@pytest.mark.parametrize("most", [1, 2, 3, 5, 9])
def test_the_best_buckets_are_the_best(most):
  for seed in range(4):
    rows = np.random.default_rng(seed).integers(1, 60, 50)
    found = lengths.best(rows, most, 8)
    ends = sorted({-(-int(r) // 8) * 8 for r in rows})
    others = (
      (*some, ends[-1])
      for count in range(most)
      for some in itertools.combinations(ends[:-1], count)
    )
    assert lengths.padding(rows, found) == pytest.approx(
      min(lengths.padding(rows, other) for other in others)
    )
    assert len(found) <= most
    assert found[-1] == ends[-1]


def test_the_papers_mix_is_little_padded():
  """90 % of captions of some 120 tokens, 10 % of some 20, each after the release's template."""
  rng, template = (
    np.random.default_rng(0),
    len(prompts.generation_ids(Tokenizer.load(TINY, prompts.SPECIAL), "")),
  )
  long, short = rng.normal(120, 25, 9000), rng.normal(20, 6, 1000)
  rows = template + np.maximum(np.concatenate([long, short]), 3).astype(np.int64)
  assert lengths.padding(rows, lengths.best(rows)) < 0.1
  released = recipes.RELEASED["blip3o_8b_pretrain"]("").data.buckets
  assert len(released) <= 6
  assert lengths.padding(rows, released) < 0.15
  with pytest.raises(ValueError, match="no rows"):
    lengths.best(np.zeros(0, np.int64))
