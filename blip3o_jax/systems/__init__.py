"""The systems, and what each of them offers to the rest of the house.

A system is a module with the names of `System`; nothing is guessed by `getattr`. Whoever trains,
converts, loads, draws, plans or verifies asks one of `SYSTEMS`, and knows none of them by name.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from typing import Protocol

from flax import nnx
import jax
import numpy as np

from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.pipeline import Transform
from blip3o_jax.layers import Dtype
from blip3o_jax.systems import blip3o
from blip3o_jax.systems import contrast
from blip3o_jax.systems import pixels
from blip3o_jax.systems.parts.recorded import Call

Spec = dict[str, jax.ShapeDtypeStruct]
Arrays = Mapping[str, np.ndarray]
Replay = Callable[[str, Arrays, Arrays], Mapping[str, Any]]


class System(Protocol):
  """The contract of a system.

  Attributes:
    Config: a frozen dataclass; a config file's `model` group is built into it.
    SPECIAL: {attribute of the tokenizer: its token}, the special tokens that the system places.
    LOOKS_FOR: what `recognises` looks for, in words, for the error of a folder that nobody knows.
  """

  Config: type
  SPECIAL: Mapping[str, str]
  LOOKS_FOR: str

  # Training --------------------------------------------------------------------------------------

  def build(self, cfg: Any, rngs: nnx.Rngs) -> nnx.Module:
    """The model with random parameters; abstract under `nnx.eval_shape`.

    Its methods: `prepare(batch) -> batch`, what frozen parts make of a batch outside the gradient;
    `weights(batch) -> {term: float32[]}`, normalisers of the whole batch; `loss(batch, key,
    weights) -> (float32[], metrics)`, with additive metrics.
    """

  def check(self, cfg: Any, trained: Sequence[str], mesh: Mapping[str, int]) -> None:
    """Refuses what cannot be trained, before anything is allocated.

    Args:
      trained: paths of the leaves that are to be trained. mesh: {axis: ways} of the run.

    Raises:
      ValueError: such leaves, or a mesh on which the system's numbers would be wrong.
    """

  def batch_spec(self, cfg: Any, batch: int, bucket: int) -> Spec:
    """The arrays of one global batch of `batch` rows whose prompts have `bucket` tokens."""

  def flops(self, cfg: Any, spec: Mapping[str, Any]) -> float:
    """Operations of one training step on a batch {name: anything with a shape}, by its formula."""

  def transforms(self, cfg: Any, data: Data, tokenizer: Any) -> dict[int, Transform]:
    """{bucket: what makes a record a row of that length}; a tokenizer of SPECIAL, or None.

    Raises:
      ValueError: a task that the system has not, a tokenizer that it needs, a bucket in which the
        template of the prompt does not fit, sizes that do not divide.
    """

  def sampler(
    self, cfg: Any, samples: Any, tokenizer: str
  ) -> Callable[[nnx.Module, int], np.ndarray]:
    """What draws pictures while training: (module, step) -> uint8[n, H, W, 3].

    Args:
      samples: a `train.run.Samples`: decoder, prompts, and options of the samplers.
      tokenizer: the run's directory with tokenizer.json.

    Raises:
      ValueError: the system draws no pictures of prompts, or the decoder does not fit.
      FileNotFoundError: no such directory.
    """

  # Files -----------------------------------------------------------------------------------------

  def recognises(self, files: Any) -> bool:
    """Whether a folder (`parts.layout.Files`) holds a model of this system in its own layout."""

  def parts(self, files: Any) -> Any:
    """What such a folder holds: its config, components, tables and leftovers (`parts.layout`)."""

  # Use -------------------------------------------------------------------------------------------

  def load(self, directory: Path, *, dtype: Dtype) -> Any:
    """A loaded model with the verbs that the system has.

    `generate`, `chat`, `reconstruct`, `edit`: what a system cannot do its model has not, and the
    command says so.
    """

  # Proof -----------------------------------------------------------------------------------------

  def recorded(self, names: Iterable[str]) -> Mapping[str, Call]:
    """{call: what it takes and gives} that a recording may hold, in the order of their replay.

    `names` are those of one recording, which numbers its prompts; the other calls are always the
    same. {} where nothing is recorded. The recording is of the system that knows most of its names.
    """

  def replay(self, directory: Path, dtype: Dtype, recording: Arrays) -> Replay:
    """Loads what a recording is of, once, in `dtype`; returns what replays its calls.

    `recording` is {name: array}, whose names and inputs are checked. What is returned takes
    (call, {name: input}, {name: recorded output}) and gives {name: array, float32 or int, in
    PyTorch's layouts, or `parts.recorded.Errors`} with at least the outputs it was given.

    Raises:
      FileNotFoundError, ValueError: what is wrong with the model or contradicts itself in the
        recording; of what is returned ValueError, TypeError, IndexError: inputs that do not fit.
    """


SYSTEMS: dict[str, Any] = {"blip3o": blip3o, "contrast": contrast, "pixels": pixels}
