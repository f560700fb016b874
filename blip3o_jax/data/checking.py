"""What a set of records holds, before anything is trained on it.

Captions are looked at one and all, pictures in a sample that is spread over the set. A damaged
record is counted and stops nothing.
"""

from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
import dataclasses
import hashlib
import io
import os
from typing import Any
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from blip3o_jax.data import images
from blip3o_jax.data import lengths as buckets_of
from blip3o_jax.data.index import IndexedSource
from blip3o_jax.data.options import Data
from blip3o_jax.data.records import DAMAGE
from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.records import Record
from blip3o_jax.data.records import Source

SHOWN = 24  # pictures of a page
FIRST = 5  # records in the figures
TRIED = 200  # records that these are looked for among
SIDE = 160  # of a picture on the page
MOST = 10  # sizes, modes and captions that are listed
_CHUNK = 512  # captions that a thread takes at a time
_WINDOW = 256  # pictures in memory
Facts = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Tokens:
  """What counts the tokens of a record's row.

  Attributes:
    name: of what is counted, see `Source.lengths`. count: of a record's words. template: whether
      the prompt around the caption is counted too.
  """

  name: str
  count: Callable[[Record], int]
  template: bool = False


@dataclasses.dataclass(frozen=True)
class Asked:
  """How a set is looked at.

  Attributes:
    sample: pictures to decode, 0 for all. tokens: None counts words and bytes. buckets: that rows
      are padded to. friendly: see `images.rgb`.
  """

  sample: int = 1000
  tokens: Tokens | None = None
  buckets: tuple[int, ...] = Data.buckets
  friendly: bool = True


class Shown(NamedTuple):
  """A record on the page: its id, its caption, and its picture as a small JPEG, or None."""

  id: str
  caption: str
  picture: bytes | None


class _Picture(NamedTuple):
  width: int
  height: int
  mode: str
  format: str


class _Look(NamedTuple):
  """One record that was read and decoded."""

  record: Record | None
  error: BadRecord | None
  pictures: list[_Picture]  # the record's own first, then its inputs
  digest: int | None  # of its own picture's bytes


class _Texts(NamedTuple):
  """Of every record its words, bytes and hash of text, and whether it could be read."""

  words: np.ndarray
  size: np.ndarray
  digest: np.ndarray
  good: np.ndarray


class _Damage:
  """Damaged records by kind, each counted once."""

  def __init__(self) -> None:
    self.counts: Counter[str] = Counter()
    self.first: dict[str, str] = {}

  def add(self, error: BadRecord) -> None:
    self.counts[error.kind] += 1
    self.first.setdefault(error.kind, str(error))

  def facts(self) -> Facts:
    return {
      kind: {"count": self.counts[kind], "what": words, "first": self.first[kind]}
      for kind, words in DAMAGE.items()
      if self.counts[kind]
    }


def check(source: Source, layout: str, asked: Asked = Asked()) -> tuple[Facts, list[Shown]]:
  """Looks at a set.

  Args:
    layout: what its files are called in the figures.

  Returns:
    figures, ready for JSON, and the first pictures. Figures: records; layout; first, the id,
    caption, width and height of up to five usable records (None without a picture); parts, name and
    records of each file; pictures, of the sample, with sizes, modes and formats; captions, with
    tokens, or words and bytes, and how many are empty; buckets, the current and the best ones with
    the share of padding, None without text; duplicates; damaged, by kind; left_out and noted, what
    the index left out and says of the records.

  Raises:
    ValueError: no record.
  """
  if not len(source):
    raise ValueError("no record in it")
  damage = _Damage()
  first, shown = _first(source, asked.friendly)
  texts = _texts(source, damage)
  counted = None
  if asked.tokens is not None:
    counted = np.asarray(source.lengths(asked.tokens.name, asked.tokens.count))[texts.good]
  pictures, copies = _pictures(source, asked, texts.good, damage)
  captions = _captions(texts, counted, asked.tokens)
  facts: Facts = {"records": len(source), "layout": layout, "first": first}
  facts["parts"] = [{"name": p.name, "records": p.records} for p in source.parts()]
  facts |= {"pictures": pictures, "captions": captions}
  facts["buckets"] = _buckets(texts.words[texts.good] if counted is None else counted, asked)
  facts["duplicates"] = {"pictures": copies, "captions": _copies_of_texts(source, texts)}
  return facts | {"damaged": damage.facts(), **_index_facts(source)}, shown


