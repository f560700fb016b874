"""A set that TFDS prepared as ArrayRecord, as a source, without TensorFlow.

Pictures are taken encoded and decoded as everywhere here: what TFDS itself makes of a palette or of
transparency depends on whether OpenCV happens to be installed.
"""

from collections import Counter
import dataclasses
import functools
from typing import Any
from typing import NamedTuple

from absl import logging
import numpy as np

from blip3o_jax.data import index
from blip3o_jax.data import storage
from blip3o_jax.data.index import stale
from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.records import Record
from blip3o_jax.data.sources.reading import Reading

INFO = "dataset_info.json"
CAPTIONS = ("caption", "prompt", "text")
IMAGES = ("image", "jpg", "picture")
ID = "id"
BLANK = "captions that are empty or white space"
NO_PICTURE = "examples without picture"


class Wanted(NamedTuple):
  """Which split of a prepared set is read, and which of its features; "" is none."""

  path: str
  split: str
  caption: str
  image: str
  inputs: str


class TfdsSource(index.IndexedSource):
  """The examples of one split, in the order of its files.

  A record's id is its feature "id" where the set has one, else its number in the split.

  Args:
    path: the folder of one version (`.../NAME/1.0.0`), local.
    reading: `caption` names a Text feature, or a Sequence of them, of which the first is taken;
      `image` an Image feature; `inputs` another, or a Sequence of them.

  Raises:
    FileNotFoundError: no such folder, or no prepared set in it.
    ValueError: another format than ArrayRecord, no such split or feature, or several to choose
      from; a file that is cut: its index stands at its end, so that with `reading.partial` all of
      it is left out.
  """

  def __init__(self, path: str, reading: Reading):
    self._wanted = _choose(path, reading)
    split = _builder(path).info.splits[self._wanted.split]
    files = [str(file).rpartition("/")[2] for file in split.filepaths]
    scanner = functools.partial(scan, wanted=self._wanted)
    layout = f"tfds {index.digest(*self._wanted[1:])}"
    super().__init__(index.opened(path, files, scanner, layout=layout, partial=reading.partial))
    self._rows = np.asarray(self.index.column("row"))
    self._examples = _examples(self._wanted)
    if told := self.index.told():
      logging.warning("%s: %s", path, told)

  def __getitem__(self, index: int, /) -> Record:
    """Reads one example; raises BadRecord for a file that was changed, or is damaged."""
    example, name = self._read(index)
    wanted = self._wanted
    image = example[wanted.image] if wanted.image else None
    inputs = example[wanted.inputs] if wanted.inputs else ()
    caption = _text(example, wanted.caption, name)
    return Record(
      image=image if image else None,
      inputs=(inputs,) if isinstance(inputs, bytes) else tuple(inputs),
      prompt=caption,
      kind="caption",
      name=name,
    )

  def words(self, index: int, /) -> Record:
    """The caption, and how many pictures there are; raises BadRecord as reading all of it."""
    record = self[index]
    inputs = len(record.inputs)
    extra = {"pictures": inputs + (record.image is not None), "inputs": inputs}
    return dataclasses.replace(record, image=None, inputs=(), extra=extra)

  def _read(self, index: int) -> tuple[dict[str, Any], str]:
    number, _ = self.index.place(index)
    name = self.name(index)
    try:
      if self.index.changed(number):
        raise stale(name)
      return self._examples[int(self._rows[index])], name
    except (OSError, RuntimeError) as error:
      raise BadRecord(f"{name}: cannot be read: {error}", "read") from None


def scan(file: str, wanted: Wanted) -> index.Scanned:
  """The examples of one file, as `index.opened` asks for them.

  Returns:
    Columns row int64[n] (number in the split); keys are ids.
  """
  split = _builder(wanted.path).info.splits[wanted.split]
  names = [str(path).rpartition("/")[2] for path in split.filepaths]
  number = names.index(file.rpartition("/")[2])
  first, count = sum(split.shard_lengths[:number]), split.shard_lengths[number]
  rows: list[int] = []
  keys: list[bytes] = []
  left: Counter[str] = Counter()
  example_of: dict[str, str] = {}
  problem, examples = "", _examples(wanted)
  for row in range(first, first + count):
    try:
      example = examples[row]
    except (RuntimeError, OSError) as error:
      problem = f"cut or damaged ({' '.join(str(error).split())[:200]})"
      lost = f"examples of files that are cut: {count - len(rows) - left.total()} of this one"
      logging.warning("%s: %s; %s", file, problem, lost)
      break
    key = example.get(ID, row)
    key = key if isinstance(key, bytes) else str(key).encode()
    caption = _first(example[wanted.caption])
    what = NO_PICTURE if wanted.image and not example[wanted.image] else ""
    what = what or (BLANK if not caption.strip() else "")
    if what:
      left[what] += 1
      example_of.setdefault(what, key.decode("utf-8", "backslashreplace"))
      continue
    rows.append(row)
    keys.append(key)
  columns = {"row": np.array(rows, np.int64)}
  return index.Scanned(columns, keys, dict(left), example_of, problem)


