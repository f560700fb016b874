"""How the files of a set are read: what they do not say themselves."""

import dataclasses
import math
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
