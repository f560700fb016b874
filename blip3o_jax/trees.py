"""Trees by name: "a/b/0/kernel" paths, ordered (regex, value) rules with enforced coverage, diffs.

Knows nested dicts with string or integer keys (what `nnx.to_pure_dict` gives). Imports no jax.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import difflib
import re
from typing import Any

Tree = dict[Any, Any]


def flatten(tree: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
  """A nested dict as {"a/b/0": leaf}, in insertion order."""
  out: dict[str, Any] = {}
  for key, value in tree.items():
    path = f"{prefix}{key}"
    if isinstance(value, Mapping):
      out |= flatten(value, f"{path}/")
    else:
      out[path] = value
  return out


def unflatten(flat: Mapping[str, Any]) -> Tree:
  """The inverse of `flatten`; path parts of digits become integer keys (an `nnx.List`)."""
  out: Tree = {}
  for path, value in flat.items():
    *parents, last = (int(p) if p.isdigit() else p for p in path.split("/"))
    node = out
    for part in parents:
      node = node.setdefault(part, {})
    node[last] = value
  return out


def top(path: str) -> str:
  """The first part of a path: the top-level module that a parameter is of."""
  return path.partition("/")[0]


def matcher(patterns: Iterable[str]) -> Callable[[str], bool]:
  """True for paths that one of the regexes matches in full."""
  compiled = [re.compile(p) for p in patterns]
  return lambda path: any(rx.fullmatch(path) for rx in compiled)


def check_patterns(patterns: Sequence[str], paths: Iterable[str], where: str) -> None:
  """Raises ValueError for a regex that matches no path (or is no regex), naming the nearest."""
  paths = list(paths)
  for pattern in patterns:
    try:
      rx = re.compile(pattern)
    except re.error as error:
      raise ValueError(f"{where}: {pattern!r} is not a regular expression: {error}") from None
    if not any(rx.fullmatch(p) for p in paths):
      near = difflib.get_close_matches(pattern, paths, 1, cutoff=0.0)
      raise ValueError(f"{where}: {pattern!r} matches no parameter; nearest is {near[0]!r}")


def partition(tree: Mapping[Any, Any], predicate: Callable[[str], bool]) -> tuple[Tree, Tree]:
  """Splits a nested dict by path: (those for which `predicate` is true, the others)."""
  flat = flatten(tree)
  yes = {p: v for p, v in flat.items() if predicate(p)}
  no = {p: v for p, v in flat.items() if not predicate(p)}
  return unflatten(yes), unflatten(no)


def merge(*trees: Mapping[Any, Any]) -> Tree:
  """The union of nested dicts with disjoint leaves.

  Raises:
    ValueError: a path that occurs twice.
  """
  flat: dict[str, Any] = {}
  for tree in trees:
    for path, value in flatten(tree).items():
      if path in flat:
        raise ValueError(f"{path}: present in two trees that should be disjoint")
      flat[path] = value
  return unflatten(flat)


def diff(expected: Mapping[str, Any], found: Mapping[str, Any], limit: int = 40) -> list[str]:
  """Differences of two flat dicts whose leaves have `.shape`: one readable line each.

  Empty when both name the same leaves with the same shapes. `limit` bounds the number of lines.
  """
  lines = []
  for path in expected:
    if path not in found:
      near = difflib.get_close_matches(path, found, 1)
      lines.append(f"missing {path}" + (f" (nearest found: {near[0]})" if near else ""))
    elif tuple(expected[path].shape) != tuple(found[path].shape):
      lines.append(
        f"shape of {path}: expected {tuple(expected[path].shape)}, found {tuple(found[path].shape)}"
      )
  for path in found:
    if path not in expected:
      near = difflib.get_close_matches(path, expected, 1)
      lines.append(f"unexpected {path}" + (f" (nearest expected: {near[0]})" if near else ""))
  if len(lines) > limit:
    lines = [*lines[:limit], f"... and {len(lines) - limit} more"]
  return lines
