"""Pictures as the two decoders are trained on them: what they paint, and what they are told.

Told, live: of generation `images`, the centre of the picture itself, or a row in which the language
model draws its caption (`Config.told`); of editing a row in which it draws, and as `images` the
picture that is edited. Cached: `features` of these.

`pixels` uint8[S, S, 3], S = `Data.image_size`, is the picture to paint: it covers the square, and
its centre is cut out. Sizes and filters are those of Nexus-Gen spec 4, where the two stages differ:
what the language model draws is squashed, what a decoder is told in training is cut.
"""

import numpy as np

from blip3o_jax.data.pipeline import Arrays
from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.records import Record
from blip3o_jax.systems.nexus_gen.model import Config
from blip3o_jax.systems.nexus_gen.talks import Talk
from blip3o_jax.systems.parts import targets
from blip3o_jax.systems.parts.targets import Encoded


class Paint:
  """A picture, and what the generation decoder is told of it: itself, or its caption.

  Args:
    talk: of the language model's rows; None without them, where captions are not read.
  """

  def __init__(self, cfg: Config, data: Data, talk: Talk | None = None):
    self._cfg, self._data, self._talk = cfg, data, talk
    self.counts = "" if talk is None else talk.counts

  def tokens(self, record: Record) -> int:
    """Of the row in which the language model draws; 0 without."""
    return 0 if self._talk is None else self._talk.tokens(record)

  def __call__(self, record: Record, rng: np.random.Generator) -> Arrays:
    told = targets.cached(record) if self._data.features else self.told(record, rng)
    return told | {"pixels": _covered(record.image, record.name, self._data.image_size, self._data)}

  def told(self, record: Record, rng: np.random.Generator) -> Arrays:
    """What `prepare` makes features of: {images: uint8[s, s, 3]}, or a row; raises BadRecord."""
    if self._talk is not None:
      row = self._talk.row(record, rng, drawn=False)
      return {name: row[name] for name in ("tokens", "segments", "labels", "positions")}
    side = self._cfg.side(self._cfg.target_grid)
    return {"images": _covered(record.image, record.name, side, self._data)}


class PaintEdit(Paint):
  """An edit of one picture: its result, and what the editing decoder is told of it."""

  def told(self, record: Record, rng: np.random.Generator) -> Arrays:
    """{tokens, segments, labels, positions, patches and their layout, images}; raises BadRecord."""
    assert self._talk is not None
    if len(record.inputs) != 1:
      raise BadRecord(
        f"{record.name}: {len(record.inputs)} pictures to edit, expected one, which the editing "
        "decoder looks at",
        "lists",
      )
    row = self._talk.row(record, rng, drawn=False)
    side = self._cfg.side(self._cfg.reference_grid)
    reference = targets.sized(
      record.inputs[0],
      record.name,
      side,
      friendly=self._data.friendly,
      squash=True,
      resample=self._cfg.form.resample,
    )
    return row | {"images": reference}


def _covered(encoded: Encoded, name: str, side: int, data: Data) -> np.ndarray:
  return targets.sized(
    encoded, name, side, friendly=data.friendly, resample="bilinear", nearest=True
  )
