"""A folder of WebDataset tars as a source with random access: an index of places beside them.

Members `KEY.jpg|jpeg|png|webp`, `KEY.txt` (UTF-8 caption) or a field of `KEY.json`, and `KEY.npy`
(cached features); a record is a KEY with a caption and a picture or features (spec 8). Captions may
also stand in a list, see `joined`. Nothing is unpacked.
"""

from collections.abc import Sequence
import dataclasses
import functools
import io
import json
import tarfile

from absl import logging
from ml_dtypes import bfloat16
import numpy as np

from blip3o_jax.data import index as indices
from blip3o_jax.data import storage
from blip3o_jax.data.index import Index
from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.records import Record
from blip3o_jax.data.sources import archives
from blip3o_jax.data.sources import joined
from blip3o_jax.data.sources import members
from blip3o_jax.data.sources import split
from blip3o_jax.data.sources.archives import ABSENT
from blip3o_jax.data.sources.archives import BLOCK
from blip3o_jax.data.sources.archives import Place
from blip3o_jax.data.sources.members import FEATURES
from blip3o_jax.data.sources.members import IMAGE
from blip3o_jax.data.sources.members import PARTS
from blip3o_jax.data.sources.members import TEXT
from blip3o_jax.data.sources.reading import Reading

_ALL = (IMAGE, TEXT, FEATURES)


