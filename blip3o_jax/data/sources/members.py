"""The records of one tar: which of its members make one, and where their bytes lie.

Tars that people have hold more than records: a second picture of a key, a key that begins anew, the
twins that a Mac adds, links, files with holes. What is no record is counted, by `LEFT`.
"""

from collections import Counter
import hashlib
import json
from typing import NamedTuple

import numpy as np

from blip3o_jax.data.index import Scanned
from blip3o_jax.data.sources import archives
from blip3o_jax.data.sources.archives import ABSENT
from blip3o_jax.data.sources.archives import BLOCK
from blip3o_jax.data.sources.archives import Leave
from blip3o_jax.data.sources.archives import Place
from blip3o_jax.data.sources.fields import value_of

# Of several pictures of a key the first of these is the picture: masks and depths are PNGs.
PICTURES = ("jpg", "jpeg", "webp", "png")
TXT, JSON = "txt", "json"
PARTS = ("image", "text", "features")
IMAGE, TEXT, FEATURES = range(3)
KNOWN = dict.fromkeys(PICTURES, IMAGE) | {TXT: TEXT, JSON: TEXT, "npy": FEATURES}
# Of a KEY.json without a field that was named, the first of these that it has is the caption.
FIELDS = ("prompt", "caption", "text")
# What a tar may hold beside records.
LEFT = {
  "others": "members of other kinds",
  "bare": "keys without caption or picture",
  "blank": "captions that are empty or white space",
  "json": "captions in files KEY.json that are no JSON object",
  "absent": "captions that are not there: KEY.json has no such field",
  "nested": "captions that are no text but a list, an object or a number of KEY.json",
  "empty": "pictures or features of no bytes",
  "twins": "twins from a Mac (._NAME)",
  "further": f"further pictures, captions or features of a key (of {', '.join(PICTURES)} the first "
  "is taken)",
  "copies": "copies of a key that stands in the tar again, not whole or not to be told apart",
  "links": "symbolic links, or links to what the tar does not hold (tar --dereference packs files)",
  "rest": "bytes behind the end that are no archive",
}
AGAIN = "records have a key that stands in their tar more than once"
DOTS = "records are others where the key ends at the other dot of a name (reading.dots)"


def guessed(field: str) -> str:
  """In words, what is noted of captions whose field was not named."""
  return f"captions are the field {field!r} of KEY.json"


class _Found(NamedTuple):
  run: int  # members of one key with no other key between them have one number
  name: str
  part: int
  rank: int
  place: Place
  said: str  # of a caption: why it is none, one of LEFT, or ""
  field: int  # that the caption is, of `_fields`, from 1; 0 is the text of a file


_Made = tuple[list[Place], int]  # places of picture, text and features; the field of the caption


def scan(path: str, *, caption: str = "", dots: str = "last") -> Scanned:
  """The records of one tar.

  Args:
    path: of the tar, see `split`.
    caption: "txt", a field of KEY.json, or "": a KEY.txt where there is one, else one of `FIELDS`.
    dots: whether the key of a.b.jpg is a ("first") or a.b ("last").

  Returns:
    Columns image_block, text_block, features_block int32[n], in blocks of 512 bytes from the start
    of the tar and -1 for what is absent; image_bytes and so on, uint32[n]; sparse uint8[n], a bit
    for each part that has holes and is placed by its header; field uint8[n], 0 for a KEY.txt and
    else the number of the field, from 1. A record that the end of the file cuts is left out.

  Raises:
    ValueError: not a tar; what it is, where that can be told, and what to do.
  """
  counts: Counter[str] = Counter()
  first: dict[str, str] = {}

  def leave(kind: str, name: str) -> None:
    counts[kind] += 1
    first.setdefault(kind, name)

  walk = archives.Walk(path, leave)
  members, differ = [], False
  for name, place, stream in walk:
    if name.rpartition("/")[2].startswith("._"):
      leave("twins", name)
      continue
    keys = [split_name(name, rule) for rule in ("first", "last")]
    kinds = [kind for key, kind in keys if key and _kind(kind, caption) is not None]
    differ |= keys[0] != keys[1] and bool(kinds)
    said, field = "", 0
    if set(kinds) & {TXT, JSON}:
      said, field = _caption_of(kinds[0], archives.read_stream(stream, place), caption)
    members.append((name, place, said, field))
  records = _records(members, caption, dots, leave)
  noted: Counter[str] = Counter()
  if differ:
    other = "first" if dots == "last" else "last"
    rest = _records(members, caption, other, lambda kind, name: None)
    _note_dots(records, rest, noted, first)
  if counts["again"]:
    noted[AGAIN] = counts["again"]
    first[AGAIN] = first["again"]
  for _, (_, field) in records:
    if field and not caption:
      noted[guessed(FIELDS[field - 1])] += 1
  left = {words: counts[kind] for kind, words in LEFT.items() if counts[kind]}
  first = {LEFT.get(word, word): name for word, name in first.items() if word != "again"}
  keys_of = [key.encode("utf-8", "surrogateescape") for key, _ in records]
  return _scanned(keys_of, [made for _, made in records], left, first, walk.problem, noted)


