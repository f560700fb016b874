"""How the files of a set are read: what they do not say themselves."""

import argparse
import dataclasses
import math
import typing
from typing import Literal

Layout = Literal["auto", "tars", "parquet", "jsonl", "arrayrecord", "tfds"]


@dataclasses.dataclass(frozen=True)
class Reading:
  """How the records of one set are read. "" finds it out, and says so.

  Attributes:
    layout: of the files; "auto" looks at them.
    caption: field or column of the caption ("txt" is the .txt member of a tar). Several with shares
      ("long:0.9 short:0.1") are several records of a picture, drawn in these shares.
    image: field or column of the picture, or pictures, of a row.
    inputs: field or column of the pictures that an edit begins with.
    images: the folder that named pictures lie in, or the folder of tars that hold them; by default
      that of the list.
    dots: of a tar's member a.b.jpg: the key ends at the "first" dot of the name or at the "last".
    joined: a list (JSON, JSONL, parquet) whose rows belong to the pictures in the tars of a folder.
    join: its field that names a picture; with or without its ending.
    whole: a conversation is one record, whose answers keep the marks of their pictures, and not a
      record for each picture that is drawn.
    split: of a published set (`train`), where its files carry it in their names.
    partial: use what is whole of files that are cut short.
  """

  layout: Layout = "auto"
  caption: str = ""
  image: str = ""
  inputs: str = ""
  images: str = ""
  dots: Literal["", "first", "last"] = ""
  joined: str = ""
  join: str = ""
  whole: bool = False
  split: str = ""
  partial: bool = False

  def __post_init__(self) -> None:
    self.captions()

  def captions(self) -> dict[str, float]:
    """{field: share} of the captions, {"": 1} where none is named.

    Raises:
      ValueError: a share that is no positive number, a field named twice.
    """
    out: dict[str, float] = {}
    for word in self.caption.split() or [""]:
      name, colon, text = word.rpartition(":") if ":" in word else (word, "", "1")
      try:
        share = float(text)
      except ValueError:
        share = math.nan
      if not 0 < share < math.inf or name in out or (colon and not name):
        raise ValueError(f"caption {self.caption!r}: expected FIELD or FIELD:SHARE FIELD:SHARE ...")
      out[name] = share
    return out

  def alone(self, caption: str) -> "Reading":
    """The same with one field of captions."""
    return dataclasses.replace(self, caption=caption)


# Of each field as an option of a command: what it takes.
OPTIONS = {
  "layout": "of the files, where several fit",
  "caption": "field or column of the caption (txt: the .txt of a tar), or LONG:0.9 SHORT:0.1",
  "image": "field or column of the picture",
  "inputs": "field or column of the pictures that an edit begins with",
  "images": "folder of the pictures that a list names, or of the tars that hold them",
  "dots": "the dot that ends the key of a.b.jpg in a tar (webdataset's: first; default: last)",
  "joined": "a list whose rows belong to the pictures in the tars of the folder",
  "join": "field of that list that names a picture",
  "whole": "a conversation is one record, with the pictures of its answers",
  "split": "of a published set, as its files' names carry it: train",
  "partial": "use what is whole of files that are cut short",
}


def add_options(parser: argparse.ArgumentParser, *names: str) -> None:
  """The fields of a reading as options of a command: all, or those of some names."""
  hints = typing.get_type_hints(Reading)
  for name in names or OPTIONS:
    default = getattr(Reading, name)
    if isinstance(default, bool):
      parser.add_argument(f"--{name}", action="store_true", help=OPTIONS[name])
    else:
      choices = [word for word in typing.get_args(hints[name]) if word] or None
      parser.add_argument(f"--{name}", default=default, choices=choices, help=OPTIONS[name])


def of_options(options: argparse.Namespace) -> Reading:
  """The reading that the options of `add_options` say."""
  given = vars(options)
  known = [field.name for field in dataclasses.fields(Reading) if field.name in given]
  return Reading(**{name: given[name] for name in known})
