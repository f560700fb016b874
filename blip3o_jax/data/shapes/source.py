"""The embedded set of shapes as a source of records; nothing is read from disk.

Knows which texts go with a scene for which purpose; scenes, pixels and words are `data/shapes`.
"""

from collections.abc import Callable
import dataclasses
import hashlib
import itertools
from pathlib import Path
from typing import Any
import zlib

import numpy as np

from blip3o_jax import config
from blip3o_jax.data import shapes
from blip3o_jax.data.records import Part
from blip3o_jax.data.records import Record
from blip3o_jax.data.records import counted

DESCRIBE = "describe the picture."
FEATURES = "features.npy"  # float[scenes, h, w, C], in the order of the scenes
_STREAM = 1001  # of a record's own choices, apart from its scene's


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Which texts stand with the scenes.

  Attributes:
    questions: records with answers (understanding) instead of captions.
    long_captions: share of captions that are long.
    categories: test categories in whose manner captions are written, in turn (instruction tuning);
      empty for captions of any scene.
    edits: kinds of edits, in turn: a record is the instruction, the picture before it and the one
      after it, in place of a caption with its picture; the scenes are `extra["scenes"]`.
    most: objects of a picture that is edited. Of one there is nothing to choose, and to take it
      away is no edit.
    descriptions, text_questions: shares of understanding records that ask for a caption of the
      picture, or ask about a caption without a picture; the rest asks about the picture.
    turns: most questions of an understanding record, all about one scene. With 1, a description is
      a record of its own; with more, it is the last turn.
    reading, seeing: shares of understanding records that have no answer but the words of a prompt
      for a picture (`shapes.told`), or of a picture that is to be drawn again (`shapes.shown`), as
      `extra["reads"]`; only with several turns.
    places: share of understanding records with a picture that have a word for the row or the column
      of each of its cells (`shapes.placed`), as `extra["places"]`; only with several turns. Of
      edits, share with a word for what each cell of the picture becomes (`shapes.standing`).
    growing: a curriculum where `Data.shuffle` is off: the first growing[0] pictures that
      conversations are about have one object, the next growing[1] at most two, and so on; captions
      one more. With nothing to choose from, colour and shape are learned at once; of two objects
      a model learns to choose sooner than of four.
    kinds: of questions, in turn; empty for all.
    variants: records of each scene, in different words.
    seed: of the scenes.
  """

  questions: bool = False
  long_captions: float = 0.0
  categories: tuple[str, ...] = ()
  edits: tuple[str, ...] = ()
  most: int = shapes.MOST_OBJECTS
  descriptions: float = 0.2
  text_questions: float = 0.2
  turns: int = 1
  reading: float = 0.0
  seeing: float = 0.0
  places: float = 0.0
  growing: tuple[int, ...] = ()
  kinds: tuple[str, ...] = ()
  variants: int = 1
  seed: int = 0

  def __post_init__(self) -> None:
    for name in ("long_captions", "descriptions", "text_questions", "reading", "seeing", "places"):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(f"{name} {getattr(self, name)} is not a share")
    if self.variants < 1 or (self.variants > 1 and (self.categories or self.edits)):
      raise ValueError(
        f"variants {self.variants}: expected 1 or more, and 1 with categories or edits"
      )
    placed = self.places and not self.edits
    if self.turns < 1 or (
      self.turns == 1 and (self.growing or self.reading or self.seeing or placed)
    ):
      raise ValueError(
        f"turns {self.turns}, growing {self.growing}, reading {self.reading}, seeing "
        f"{self.seeing}, places {self.places}: expected 1 turn or more, and the others only with "
        "several"
      )
    if self.reading + self.seeing + self.text_questions > 1:
      raise ValueError("reading, seeing and text_questions together exceed 1")
    if min(self.growing, default=0) < 0 or len(self.growing) >= shapes.MOST_OBJECTS:
      raise ValueError(
        f"growing {self.growing}: expected counts of scenes with at most 1, 2, ... "
        f"{shapes.MOST_OBJECTS - 1} objects"
      )
    if self.turns == 1 and self.descriptions + self.text_questions > 1:
      raise ValueError("descriptions and text_questions together exceed 1")
    unread: tuple[str, ...] = ("categories",) if self.turns > 1 else ()
    if not self.questions:
      asked = "descriptions text_questions turns reading seeing growing kinds"
      unread = (*asked.split(), *(() if self.edits else ("places",)))
    why = f"not read with questions {self.questions} and turns {self.turns}"
    config.refuse_unread(self, dict.fromkeys(unread, why))
    if not 1 <= self.most <= shapes.MOST_OBJECTS or (self.most == 1 and "remove" in self.edits):
      raise ValueError(
        f"most {self.most}: expected 1 to {shapes.MOST_OBJECTS} objects, and with edits 'remove' 2 "
        "or more"
      )
    if not self.edits:
      config.refuse_unread(self, {"most": "read with edits alone"})
    if self.edits:
      other = ("questions", "long_captions", "categories")
      config.refuse_unread(self, dict.fromkeys(other, "not read with edits"))
    known_of = {"categories": shapes.CATEGORIES, "edits": shapes.EDITS, "kinds": shapes.KINDS}
    for name, known in known_of.items():
      unknown = set(getattr(self, name)) - set(known)
      if unknown:
        raise ValueError(f"{name}: {sorted(unknown)} are none of {', '.join(known)}")


class EmbeddedSource:
  """The first `count` records of a split; image uint8[64, 64, 3].

  Args:
    split: of `shapes.SPLITS`. count: records. mixture: of texts.
    features: a folder with cached features of the scenes (file `FEATURES`); "" is none.

  Raises:
    FileNotFoundError: no features there. ValueError: an unknown split, no records, features of
      another number of scenes.
  """

  def __init__(self, split: str, count: int, mixture: Mixture, *, features: str = ""):
    if split not in shapes.SPLITS:
      raise ValueError(f"split {split!r} of the shapes: expected one of {', '.join(shapes.SPLITS)}")
    if count < 1:
      raise ValueError("records: the embedded set has no end, say how many to use")
    self._split, self._count, self._mixture = split, count, mixture
    self.scenes = -(-count // mixture.variants)
    self._features: np.ndarray | None = None
    if features:
      path = Path(features) / FEATURES
      if not path.is_file():
        raise FileNotFoundError(f"{path}: no cached features; the encoding stage writes them")
      self._features = np.load(path, mmap_mode="r")
      if len(self._features) != self.scenes:
        raise ValueError(f"{path}: features of {len(self._features)} scenes, need {self.scenes}")

  def __len__(self) -> int:
    return self._count

  def words(self, index: int, /) -> Record:
    """The record without its pictures; extra says how many there are, see `records.Source`."""
    scenes, record = self._text(index)
    if not scenes:
      return record
    shown = {"pictures": len(scenes)} | ({"inputs": len(scenes) - 1} if len(scenes) > 1 else {})
    return dataclasses.replace(record, extra={**record.extra, **shown})

  def lengths(self, name: str, count: Callable[[Record], int], /) -> np.ndarray:
    """See `records.Source`; nothing is stored, so `name` is not used."""
    del name
    return counted(self, count)

  def hashes(self, first: int, end: int, /) -> np.ndarray:
    """uint32[end - first], of the records' names."""
    said = f"shapes {self._split} "
    return np.array([zlib.crc32(f"{said}{i}".encode()) for i in range(first, end)], np.uint32)

  def parts(self) -> list[Part]:
    """One part; with more records of the same texts it begins alike."""
    default = Mixture()
    texts = {k: v for k, v in vars(self._mixture).items() if v != getattr(default, k)}
    said = repr((self._split, sorted(texts.items()))).encode()
    digest = hashlib.blake2b(said, digest_size=16).hexdigest()
    return [Part(f"shapes {self._split}", self._count, digest)]

  def __getitem__(self, index: int, /) -> Record:
    scenes, record = self._text(index)
    if not scenes:
      return record
    cached = None
    if self._features is not None:
      cached = np.asarray(self._features[index // self._mixture.variants])
    *inputs, image = shapes.render_many(scenes)
    return dataclasses.replace(record, image=image, inputs=tuple(inputs), features=cached)

  def scene(self, number: int) -> shapes.Scene:
    """The scene of number `number`, shown by records from number * variants on."""
    scenes, _ = self._text(number * self._mixture.variants)
    return scenes[-1]

  def _text(self, index: int) -> tuple[tuple[shapes.Scene, ...], Record]:
    """The scenes to draw, the last as the record's image, and the record without its pictures."""
    mixture, split, seed = self._mixture, self._split, self._mixture.seed
    if not 0 <= index < self._count:
      raise IndexError(index)
    name = f"shapes {split} {index}"
    number, variant = divmod(index, mixture.variants)
    long, what, tells = np.random.default_rng((seed, index, _STREAM)).random(3)
    if mixture.questions and mixture.turns > 1:
      return self._conversation(number, variant, name, long, what, tells)
    if mixture.edits:
      return self._edit(index, name, long)
    asks = mixture.questions and what >= mixture.descriptions
    if asks:
      alone = what < mixture.descriptions + mixture.text_questions
      kind = mixture.kinds[index % len(mixture.kinds)] if mixture.kinds else ""
      asked = shapes.question_at(seed, index, split, kind, text=alone)
      record = Record(prompt=_first(asked), answer=asked.answer, kind=asked.kind, name=name)
      return (() if alone else (asked.scene,)), record
    kind = "caption"
    if mixture.categories:
      kind = mixture.categories[index % len(mixture.categories)]
      scene, text = shapes.category_caption(seed, index, kind, split)
    else:
      scene = shapes.scene(seed, number, split)
      text = self._caption(scene, variant, long)
    if mixture.questions:
      return (scene,), Record(prompt=DESCRIBE, answer=text, kind=kind, name=name)
    return (scene,), Record(prompt=text, kind=kind, name=name)

  def _edit(self, index: int, name: str, names: float) -> tuple[tuple[shapes.Scene, ...], Record]:
    mixture = self._mixture
    kind = mixture.edits[index % len(mixture.edits)]
    made = shapes.edit_at(mixture.seed, index, self._split, kind, mixture.most)
    scenes = (made.before, made.after)
    extra: dict[str, Any] = {"scenes": [dataclasses.asdict(scene) for scene in scenes]}
    if names < mixture.places:
      shaped = index // len(mixture.edits) % 2 == 1
      extra["places"] = shapes.standing(made.after, shaped)
    return scenes, Record(prompt=made.instruction, extra=extra, kind=kind, name=name)

  def _caption(self, scene: shapes.Scene, variant: int, long: float) -> str:
    word = shapes.long_caption if long < self._mixture.long_captions else shapes.caption
    return word(scene, variant)

  def _conversation(
    self, number: int, variant: int, name: str, long: float, what: float, tells: float
  ) -> tuple[tuple[shapes.Scene, ...], Record]:
    """Several questions about one scene, or about a caption of it; three draws in [0, 1)."""
    mixture = self._mixture
    if what < mixture.reading:
      return (), self._reading(number, variant, name, long)
    until = itertools.accumulate(mixture.growing)
    most = next((n for n, end in enumerate(until, 1) if number < end), shapes.MOST_OBJECTS)
    alone = what >= 1 - mixture.text_questions
    scene = shapes.scene_at(
      mixture.seed, number, self._split, min(most + alone, shapes.MOST_OBJECTS)
    )
    extra = {}
    if long < mixture.places and not alone:
      extra["places"] = shapes.placed(number % 2 == 1)
    if what < mixture.reading + mixture.seeing:
      extra["reads"] = shapes.shown(scene)
      return (scene,), Record(extra=extra, kind="seeing", name=name)
    described = tells < mixture.descriptions
    kinds = mixture.kinds or shapes.KINDS
    count = max(1, mixture.turns - described * (1 + alone))  # a caption twice is long
    first, *more = shapes.conversation(scene, count, variant, kinds=kinds, text=alone)
    turns = [(q.question, q.answer) for q in more]
    if described:
      # Of a caption, its own words: to copy is to find what followed a word, as answers need it.
      turns.append((DESCRIBE, first.context or self._caption(scene, variant, long)))
    record = Record(
      prompt=_first(first),
      answer=first.answer,
      turns=tuple(turns),
      extra=extra,
      kind=first.kind,
      name=name,
    )
    return (() if alone else (scene,)), record

  def _reading(self, number: int, variant: int, name: str, long: float) -> Record:
    """A prompt and what it asks for: a caption, or in the manner of a test category."""
    seed, split = self._mixture.seed, self._split
    if long < 0.4:
      category = shapes.CATEGORIES[number % len(shapes.CATEGORIES)]
      text = shapes.category_caption(seed, number, category, split)[1]
    else:
      word = shapes.long_caption if long < 0.6 else shapes.caption
      text = word(shapes.scene(seed, number, split), variant)
    return Record(prompt=text, extra={"reads": shapes.told(text)}, kind="reading", name=name)


def _first(asked: shapes.Question) -> str:
  """A question as the first of its record: after the caption it is about, if it is about one."""
  return f"{asked.context}. {asked.question}" if asked.context else asked.question