def split_name(name: str, dots: str) -> tuple[str, str]:
  """(key, ending in lower case) of a member; the key is "" for a name that has none.

  Args:
    dots: "first": the key ends at the first dot of the base name, as the webdataset package splits
      it; "last": at the last.
  """
  folder, slash, base = name.rpartition("/")
  stem, _, kind = base.partition(".") if dots == "first" else base.rpartition(".")
  # The package takes deep/.jpg for a member of the key deep/.
  named = stem or (dots == "first" and folder and "." not in folder.rpartition("/")[2])
  return (f"{folder}{slash}{stem}", kind.lower()) if named else ("", "")


def _kind(ending: str, caption: str) -> int | None:
  """What a member of an ending is, of the parts of a record; None for no part."""
  if (ending == JSON and caption == TXT) or (ending == TXT and caption not in ("", TXT)):
    return None
  return KNOWN.get(ending)


def text(data: bytes) -> str:
  """A caption without the byte order mark that some editors begin it with.

  Raises:
    UnicodeDecodeError: not UTF-8.
  """
  return data.decode("utf-8").lstrip("\ufeff")


def field_of(data: bytes, field: str) -> str:
  """A caption in the bytes of a KEY.json; `a.b` is b inside of a.

  Raises:
    ValueError: no JSON object. KeyError: no such field. TypeError: another value than text.
  """
  value = json.loads(data.decode("utf-8-sig"))
  if not isinstance(value, dict):
    raise ValueError("expected a JSON object")
  found = value_of(value, field)
  if found is None:
    raise KeyError(field)
  if not isinstance(found, str):
    raise TypeError(f"{field}: expected text")
  return found


def _caption_of(kind: str, data: bytes, caption: str) -> tuple[str, int]:
  """(why it is no caption, of `LEFT`, or ""; the number of its field, 0 for a file of text)."""
  if kind == TXT:
    try:
      return ("" if text(data).strip() else "blank"), 0
    except UnicodeDecodeError:  # damaged, which is found when it is read
      return "", 0
  said = "absent" if caption else "others"
  for number, field in enumerate([caption] if caption else FIELDS, 1):
    try:
      return ("" if field_of(data, field).strip() else "blank"), number
    except KeyError:
      continue
    except TypeError:
      said = "nested"
    except (ValueError, RecursionError):
      return ("json" if caption else "others"), 0
  return said, 0


def _records(
  members: list[tuple[str, Place, str, int]], caption: str, dots: str, leave: Leave
) -> list[tuple[str, _Made]]:
  """(key, what it is made of) of each record, in the order of the tar."""
  found: dict[str, list[_Found]] = {}
  run, last = 0, ""
  for name, place, said, field in members:
    key, ending = split_name(name, dots)
    part = _kind(ending, caption)
    if key:
      run, last = run + (key != last), key
    if part is None or not key:
      leave("others", name)
      continue
    rank = PICTURES.index(ending) if part == IMAGE else int(ending == JSON)
    found.setdefault(key, []).append(_Found(run, name, part, rank, place, said, field))
  rows = []
  for key, of_key in found.items():
    copies = _copies(of_key)
    for copy in copies:
      made = _record(copy, leave, "bare" if len(copies) == 1 else "copies")
      if made is not None:
        rows.append((copy[0].run, key, made))
        if len(copies) > 1:
          leave("again", key)
  rows.sort(key=lambda row: row[0])
  return [(key, made) for _, key, made in rows]


