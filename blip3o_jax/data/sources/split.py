"""Tars that were cut into parts (`x.tar.split.000`, ...), read as the one file that they are.

A split tar is called by its first part and the number of its last: `x.tar.split.000..011`.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import hashlib
import itertools
import re
import string
from typing import BinaryIO

from blip3o_jax.data import storage
from blip3o_jax.data.storage import Stat

_PART = re.compile(
  r"(?P<stem>.+\.tar[._-](?:(?:split|parts?|chunk)[._-]?)?)(?P<number>\d{1,4}|[a-z]{2,3})"
)
_WHOLE = re.compile(r"(?P<stem>.*?)(?P<first>\d+|[a-z]+)\.\.(?P<last>\d+|[a-z]+)")
_starts: dict[str, list[int]] = {}  # where the parts of a split tar begin, and its size


def files(names: Sequence[str], folder: str) -> tuple[list[str], list[str]]:
  """The tars among the names of a folder, those that are split as one each; in order.

  Returns:
    The tars; and split ones that are passed over, as the tar is there in one file too.

  Raises:
    ValueError: a part is missing between others, or before them; it is named.
  """
  whole = [name for name in names if name.lower().endswith(".tar")]
  parts: dict[str, dict[int, str]] = {}
  every = set(names)
  for name in names:
    if (match := _PART.fullmatch(name)) is not None:
      number = match["number"]
      # Letters as `split` counts: without an aa they are an ending, such as gz.
      if number.isdigit() or f"{match['stem']}{'a' * len(number)}" in every:
        parts.setdefault(match["stem"], {})[_value(number)] = number
  out, over = list(whole), []
  for stem, numbers in parts.items():
    first, last = min(numbers), max(numbers)
    called = f"{stem}{numbers[first]}..{numbers[last]}"
    if _tar_of(stem) in whole:
      over.append(called)
      continue
    missing = [i for i in range(int(first == 1), last) if i not in numbers]
    if missing:
      absent = f"{stem}{_number(missing[0], min(numbers.values(), key=len))}"
      after = f"{stem}{numbers[min(i for i in numbers if i > missing[0])]}"
      raise ValueError(
        f"{storage.join(folder, absent)}: this part of a split tar is not there, but {after} is. "
        "Fetch it"
      )
    out.append(called)
  return sorted(out), over


def parts(path: str) -> list[str]:
  """The files that a tar consists of: itself, or the parts of one that was split."""
  folder, slash, name = path.rpartition("/")
  match = _WHOLE.fullmatch(name)
  if match is None:
    return [path]
  first, last = match["first"], match["last"]
  numbers = range(_value(first), _value(last) + 1)
  return [f"{folder}{slash}{match['stem']}{_number(i, first)}" for i in numbers]


def stat(path: str) -> Stat:
  """As `storage.stat`; of a split tar the bytes of all parts, and what changes with any."""
  pieces = parts(path)
  if len(pieces) == 1:
    return storage.stat(pieces[0])
  stats = [storage.stat(piece) for piece in pieces]
  _starts[path] = [0, *itertools.accumulate(each.size for each in stats)]
  text = "\n".join(f"{each.size} {each.stamp}" for each in stats)
  return Stat(_starts[path][-1], hashlib.blake2b(text.encode(), digest_size=8).hexdigest())


def read(path: str, offset: int, size: int) -> bytes:
  """As `storage.read`; of a split tar also across the ends of parts."""
  pieces = parts(path)
  if len(pieces) == 1:
    return storage.read(pieces[0], offset, size)
  return b"".join(_reads(path, pieces, offset, size))


def _reads(path: str, pieces: Sequence[str], offset: int, size: int) -> Iterator[bytes]:
  if path not in _starts:
    stat(path)
  bounds = itertools.pairwise(_starts[path])
  for piece, (first, end) in zip(pieces, bounds, strict=True):
    begin, stop = max(offset, first), min(offset + size, end)
    if begin < stop:
      yield storage.read(piece, begin - first, stop - begin)


def opened(path: str) -> BinaryIO:
  """As `storage.opened`."""
  pieces = parts(path)
  if len(pieces) == 1:
    return storage.opened(pieces[0])
  return storage.streamed(path, stat(path).size, read)


def _tar_of(stem: str) -> str:
  """The name of the tar that parts belong to."""
  return stem[: stem.lower().rindex(".tar") + len(".tar")]


def _value(number: str) -> int:
  if number.isdigit():
    return int(number)
  value = 0
  for letter in number.lower():
    value = 26 * value + string.ascii_lowercase.index(letter)
  return value


def _number(value: int, like: str) -> str:
  """A part's number in the form of another's."""
  if like.isdigit():
    return f"{value:0{len(like)}d}"
  out = ""
  for _ in like:
    value, letter = divmod(value, 26)
    out = string.ascii_lowercase[letter] + out
  return out