def _choose(path: str, reading: Reading) -> Wanted:
  """The split and features of a set that are read; says what it guessed."""
  if storage.is_remote(path):
    raise ValueError(f"{path}: array_record reads TFDS's files from local disks; copy the folder")
  info = _builder(path).info
  if (kind := info.file_format.value) != "array_record":
    raise ValueError(
      f"{path}: prepared as {kind}; prepare it with tfds build --file_format=array_record, or "
      "convert it with tfds convert_format --out_file_format=array_record"
    )
  splits = sorted(info.splits)
  split = reading.split or (splits[0] if len(splits) == 1 else "train")
  if split not in splits:
    raise ValueError(f"{path}: split {split!r}: it has {', '.join(splits) or 'none'}")
  kinds = {name: _kind(feature) for name, feature in sorted(info.features.items())}
  texts, pictures = (
    [name for name, kind in kinds.items() if kind in (what, f"{what}s")]
    for what in ("text", "picture")
  )
  caption = _one(path, "caption", reading.caption, [t for t in texts if t != ID], CAPTIONS)
  shown = [name for name in pictures if name != reading.inputs and kinds[name] == "picture"]
  image = _one(path, "image", reading.image, shown, IMAGES)
  inputs = reading.inputs and _one(path, "inputs", reading.inputs, pictures, ())
  logging.info("%s: split %r, caption %r, image %r", path, split, caption, image)
  return Wanted(path, split, caption, image, inputs)


def _one(path: str, what: str, named: str, have: list[str], usual: tuple[str, ...]) -> str:
  """The feature that is named, or the one that is usual, or the only one.

  Raises:
    ValueError: there is none, or it cannot be told.
  """
  usual = tuple(name for name in usual if name in have)
  guess = usual[0] if usual else (have[0] if len(have) == 1 else "")
  chosen = named or guess
  if chosen not in have:
    asked = f"{what} {named!r}" if named else what
    raise ValueError(
      f"{path}: {asked}: expected one of its features {', '.join(have) or '(there is none)'}; "
      f"name it with reading.{what}"
    )
  return chosen


def _kind(feature: Any) -> str:
  """ "text", "texts", "picture", "pictures", or "" for what is not read."""
  import tensorflow_datasets as tfds

  if isinstance(feature, tfds.features.Sequence):
    inside = _kind(feature.feature)
    return f"{inside}s" if inside in ("text", "picture") else ""
  if isinstance(feature, tfds.features.Text):
    return "text"
  return "picture" if isinstance(feature, tfds.features.Image) else ""


def _first(value: Any) -> bytes:
  """The bytes of a Text, or of the first of several."""
  if isinstance(value, bytes):
    return value
  return bytes(value[0]) if len(value) else b""


def _text(example: dict[str, Any], caption: str, name: str) -> str:
  try:
    return _first(example[caption]).decode("utf-8")
  except UnicodeDecodeError as error:
    raise BadRecord(f"{name}: the caption is not UTF-8: {error}", "text") from None


def _examples(wanted: Wanted) -> Any:
  """The examples of a split by number, pictures encoded; thread-safe."""
  import tensorflow_datasets as tfds

  class Encoded(tfds.decode.SkipDecoding):
    """Also in a Sequence, which TFDS's own cannot without TensorFlow."""

    def decode_batch_example_np(self, serialized_example: Any) -> Any:
      return serialized_example

  builder = _builder(wanted.path)
  pictures = [n for n, feature in builder.info.features.items() if _kind(feature)[:3] == "pic"]
  decoders = {name: Encoded() for name in pictures}
  return builder.as_data_source(split=wanted.split, decoders=decoders)


def _builder(path: str) -> Any:
  """TFDS's builder of a prepared set.

  Raises:
    FileNotFoundError, ValueError: see `TfdsSource`.
  """
  info = storage.join(path, INFO)
  if not storage.isfile(info):
    what = "no prepared set of TFDS: it has no" if storage.isdir(path) else "no such folder with a"
    raise FileNotFoundError(f"{path}: {what} {INFO}; name the folder of a version (.../NAME/1.0.0)")
  return _loaded(path, storage.stat(info))


@functools.lru_cache(maxsize=16)
def _loaded(path: str, stat: storage.Stat) -> Any:
  """The builder of a folder whose description is in this state."""
  try:
    import tensorflow_datasets as tfds
  except ImportError:
    raise ValueError("reading TFDS needs it: pip install blip3o-jax[tfds]") from None
  try:
    return tfds.builder_from_directory(path)
  except Exception as error:  # of protobuf, too, which has its own
    raise ValueError(f"{path}: TFDS cannot read what it says of itself: {error}") from None