def _first(source: Source, friendly: bool) -> tuple[list[Facts], list[Shown]]:
  """The first records that can be used, as figures and as pictures."""
  first: list[Facts] = []
  shown: list[Shown] = []
  for index in range(min(len(source), TRIED)):
    look = _look(source, index, friendly)
    if look.record is None:
      continue
    record, picture = look.record, look.pictures[0] if look.pictures else None
    if record.image is None:
      picture = None
    if len(first) < FIRST:
      size = (picture.width, picture.height) if picture else (None, None)
      said = {"id": record.name, "caption": record.prompt}
      first.append(said | dict(zip(("width", "height"), size, strict=True)))
    small = None if record.image is None else _small(record.image, record.name, friendly)
    shown.append(Shown(record.name, text_of(record), small))
    if len(shown) == SHOWN:
      break
  return first, shown


def _small(data: bytes | np.ndarray, name: str, friendly: bool) -> bytes:
  image = images.decode(data, name, friendly=friendly)
  image.thumbnail((SIDE, SIDE))
  out = io.BytesIO()
  image.save(out, "JPEG", quality=85)
  return out.getvalue()


def _look(source: Source, index: int, friendly: bool) -> _Look:
  """Reads a record and decodes its pictures."""
  try:
    record = source[index]
    own = () if record.image is None else (record.image,)
    found = [_decoded(data, record.name, friendly) for data in (*own, *record.inputs)]
  except BadRecord as error:
    return _Look(None, error, [], None)
  return _Look(record, None, found, _digest(own[0]) if own else None)


def _decoded(data: bytes | np.ndarray, name: str, friendly: bool) -> _Picture:
  """Size as it is trained on, mode and format as they are stored.

  Raises:
    BadRecord: it cannot be decoded, or is too thin.
  """
  image = images.decode(data, name, friendly=friendly)
  width, height = image.size
  if max(width, height) > images.MAX_RATIO * min(width, height):
    raise BadRecord(f"{name}: an image of {width} x {height} is too thin", "size")
  if isinstance(data, np.ndarray):
    return _Picture(width, height, "RGB", "array")
  with Image.open(io.BytesIO(data)) as stored:
    return _Picture(width, height, stored.mode, stored.format or "")


def _digest(data: bytes | np.ndarray | str) -> int:
  """64 bits of some bytes: of 50 million two are equal by chance once in ten thousand sets."""
  if isinstance(data, str):
    data = data.encode("utf-8", "surrogatepass")
  elif isinstance(data, np.ndarray):
    data = data.tobytes()
  return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def text_of(record: Record) -> str:
  """All words of a record: a caption, or a conversation."""
  turns = [each for turn in record.turns for each in turn]
  return " ".join(filter(None, (record.prompt, record.answer, *turns)))


def _texts(source: Source, damage: _Damage) -> _Texts:
  """Reads the words of every record."""
  count = len(source)
  columns = [np.zeros(count, kind) for kind in (np.uint16, np.uint32, np.uint64, bool)]
  out = _Texts(*columns)

  def some(chunk: range) -> list[BadRecord]:
    errors = []
    for i in chunk:
      try:
        text = text_of(source.words(i)).strip()
      except BadRecord as error:
        errors.append(error)
        continue
      out.words[i] = min(len(text.split()), 65535)
      out.size[i] = len(text.encode("utf-8", "surrogatepass"))
      out.digest[i], out.good[i] = _digest(text), True
    return errors

  chunks = [range(i, min(i + _CHUNK, count)) for i in range(0, count, _CHUNK)]
  with _threads() as pool, _bar(count, "captions") as bar:
    for chunk, errors in zip(chunks, pool.map(some, chunks), strict=True):
      bar.update(len(chunk))
      for error in errors:
        damage.add(error)
  return out


def _pictures(
  source: Source, asked: Asked, good: np.ndarray, damage: _Damage
) -> tuple[Facts, Facts]:
  """Figures of the pictures of a sample, and of those that are there more than once."""
  count = len(source)
  wanted = min(asked.sample or count, count)
  chosen = np.unique(np.linspace(0, count - 1, wanted).round().astype(np.int64))
  sizes: Counter[tuple[int, int]] = Counter()
  modes: Counter[str] = Counter()
  formats: Counter[str] = Counter()
  features: Counter[str] = Counter()
  digests: list[int] = []
  at: list[int] = []
  inputs = 0
  for index, look in _looks(source, chosen, asked.friendly):
    if look.error is not None and good[index]:  # else its text was damaged already
      damage.add(look.error)
    for picture in look.pictures:
      sizes[picture.width, picture.height] += 1
      modes[picture.mode] += 1
      formats[picture.format] += 1
    if look.digest is not None:
      digests.append(look.digest)
      at.append(index)
    if look.record is not None:
      inputs += len(look.record.inputs)
      if look.record.features is not None:
        shape = "x".join(map(str, look.record.features.shape))
        features[f"{look.record.features.dtype}[{shape}]"] += 1
  facts: Facts = {"looked_at": len(chosen), "pictures": sizes.total(), "inputs": inputs}
  facts["sizes"] = _sizes(sizes)
  facts |= {"modes": dict(modes.most_common(MOST)), "formats": dict(formats.most_common(MOST))}
  facts["features"] = dict(features.most_common(MOST))
  return facts, _copies(source, np.array(digests, np.uint64), np.array(at, np.int64))[0]