class TarSource(indices.IndexedSource):
  """The records of the tars of a folder, in the order of file names and then of the tar.

  Args:
    path: a folder or an address, holds `*.tar` or parts of split ones (`x.tar.split.000`, ...).
    reading: caption, dots, joined, join, inputs and partial are read. With `partial`, tars that are
      cut short are indexed too, with their whole records; such an index is read with a warning.
    write, workers: see `index.opened`.

  Raises:
    FileNotFoundError: no such folder, or no tar in it.
    ValueError: a tar that is truncated or damaged, or no tar; no record at all; parts of a split
      tar that are missing.
  """

  def __init__(
    self,
    path: str,
    reading: Reading = Reading(),  # noqa: B008
    *,
    write: bool = True,
    workers: int = 0,
  ):
    names = files(path)
    (caption,) = reading.captions()
    self._fields = [caption] if caption else list(members.FIELDS)
    self._list: joined.List | None = None
    if reading.joined:
      self._list = joined.List(path, reading, write=write)
      index = joined.index(path, names, reading, self._list, write=write, workers=workers)
    else:
      dots = reading.dots or "last"
      index = indices.opened(
        path,
        names,
        functools.partial(members.scan, caption=caption, dots=dots),
        layout=f"tars caption={caption} dots={dots}",
        partial=reading.partial,
        write=write,
        workers=workers,
        stat=split.stat,
      )
    super().__init__(index)
    if not len(index):
      raise ValueError(_nothing(path, index, reading))
    self._numbers = {name: number for number, name in enumerate(index.files)}
    self._say(path, reading)

  def __getitem__(self, index: int, /) -> Record:
    """Reads one record.

    Raises:
      BadRecord: a tar that was changed or cannot be read, text that is not UTF-8, features of an
        unknown form.
    """
    return self._record(index, _ALL)

  def words(self, index: int, /) -> Record:
    """The caption, and how many pictures there are; raises BadRecord as reading all of it."""
    listed = self._list is not None and self._list.inputs
    inputs = len(json.loads(self.index.text("inputs", index))) if listed else 0
    pictures = inputs + (self._place(index, IMAGE).offset >= 0)
    extra = {"pictures": pictures, "inputs": inputs}
    return dataclasses.replace(self._record(index, (TEXT,)), extra=extra)

  def _record(self, index: int, wanted: Sequence[int]) -> Record:
    name = self.name(index)
    number, _ = self.index.place(index)
    data: list[bytes | None] = [None, None, None]
    inputs: tuple[bytes, ...] = ()
    try:
      for part in wanted:
        if part == TEXT and self._list is not None:
          data[part] = self._list.caption(int(self.index.column("row")[index]), name)
        elif (place := self._place(index, part)).offset >= 0:
          data[part] = self._read(number, place, name)
      if self._list is not None and self._list.inputs and IMAGE in wanted:
        inputs = self._inputs(index, name)
    except (OSError, tarfile.TarError) as error:
      raise BadRecord(f"{name}: cannot be read: {error}", "read") from None
    image, caption, features = data
    grid = None if features is None else read_features(features, name)
    prompt = self._prompt(caption or b"", index, name)
    return Record(
      image=image, inputs=inputs, features=grid, prompt=prompt, kind="caption", name=name
    )

  def _prompt(self, caption: bytes, index: int, name: str) -> str:
    field = int(self.index.column("field")[index])
    try:
      return members.field_of(caption, self._fields[field - 1]) if field else members.text(caption)
    except UnicodeDecodeError as error:
      kind = " but UTF-16" if caption[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
      raise BadRecord(f"{name}: the caption is not UTF-8{kind}: {error}", "text") from None
    except (ValueError, KeyError, TypeError) as error:  # it was whole when it was indexed
      raise BadRecord(f"{name}: the caption's KEY.json is damaged: {error}", "text") from None

  def _place(self, index: int, part: int) -> Place:
    column, part_name = self.index.column, PARTS[part]
    block = int(column(f"{part_name}_block")[index])
    if block < 0:
      return ABSENT
    sparse = bool(int(column("sparse")[index]) >> part & 1)
    return Place(block * BLOCK, int(column(f"{part_name}_bytes")[index]), sparse)

  def _read(self, number: int, place: Place, name: str) -> bytes:
    """The bytes at a place of a tar that must be the one that was indexed."""
    if not self.index.changed(number):
      data = archives.read(self.index.path(number), place)
      if len(data) == place.size:
        return data
    raise indices.stale(name, "the tar", f" ({self.index.files[number]})")

  def _inputs(self, index: int, name: str) -> tuple[bytes, ...]:
    places = json.loads(self.index.text("inputs", index))
    return tuple(
      self._read(self._numbers[tar], Place(offset, size, sparse), name)
      for tar, offset, size, sparse in places
    )

  def _say(self, path: str, reading: Reading) -> None:
    """Says once what an index leaves out, and what was decided without being asked."""
    index = self.index
    for tar in index.problems:
      logging.warning("%s: truncated; only its whole records are used", storage.join(path, tar))
    noted = dict(index.noted)
    others = noted.pop(members.DOTS, 0)
    if others and not reading.dots:
      logging.warning(
        "%s: keys end at the last dot of a name; by the rule of the first dot, which the "
        "webdataset package has, %d records are others, the first %s. Name the rule: reading.dots",
        path,
        others,
        indices.printable(index.first[members.DOTS]),
      )
    if self._list is not None:
      self._list.say(len(index))
    if told := indices.told(index.left, noted, {}):
      logging.warning("%s: %s", path, told)


def files(folder: str) -> list[str]:
  """The tars of a folder, in the order of their names; see `split`.

  Raises:
    FileNotFoundError: no such folder, or no tar in it. ValueError: a part of one is missing.
  """
  names = storage.listed(folder)
  found, over = split.files(names, folder)
  for name in over:
    logging.warning("%s: passed over, the tar is there as a whole", storage.join(folder, name))
  if found:
    return found
  hint = ""
  if packed := [name for name in names if name.lower().endswith((".gz", ".tgz"))]:
    hint = f"; undo the compression of {packed[0]} and others with gunzip"
  elif below := storage.listed(folder, ".tar", recursive=True):
    home = storage.join(folder, below[0].rpartition("/")[0])
    hint = f"; name the folder that holds them, such as {home}"
  raise FileNotFoundError(f"{folder}: no *.tar in it{hint}")


def read_features(data: bytes, name: str) -> np.ndarray:
  """The bytes of a .npy file as float[h, w, C]; [n, C] must be a square grid in row-major order.

  bfloat16, which numpy stores as two untyped bytes, is recognised.

  Raises:
    BadRecord: not an .npy file, or another type or shape.
  """
  try:
    array = np.load(io.BytesIO(data), allow_pickle=False)
  except (ValueError, OSError, EOFError) as error:
    raise BadRecord(f"{name}: cached features are damaged: {error}", "read") from None
  if array.dtype.kind == "V" and array.dtype.itemsize == 2:
    array = array.view(bfloat16)
  if array.dtype not in (np.float16, np.float32, bfloat16):
    raise BadRecord(
      f"{name}: cached features are {array.dtype}, not float16, bfloat16 or float32", "read"
    )
  if array.ndim == 2:
    side = round(len(array) ** 0.5)
    if side * side == len(array):
      array = array.reshape(side, side, -1)
  if array.ndim != 3:
    raise BadRecord(
      f"{name}: cached features have shape {array.shape}, not [h, w, C] or [h*w, C]", "read"
    )
  return array


def summary(index: Index) -> str:
  """An index in a line: records, and what of."""
  images, features = (
    int(np.count_nonzero(index.column(f"{part}_block") >= 0)) for part in ("image", "features")
  )
  return (
    f"{len(index)} records in {len(index.files)} tars: {images} with an image, {features} with "
    "cached features"
  )


def _nothing(path: str, index: Index, reading: Reading) -> str:
  """Why a folder has no record."""
  (caption,) = reading.captions()
  needs = "KEY.txt with KEY.jpg or KEY.npy"
  if reading.joined:
    needs = f"KEY.jpg with a row of {reading.joined}"
  elif caption not in ("", "txt"):
    needs = f"KEY.json, its field {caption!r}, with KEY.jpg or KEY.npy"
  said = indices.told(index.left, {}, index.first) or "empty"
  if not caption and not reading.joined:
    said += f". A caption may also be a field of KEY.json: {', '.join(members.FIELDS)}"
    said += ", or one that reading.caption names"
  return f"{path}: no record in {len(index.files)} tars ({needs}); {said}"