def _copies(members: list[_Found]) -> list[list[_Found]]:
  """The members of one key, apart where the key begins anew: no copy takes from another.

  A name that stands twice says so, also one in capitals that stands elsewhere; a copy is then what
  stands together. Members of a key that does not begin anew may stand anywhere.
  """
  names = {member.name.lower() for member in members}
  apart = {(member.name.lower(), member.run) for member in members}
  if len({member.name for member in members}) == len(members) and len(apart) == len(names):
    return [members]
  copies: list[list[_Found]] = []
  for member in members:
    if copies and member.run == copies[-1][0].run and member.name != copies[-1][0].name:
      copies[-1].append(member)
    else:
      copies.append([member])
  return copies


def _record(copy: list[_Found], leave: Leave, incomplete: str) -> _Made | None:
  """The places of picture, text and features, or None where it is no record."""
  if len({member.name for member in copy}) < len(copy):
    leave(incomplete, copy[0].name)
    return None
  made, field = [ABSENT] * 3, 0
  for part in (IMAGE, TEXT, FEATURES):
    there = sorted((m for m in copy if m.part == part), key=lambda m: m.rank)
    if part == TEXT:
      there = _captions(there, leave)
    filled = [m for m in there if m.place.size or part == TEXT]
    for member in there:
      if member not in filled:
        leave("empty", member.name)
    for member in filled[1:]:
      leave("further", member.name)
    if filled:
      made[part] = filled[0].place
      if part == TEXT and filled[0].said:
        leave(filled[0].said, filled[0].name)
        return None
      field = filled[0].field if part == TEXT else field
  if made[TEXT].offset < 0 or max(made[IMAGE].offset, made[FEATURES].offset) < 0:
    leave(incomplete, copy[0].name)
    return None
  return made, field


def _captions(members: list[_Found], leave: Leave) -> list[_Found]:
  """Those of the texts of a key that may be its caption; a KEY.json beside a KEY.txt is not."""
  rank = min((m.rank for m in members if m.said != "others"), default=0)
  for member in members:
    if member.rank != rank or member.said == "others":
      leave("others", member.name)
  return [m for m in members if m.rank == rank and m.said != "others"]


def _note_dots(
  ours: list[tuple[str, _Made]],
  others: list[tuple[str, _Made]],
  noted: Counter[str],
  first: dict[str, str],
) -> None:
  """Counts the records that only one of two rules gives."""
  places = [{tuple(made[0]): key for key, made in records} for records in (ours, others)]
  differing = [key for at, key in places[0].items() if at not in places[1]]
  differing += [key for at, key in places[1].items() if at not in places[0]]
  if differing:
    noted[DOTS], first[DOTS] = len(differing), differing[0]


def _scanned(
  keys: list[bytes],
  made: list[_Made],
  left: dict[str, int],
  first: dict[str, str],
  problem: str,
  noted: Counter[str],
) -> Scanned:
  table = np.array([places for places, _ in made], np.int64).reshape(-1, 3, 3)
  offset, size = table[..., 0], table[..., 1]
  columns: dict[str, np.ndarray] = {}
  for part, name in enumerate(PARTS):
    columns[f"{name}_block"] = np.where(offset >= 0, offset // BLOCK, -1)[:, part].astype(np.int32)
    columns[f"{name}_bytes"] = archives.sizes(size[:, part])
  columns["sparse"] = (table[..., 2] << np.arange(3)).sum(1).astype(np.uint8)
  columns["field"] = np.array([field for _, field in made], np.uint8)
  # As earlier versions made it, so that their runs go on.
  print_of = hashlib.blake2b(b"\0".join(keys), digest_size=16)
  for places in (offset, size):
    print_of.update(np.ascontiguousarray(places, "<i8").tobytes())
  if columns["field"].any():
    print_of.update(columns["field"].tobytes())
  return Scanned(
    columns, keys, left, first, problem, noted=dict(noted), fingerprint=print_of.hexdigest()
  )
