"""Where records come from, one layout a file; which one a folder has, and its source."""

from collections.abc import Sequence
import dataclasses
import itertools
import re
from typing import cast

from blip3o_jax.data import storage
from blip3o_jax.data.records import Source
from blip3o_jax.data.sources.reading import Layout
from blip3o_jax.data.sources.reading import Reading

LAYOUTS = {
  "tars": "WebDataset tars: *.tar, KEY.jpg with KEY.txt or KEY.json",
  "parquet": "parquet: *.parquet, also in folders in it",
  "jsonl": "lists: *.jsonl, *.ndjson, *.json, data.txt",
  "arrayrecord": "a folder of blip3o pack: manifest.json and *.arrayrecord",
  "tfds": "a prepared set of TFDS: dataset_info.json and features.json",
}
# The fields of `Reading` that say something of a layout's files; the others are refused.
READS = {
  "tars": ("caption", "dots", "partial"),
  "tars with a list": ("caption", "inputs", "joined", "join", "partial"),
  "parquet": ("caption", "image", "inputs", "images", "whole", "split", "partial"),
  "jsonl": ("caption", "image", "inputs", "images", "whole", "partial"),
  "arrayrecord": ("caption", "partial"),
  "tfds": ("caption", "image", "inputs", "split", "partial"),
}
_LOOSE = ". Loose pictures with a .txt beside each: tar --sort=name -cf 0.tar -C FOLDER ."
_LOOKED = 40  # members of a tar that say whether it holds captions
_TAR = re.compile(r".+\.tar(?:[._-](?:(?:split|parts?|chunk)[._-]?)?(?:\d+|[a-z]{2,3}))?", re.I)


def opened(path: str, reading: Reading) -> Source:
  """The records of a set in any layout.

  Args:
    path: a folder, a file or an address.
    reading: how to read it; `caption` names one field at most.

  Raises:
    FileNotFoundError: nothing is there. ValueError: no layout that is known, several that fit, a
      field of `reading` that the layout does not read, or files that are damaged: see the sources.
  """
  layout = layout_of(path, reading)
  _check_read(path, "tars with a list" if layout == "tars" and reading.joined else layout, reading)
  if layout == "tars":
    from blip3o_jax.data.sources import tars

    return tars.TarSource(path, reading)
  if layout == "parquet":
    from blip3o_jax.data.sources import parquet

    return parquet.ParquetSource(path, reading)
  if layout == "jsonl":
    from blip3o_jax.data.sources import jsonl

    return jsonl.JsonlSource(path, reading)
  if layout == "arrayrecord":
    from blip3o_jax.data.sources import arrayrecord

    return arrayrecord.ArrayRecordSource(path, reading)
  from blip3o_jax.data.sources import tfds

  return tfds.TfdsSource(path, reading)


def layout_of(path: str, reading: Reading) -> Layout:
  """The layout that a set is read in, one of `LAYOUTS`; errors: see `recognise`."""
  if reading.layout != "auto":
    return reading.layout
  return "tars" if reading.joined else cast(Layout, recognise(path))


def _check_read(path: str, layout: str, reading: Reading) -> None:
  """Raises ValueError for a field that is set and not read."""
  known = READS[layout]
  for field in dataclasses.fields(reading):
    value = getattr(reading, field.name)
    if field.name not in (*known, "layout") and value != field.default:
      raise ValueError(
        f"{path}: reading.{field.name} {value!r} says nothing of {layout}, so leave it unset; "
        f"what is read of it: {', '.join(known)}"
      )