def _looks(source: Source, chosen: np.ndarray, friendly: bool) -> Iterator[tuple[int, _Look]]:
  with _threads() as pool, _bar(len(chosen), "pictures") as bar:
    for start in range(0, len(chosen), _WINDOW):
      window = chosen[start : start + _WINDOW].tolist()
      for index, look in zip(
        window, pool.map(lambda i: _look(source, i, friendly), window), strict=True
      ):
        bar.update()
        yield index, look


def _sizes(sizes: Mapping[tuple[int, int], int]) -> Facts:
  if not sizes:
    return {}
  counts = np.array(list(sizes.values()))
  width, height = (np.repeat([size[axis] for size in sizes], counts) for axis in (0, 1))
  most = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))[:MOST]
  return {
    "width": quantiles(width),
    "height": quantiles(height),
    "most": [{"width": w, "height": h, "count": count} for (w, h), count in most],
  }


def _captions(texts: _Texts, counted: np.ndarray | None, tokens: Tokens | None) -> Facts:
  there = texts.size[texts.good] > 0
  out: Facts = {"of": int(texts.good.sum()), "empty": int((~there).sum())}
  if counted is not None and tokens is not None:
    return out | {"tokens": quantiles(counted[there]), "template": tokens.template}
  words, size = texts.words[texts.good][there], texts.size[texts.good][there]
  return out | {"words": quantiles(words), "bytes": quantiles(size)}


def _buckets(rows: np.ndarray, asked: Asked) -> Facts | None:
  """Padding of the buckets that are, and of the best ones; None where there is no text."""
  if not len(rows) or not rows.max():
    return None
  most = buckets_of.best(rows)
  current: Facts = {"buckets": list(asked.buckets)}
  current["padding"] = buckets_of.padding(rows, asked.buckets)
  current["cut"] = int(np.count_nonzero(rows > asked.buckets[-1]))
  best = {"buckets": list(most), "padding": buckets_of.padding(rows, most)}
  return {"unit": "words" if asked.tokens is None else "tokens", "current": current, "best": best}


def _copies_of_texts(source: Source, texts: _Texts) -> Facts:
  at = np.flatnonzero(texts.good & (texts.size > 0))
  out, example = _copies(source, texts.digest[at], at)
  if example is not None:
    out["most_frequent"]["caption"] = text_of(source.words(example))
  return out


def _copies(source: Source, digests: np.ndarray, at: np.ndarray) -> tuple[Facts, int | None]:
  """How many of some records repeat another of them, and one of those that occur most often.

  Args:
    digests: uint64[k]. at: int64[k], their records.
  """
  values, inverse, counts = np.unique(digests, return_inverse=True, return_counts=True)
  copies = len(digests) - len(values)
  out: Facts = {"of": len(digests), "copies": copies}
  if not copies:
    return out, None
  alike = at[inverse == counts.argmax()]
  names = [source.words(int(i)).name for i in alike[:3]]
  out["most_frequent"] = {"count": len(alike), "records": names}
  return out, int(alike[0])


def _index_facts(source: Source) -> Facts:
  """What an index left out, notes, and found wrong with files."""
  out: Facts = {"left_out": {}, "noted": {}, "damaged_files": {}}
  if isinstance(source, IndexedSource):
    index = source.index
    for name, counts in (("left_out", index.left), ("noted", index.noted)):
      out[name] = {
        what: {"count": count, "first": index.first.get(what, "")} for what, count in counts.items()
      }
    out["damaged_files"] = dict(index.problems)
  return out


def quantiles(values: Sequence[int] | np.ndarray) -> Facts:
  """{"least", "5 %", "half", "95 %", "most", "mean"} of numbers; {} of none."""
  if not len(values):
    return {}
  found = np.quantile(values, (0, 0.05, 0.5, 0.95, 1), method="nearest").tolist()
  out = dict(zip(("least", "5 %", "half", "95 %", "most"), map(int, found), strict=True))
  return out | {"mean": float(np.mean(values))}


def _threads() -> ThreadPoolExecutor:
  count = min(32, 2 * (os.cpu_count() or 1))
  images.reuse_memory(count)
  return ThreadPoolExecutor(count)


def _bar(total: int, what: str) -> tqdm:
  return tqdm(total=total, unit="record", desc=what, disable=None)
