"""What a record is, and what a source of records offers. Knows no file format and no model."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
from typing import Any
from typing import Protocol

import numpy as np

# How a record is damaged: `BadRecord.kind`.
DAMAGE = {
  "picture": "pictures that cannot be decoded",
  "size": "pictures that are too large, or too thin",
  "text": "texts that are not UTF-8, or damaged",
  "empty": "captions that are empty",
  "missing": "pictures, captions or features that are not there",
  "lists": "rows whose lists do not belong together",
  "read": "records that cannot be read from their file",
  "other": "others",
}


class BadRecord(ValueError):
  """A record that cannot be used; the message names it.

  Attributes:
    kind: of damage, one of `DAMAGE`.
  """

  def __init__(self, message: str, kind: str = "other"):
    super().__init__(message)
    assert kind in DAMAGE, kind
    self.kind = kind


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
  """One sample of a data set.

  Fields:
    image: the picture to draw, or to be asked about: encoded (JPEG, PNG, WebP), a uint8[h, w, 3]
      array, or None.
    inputs: pictures that a prompt shows before it asks for another (an edit), or the further ones
      of a conversation, in the order in which they are named.
    features: cached encoder features, float[h, w, C], or None.
    prompt: the caption to draw, or the question to answer.
    answer: what a question is answered with; empty for a caption.
    turns: further questions and answers of the same conversation, in order.
    extra: what a source may add for a system's own tasks, {name: value}; the source says what it
      adds, the system what it reads.
    kind: of record, free text ("caption", a question type, a test category).
    name: how errors call the record.
  """

  image: bytes | np.ndarray | None = None
  inputs: tuple[bytes | np.ndarray, ...] = ()
  features: np.ndarray | None = None
  prompt: str = ""
  answer: str = ""
  turns: tuple[tuple[str, str], ...] = ()
  extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  kind: str = ""
  name: str = ""


@dataclasses.dataclass(frozen=True)
class Part:
  """Records of a source that stay together, as a tar does.

  Fields:
    name: of the part. records: how many. fingerprint: equal for the same records in the same order;
      of two parts with one fingerprint the shorter is the beginning of the longer.
  """

  name: str
  records: int
  fingerprint: str


class Source(Protocol):
  """Random access to records. Reading is thread-safe; a record does not depend on what came before.

  `source[i]` raises BadRecord for a record that is damaged. `words(i)` is the same record without
  pictures and features, and cheap to get; `extra` says how many there are, "pictures" of all and
  "inputs" of them, where there are any. `lengths(name, count)` is int[n], `count` of each
  record's words, 0 where they are damaged; a source that keeps an index stores it under `name`.
  `hashes(first, end)` is uint32[end - first], a hash of each id that no other record changes: the
  held-out split is chosen by it. `parts()` is what the source is made of, records in this order: a
  run that goes on with other data finds by them what it has seen.
  """

  def __len__(self) -> int: ...

  def __getitem__(self, index: int, /) -> Record: ...

  def words(self, index: int, /) -> Record: ...

  def lengths(self, name: str, count: Callable[[Record], int], /) -> np.ndarray: ...

  def hashes(self, first: int, end: int, /) -> np.ndarray: ...

  def parts(self) -> list[Part]: ...


def counted(source: Source, count: Callable[[Record], int]) -> np.ndarray:
  """`lengths` of a source that stores none: int32[n], each record's words counted now."""

  def tokens(index: int) -> int:
    try:
      return count(source.words(index))
    except BadRecord:
      return 0

  return np.fromiter(map(tokens, range(len(source))), np.int32, len(source))
