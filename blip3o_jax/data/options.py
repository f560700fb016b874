"""The data of a config: which records, as what, in which batches. Checked where it is built."""

import dataclasses
from typing import Literal

from blip3o_jax import config
from blip3o_jax.data.shapes import source as embedded
from blip3o_jax.data.sources.reading import Reading


@dataclasses.dataclass(frozen=True)
class Ingredient:
  """One set of a mixture.

  Attributes:
    path: of the set. weight: its share of the samples, against the others' weights. name: in logs;
      "" is its folder's, of the embedded set its split's. reading: of its files. records: how many
      to use, 0 for as many as `Data.records` says.
    split, shapes: of the embedded set; "" is that of `Data.split`.
  """

  path: str = ""
  weight: float = 1.0
  name: str = ""
  reading: Reading = Reading()
  records: int = 0
  split: str = ""
  shapes: embedded.Mixture = embedded.Mixture()

  def __post_init__(self) -> None:
    if not 0 < self.weight < float("inf") or self.records < 0:
      raise ValueError(
        f"weight {self.weight}, records {self.records}: expected a positive weight and 0 records "
        "(all) or more"
      )


@dataclasses.dataclass(frozen=True)
class Data:
  """Which records, as what, in which batches.

  A system may have no use for a field; what it needs beside them stands in its own config.

  Attributes:
    source: "files" reads files in any layout of `data.sources`, "shapes" is the embedded set,
      "synthetic" are random pictures for benchmarks. path: of the files, a folder, file or address.
    reading: of the files. mixture: several sets in place of `path`, or of `shapes`, by weights.
    split: "train" or "test" of files, one of `shapes.SPLITS` of the embedded set. holdout: share
      of the files' records that are the test split, chosen by a hash of each one's id.
    records: how many to use of each set, 0 for all of the files. shapes: texts of the embedded set.
    task: what the records are to teach, one of the tasks of the system.
    batch: rows of the global batch. buckets: static lengths of token rows.
    image_size: side of the picture that the encoder, the autoencoder or the vision tower takes; 0
      is for understanding rows that never show one.
    features: read cached features instead of pictures ("pixels": beside them).
    squash: resize to a square, whatever the ratio, instead of cutting out the centre.
    friendly: see `images.rgb`.
    shuffle: off keeps the order of the source, for evaluation. seed: of the order. window: 0
      shuffles all records; else files are shuffled, and so many records one after another, so that
      reading stays near one place.
    threads, prefetch: batches loaded at a time, and kept ready. cache: keep transformed records.
    strict: raise for a damaged record, instead of taking another with a warning. bad_rate: share
      of damaged records above which a run stops.
    drop_captions, swap_captions: shares of records that are trained with an empty caption, or with
      the other caption that a source gave (`Record.extra["other"]`).
    pictures: that a conversation or an edit has room for. aspect: of pictures in questions, cut to
      a "square" of image_size, or "native", resized within image_size^2 pixels.
  """

  source: Literal["files", "shapes", "synthetic"] = "files"
  path: str = ""
  reading: Reading = Reading()
  mixture: tuple[Ingredient, ...] = ()
  split: str = "train"
  holdout: float = 0.0
  records: int = 0
  shapes: embedded.Mixture = embedded.Mixture()
  task: str = ""
  batch: int = 32
  buckets: tuple[int, ...] = (64, 160, 448)
  image_size: int = 448
  features: bool = False
  squash: bool = False
  friendly: bool = True
  shuffle: bool = True
  seed: int = 0
  window: int = 0
  threads: int = 8
  prefetch: int = 4
  cache: bool = False
  strict: bool = False
  bad_rate: float = 0.05
  drop_captions: float = 0.0
  swap_captions: float = 0.0
  pictures: int = 1
  aspect: Literal["square", "native"] = "square"

  def __post_init__(self) -> None:
    if not self.buckets or list(self.buckets) != sorted({b for b in self.buckets if b > 0}):
      raise ValueError(f"buckets {self.buckets} are not positive and ascending")
    for name in ("batch", "threads", "prefetch", "pictures"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name} {getattr(self, name)} is not positive")
    for name in ("seed", "window", "records"):
      if getattr(self, name) < 0:
        raise ValueError(f"{name} {getattr(self, name)}: expected 0 or more")
    if not 0 <= self.holdout < 1:
      raise ValueError(f"holdout {self.holdout} is not a share in [0, 1)")
    for name in ("bad_rate", "drop_captions", "swap_captions"):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(f"{name} {getattr(self, name)} is not a share")
    if self.source == "files" and self.split not in ("train", "test"):
      raise ValueError(f"split {self.split!r} of files: expected 'train' or 'test'")
    self._check_read()
    if self.cache and (self.drop_captions or self.swap_captions):
      raise ValueError(
        "cache keeps a record as it was first made: not with drop_captions or swap_captions"
      )

  def _check_read(self) -> None:
    """Raises ValueError for a field that is set, here or of the mixture, and that nothing reads."""
    why = f"source {self.source!r} does not read it"
    unread = dict.fromkeys(("shapes",) if self.source == "files" else ("reading",), why)
    if self.source != "files":
      unread |= dict.fromkeys(("holdout", "friendly"), why)
    if self.source == "synthetic" or (self.source == "shapes" and not self.features):
      unread["path"] = why if self.source == "synthetic" else f"{why} without features"
    for one in self.mixture:
      of_set = dict.fromkeys(("split",) if self.source == "files" else (), why)
      config.refuse_unread(one, unread | of_set)
      if self.source == "files" and not one.path:
        raise ValueError(f"mixture: {one} has no path; expected one of each set of files")
    if self.source == "synthetic":
      unread["mixture"] = why
    if self.mixture:
      unread |= dict.fromkeys(("path", "reading", "shapes"), "each set of the mixture has its own")
    config.refuse_unread(self, unread)

  def alone(self, one: Ingredient) -> "Data":
    """The data of one set of its mixture."""
    return dataclasses.replace(
      self,
      mixture=(),
      path=one.path,
      reading=one.reading,
      records=one.records or self.records,
      split=one.split or self.split,
      shapes=one.shapes,
    )

  def check_task(self, *known: str) -> None:
    """For a system: raises ValueError for a task that is none of those it has."""
    if self.task not in known:
      raise ValueError(f"config.data.task: {self.task!r} is not one of {', '.join(known)}")

  def refuse(self, *fields: str) -> None:
    """For a system: raises ValueError for a field that is set and that its task does not read."""
    config.refuse_unread(self, dict.fromkeys(fields, f"task {self.task!r} does not read it"))
