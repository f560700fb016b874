"""What a record is, and what a source of records offers. Knows no file format and no model."""

from collections.abc import Mapping
import dataclasses
from typing import Any
from typing import Protocol

import numpy as np


class BadRecord(ValueError):
  """A record that cannot be used (undecodable image, damaged text); the message names it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
  """One sample of a data set.

  Fields:
    image: an encoded picture (JPEG, PNG, WebP), a uint8[h, w, 3] array, or None.
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
  features: np.ndarray | None = None
  prompt: str = ""
  answer: str = ""
  turns: tuple[tuple[str, str], ...] = ()
  extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  kind: str = ""
  name: str = ""


def text_bytes(record: Record) -> int:
  """Bytes of a record's prompt, answer and further turns, in UTF-8."""
  return len((record.prompt + record.answer + "".join(q + a for q, a in record.turns)).encode())


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

  `source[i]` raises BadRecord for a record that is damaged. `lengths()` is int64[n]: the bytes of
  each record's text, exactly or nearly, cheap to get; prompt buckets are chosen by it. `parts()` is
  what it is made of, and `places()` int64[n] where each record stands in the parts, one after
  another: a run that goes on with other data finds by them what it has seen.
  """

  def __len__(self) -> int: ...

  def __getitem__(self, index: int, /) -> Record: ...

  def lengths(self) -> np.ndarray: ...

  def parts(self) -> list[Part]: ...

  def places(self) -> np.ndarray: ...


class Subset:
  """The records of another source that `indices` (int[n]) names, in that order."""

  def __init__(self, source: Source, indices: np.ndarray):
    self._source, self._indices = source, np.asarray(indices, np.int64)

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int, /) -> Record:
    return self._source[int(self._indices[index])]

  def lengths(self) -> np.ndarray:
    return self._source.lengths()[self._indices]

  def parts(self) -> list[Part]:
    return self._source.parts()

  def places(self) -> np.ndarray:
    return self._source.places()[self._indices]