def recognise(path: str) -> str:
  """The layout of a folder or file, one of `LAYOUTS`; nothing but names and beginnings is read.

  Raises:
    FileNotFoundError: nothing is there.
    ValueError: none, or several; what was found and what is known.
  """
  if storage.isfile(path):
    return _of_file(path)
  names = storage.listed(path)
  fits = _of_names(path, names)
  if not fits:
    below = storage.listed(path, recursive=True)
    inside = [name for name in below if "/" in name]
    fits = [
      layout
      for layout, found in (
        ("parquet", any(name.lower().endswith(".parquet") for name in inside)),
        ("tars", any(_TAR.fullmatch(name) for name in inside)),
        ("jsonl", any(name.lower().endswith((".jsonl", ".ndjson")) for name in inside)),
      )
      if found
    ][:1]
    names = names or below
  if len(fits) == 1:
    return fits[0]
  shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
  known = "; ".join(f"{name} ({LAYOUTS[name]})" for name in fits or LAYOUTS)
  what = "fits several layouts" if fits else "has no layout that is known"
  raise ValueError(
    f"{path}: {what}. In it: {shown or 'nothing'}. Name its layout in reading.layout, of {known}"
    + (_LOOSE if any(name.lower().endswith((".jpg", ".jpeg", ".png")) for name in names) else "")
    + (". Sets of save_to_disk (*.arrow): write them with to_parquet" if _arrow(names) else "")
  )


def _arrow(names: Sequence[str]) -> bool:
  return any(name.endswith(".arrow") for name in names)


def _of_file(path: str) -> str:
  name = path.rpartition("/")[2].lower()
  for layout, endings in (
    ("parquet", (".parquet",)),
    ("jsonl", (".jsonl", ".ndjson", ".json", ".txt")),
    ("arrayrecord", (".arrayrecord",)),
  ):
    if name.endswith(endings):
      return layout
  if _TAR.fullmatch(name):
    return "tars"
  known = "; ".join(LAYOUTS.values())
  raise ValueError(f"{path}: a file of a kind that is not known; known are {known}")


def _of_names(path: str, names: Sequence[str]) -> list[str]:
  """The layouts that the files of a folder fit."""
  lower = {name.lower(): name for name in names}
  if "manifest.json" in lower and any(name.endswith(".arrayrecord") for name in lower):
    return ["arrayrecord"]
  if {"dataset_info.json", "features.json"} <= set(lower):
    return ["tfds"]
  tars = [name for name in names if _TAR.fullmatch(name.lower())]
  tables = [name for name in names if name.lower().endswith(".parquet")]
  lists = _lists(path, names)
  # img2dataset writes X.parquet beside X.tar: what the tar holds, once more.
  stems = {name[: name.lower().rindex(".tar")] for name in tars}
  if tars and all(name[: -len(".parquet")] in stems for name in tables):
    tables = []
  fits = [layout for layout, found in (("parquet", tables), ("jsonl", lists)) if found]
  if tars and (not fits or _has_captions(path, tars)):
    fits.insert(0, "tars")
  return fits


def _lists(path: str, names: Sequence[str]) -> list[str]:
  """Files that hold rows: JSONL, and JSON that begins as a list; not what describes a set."""
  found = [name for name in names if name.lower().endswith((".jsonl", ".ndjson"))]
  for name in names:
    if name.lower().endswith(".json"):
      head = storage.read(storage.join(path, name), 0, 4096).removeprefix(b"\xef\xbb\xbf").lstrip()
      if head.startswith(b"[") or _is_line(head):
        found.append(name)
  return found or [name for name in names if name == "data.txt"]


def _is_line(head: bytes) -> bool:
  """Whether JSON begins with an object on a line of its own, and another follows."""
  first, ended, rest = head.partition(b"\n")
  return bool(ended) and first.rstrip().endswith(b"}") and rest.lstrip().startswith(b"{")


def _has_captions(path: str, tars: Sequence[str]) -> bool:
  """Whether the first tar has texts among its first members."""
  from blip3o_jax.data.sources import archives
  from blip3o_jax.data.sources import split

  files, _ = split.files(tars, path)
  walk = archives.Walk(storage.join(path, files[0]), lambda kind, name: None)
  return any(
    name.lower().endswith((".txt", ".json")) for name, *_ in itertools.islice(walk, _LOOKED)
  )
