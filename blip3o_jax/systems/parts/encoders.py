"""What makes features of pictures, as a cache of them must know it."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np

from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.records import Record


@dataclasses.dataclass(frozen=True)
class Encoder:
  """A frozen encoder of a system; its model's `prepare({"images": x})` gives `features` of them.

  Attributes:
    cfg: of the model, with the encoder built. module: the encoder's name in it.
    picture: what the system's own transforms make of a record for it, uint8[S, S, 3]; raises
      BadRecord. image_size: S. shape: of the features of a picture.
    design: JSON, what decides its features beside its parameters.
  """

  cfg: Any
  module: str
  picture: Callable[[Record, Data], np.ndarray]
  image_size: int
  shape: tuple[int, int, int]
  design: Mapping[str, Any]
