"""Hashes by which weights are known: BLAKE3, and SHA-256 as before it.

A text of one says which it is: "blake3:" and 64 hexadecimal digits; the digits alone are SHA-256.
Both find damage and tell contents apart whoever made them; BLAKE3 takes a fourth of the time.
"""

from collections.abc import Callable
import hashlib
from typing import Any

from blake3 import blake3

ALGORITHMS: dict[str, Callable[..., Any]] = {"blake3": blake3, "sha256": hashlib.sha256}
DEFAULT = "blake3"


def new(algorithm: str) -> Any:
  """An object with `update` and `hexdigest`.

  Raises:
    ValueError: an algorithm that there is not.
  """
  if algorithm not in ALGORITHMS:
    raise ValueError(f"hash {algorithm!r}: expected one of {', '.join(ALGORITHMS)}")
  return ALGORITHMS[algorithm]()


def named(algorithm: str, data: bytes) -> str:
  """The hash of some bytes, as a text that says of which algorithm it is."""
  digest = new(algorithm)
  digest.update(data)
  return digest.hexdigest() if algorithm == "sha256" else f"{algorithm}:{digest.hexdigest()}"


def algorithm(text: str) -> str:
  """Of which algorithm such a text is."""
  return text.rpartition(":")[0] or "sha256"


def difference(before: str, now: str) -> str:
  """Why the hash of a directory's weights is not the one that was recorded, in words."""
  first, second = algorithm(before), algorithm(now)
  if first == second:
    return "whose files changed since"
  return (
    f"which was converted again: its {first} is known, now it has a {second}, so the two cannot be "
    f"compared; import it with --hash {first}"
  )
