"""Trees by name."""

import numpy as np
import pytest

from blip3o_jax import trees

TREE = {"a": {"kernel": 1, "bias": 2}, "b": {0: {"kernel": 3}, 1: {"kernel": 4}}}
FLAT = {"a/kernel": 1, "a/bias": 2, "b/0/kernel": 3, "b/1/kernel": 4}


def test_flatten_and_back():
  assert trees.flatten(TREE) == FLAT
  assert trees.unflatten(FLAT) == TREE


def test_matcher_wants_the_whole_path():
  match = trees.matcher(["a/.*", "kernel"])
  assert match("a/kernel")
  assert not match("b/0/kernel")


@pytest.mark.parametrize(
  ("patterns", "message"),
  [
    ([".*", "c/kernle"], "decay: 'c/kernle' matches no parameter; nearest is 'a/kernel'"),
    (["("], r"decay: '\(' is not a regular expression"),
  ],
)
def test_patterns_that_do_not_fit_are_named(patterns, message):
  trees.check_patterns(["a/.*", ".*bias"], FLAT, "decay")
  with pytest.raises(ValueError, match=message):
    trees.check_patterns(patterns, FLAT, "decay")


def test_partition_and_merge():
  yes, no = trees.partition(TREE, lambda path: path.endswith("bias"))
  assert yes == {"a": {"bias": 2}}
  assert trees.flatten(trees.merge(no, yes)) == FLAT
  with pytest.raises(ValueError, match="a/bias: present in two trees"):
    trees.merge(TREE, yes)


def test_diff_names_what_differs():
  expected = {"a/kernel": np.zeros((2, 3)), "b": np.zeros(4)}
  found = {"a/kernle": np.zeros((2, 3)), "b": np.zeros(5)}
  assert trees.diff(expected, expected) == []
  assert trees.diff(expected, found) == [
    "missing a/kernel (nearest found: a/kernle)",
    "shape of b: expected (4,), found (5,)",
    "unexpected a/kernle (nearest expected: a/kernel)",
  ]
  many = {f"x{i}": np.zeros(1) for i in range(50)}
  assert trees.diff(many, {}, limit=3)[-1] == "... and 47 more"
