"""Under which licence a set of records stands, as far as its own files tell."""

import json
import re
from typing import NamedTuple

from blip3o_jax import files
from blip3o_jax.data import storage

MANIFEST, CARD, TFDS = "manifest.json", "README.md", "dataset_info.json"
TEXT = re.compile(r"(LICEN[SC]E|COPYING)(\.\w+)?", re.IGNORECASE)
_MOST = 2**20  # bytes of a file that is looked at; a set's index may have this name too
_HEAD = re.compile(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", re.DOTALL)
_FIELD = re.compile(r"^license(?:_name)?:[ \t]*(.*)\n((?:[ \t]*-[ \t].*\n)*)", re.MULTILINE)


class Note(NamedTuple):
  """What a set says of its licence: `name`, in its `file`; both "" where it says nothing."""

  name: str = ""
  file: str = ""

  def __str__(self) -> str:
    return f"{self.name} ({self.file})" if self.name else "none named"


def note(path: str) -> Note:
  """What the folder of a set says, or the folder that its file lies in.

  Looked at in this order: what `blip3o pack` was told, TFDS's description, the head of the data
  set's card (README.md, as on Hugging Face), a file that is called LICENSE. What cannot be read
  says nothing.

  Args:
    path: a folder, a file or an address; "" is no set of files.
  """
  if not path:
    return Note()
  try:
    folder = path if storage.isdir(path) else path.rpartition("/")[0] or "."
    names = storage.listed(folder)
  except (OSError, files.Unreachable):  # a place that is not listed, such as a file behind http
    return Note()
  for file, said in ((MANIFEST, _packed), (TFDS, _tfds), (CARD, card)):
    if file in names and (name := said(_text(storage.join(folder, file)))):
      return Note(name, file)
  texts = [name for name in names if TEXT.fullmatch(name)]
  return Note("see there", texts[0]) if texts else Note()


def card(text: str) -> str:
  """The licence in the head (YAML) of a card of Hugging Face; of several, with commas between."""
  head = _HEAD.match(text)
  found = _FIELD.search(f"{head[1]}\n") if head else None
  if found is None:
    return ""
  several = [line.strip().removeprefix("-") for line in found[2].splitlines()]
  values = several or found[1].strip("[] ").split(",")
  names = [value.strip().strip("\"'") for value in values]
  return ", ".join(name for name in names if name not in ("", "null", "~"))


def _packed(text: str) -> str:
  return _field(text, "licence")


def _tfds(text: str) -> str:
  return _field(text, "redistributionInfo", "license")


def _field(text: str, *names: str) -> str:
  try:
    value = json.loads(text)
    for name in names:
      value = value[name]
  except (ValueError, LookupError, TypeError):
    return ""
  return value.strip() if isinstance(value, str) else ""


def _text(file: str) -> str:
  try:
    size = storage.stat(file).size
    return bytes(storage.read(file, 0, size)).decode(errors="replace") if size <= _MOST else ""
  except (OSError, files.Unreachable):
    return ""
