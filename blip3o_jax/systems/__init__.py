"""The systems, and what each of them offers to the rest of the house.

A system is a module with the names of `System`; nothing is guessed by `getattr`. Whoever trains,
converts, loads, draws, plans or verifies asks one of `SYSTEMS`, and knows none of them by name.
"""

from collections.abc import Callable
from collections.abc import Collection
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
from blip3o_jax.systems import nexus_gen
from blip3o_jax.systems import pixels
from blip3o_jax.systems.parts import layout
from blip3o_jax.systems.parts import others
from blip3o_jax.systems.parts.encoders import Encoder
from blip3o_jax.systems.parts.memory import Memory
from blip3o_jax.systems.parts.recorded import Call
from blip3o_jax.systems.parts.stages import Ask
from blip3o_jax.systems.parts.stages import Stage
from blip3o_jax.train import checkpoint
from blip3o_jax.weights import store
from blip3o_jax.weights import table

Spec = dict[str, jax.ShapeDtypeStruct]
Arrays = Mapping[str, np.ndarray]
Replay = Callable[[str, Arrays, Arrays], Mapping[str, Any]]


class System(Protocol):
  """The contract of a system.

  Attributes:
    Config: a frozen dataclass; a config file's `model` group is built into it.
    SPECIAL: {attribute of the tokenizer: its token}, the special tokens that the system places.
    LOOKS_FOR: what `recognises` looks for, in words, for the error of a folder that nobody knows.
    COMPONENTS: {top-level module: the component of a converted directory that it is stored in}.
    VERBS: what a loaded model can do, of "generate", "chat", "reconstruct" and "edit".
    encoder: of a config, what makes the features that a cache keeps; None for a system without.
  """

  Config: type
  SPECIAL: Mapping[str, str]
  LOOKS_FOR: str
  COMPONENTS: Mapping[str, str]
  VERBS: tuple[str, ...]
  encoder: Callable[[Any], Encoder] | None

  # Training --------------------------------------------------------------------------------------

  def build(self, cfg: Any, rngs: nnx.Rngs) -> nnx.Module:
    """The model with random parameters; abstract under `nnx.eval_shape`.

    Its methods: `prepare(batch) -> batch`, what frozen parts make of a batch outside the gradient;
    `weights(batch) -> {term: float32[]}`, normalisers of the whole batch; `loss(batch, key,
    weights) -> (float32[], metrics)`, with additive metrics.
    """

  def check(self, cfg: Any, trained: Sequence[str]) -> None:
    """Raises ValueError for a choice of trained leaves (their paths) that cannot be trained."""

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

  def recognises(self, files: layout.Files) -> bool:
    """Whether a folder holds a model of this system in its own released layout.

    Raises:
      ValueError: a file that is damaged, by name.
    """

  def parts(self, files: layout.Files) -> layout.Layout:
    """What a folder holds of what this system knows: config, sets of weight files, leftovers.

    Also asked of folders that another system recognises, when a model is filled from one: parts
    that it has modules for are given, with no more than their names and JSON files looked at.

    Raises:
      FileNotFoundError, ValueError: JSON files that are absent or wrong, by file and field.
    """

  def rows_of(self, kind: str, names: Collection[str], home: Path) -> list[table.Row]:
    """The table of a part's kind, paths in full, in the naming that its tensors have.

    Args:
      kind: of `Part.kind`. names: of tensors that are there. home: of the part's JSON files.
    """

  def stored_as(self, cfg: Any) -> Mapping[str, str]:
    """{top-level module of the model: that of a directory which fills it}, where they differ."""

  def licence(self, component: str, cfg: Any, parameters: int) -> layout.Licence:
    """The licence of a component whose size is a release's; `cfg` of the model, None without."""

  def differences(self, cfg: Any) -> list[str]:
    """How a model's files differ from the release nearest in size, a line a field."""

  def exported(
    self, cfg: Any, bases: Sequence[layout.Base], paths: Collection[str], tokenizer: Path | None
  ) -> layout.Export:
    """Which directory a run of `cfg` becomes: what is copied, its parts with their modules.

    Args:
      bases: the directories that it started from, in order. paths: of all leaves of these and of
        the run. tokenizer: a directory, for a run that started from no model.

    Raises:
      ValueError: a system without a released layout, or sources that do not make up a model.
    """

  def write_json(
    self, cfg: Any, export: layout.Export, folder: Path, tokenizer: Path | None
  ) -> None:
    """Writes what JSON files must say about a run, in a folder that has those of its base.

    Raises:
      ValueError: files that cannot say what the run is.
    """

  # Use -------------------------------------------------------------------------------------------

  def load(self, directory: Path, *, dtype: Dtype, memory: Memory | None = None) -> Any:
    """A loaded model with the verbs of VERBS, as `use.model` calls them; `memory`: how it lies.

    `words`: all that it knows, in small letters; empty for any.
    `takes(verb, **given) -> {option: what it is unless given}` of each verb, where options are
    given that others depend on. For a model that can reconstruct `encode(images) -> float32[n,
    ...]`, what its pixel decoder is given of them, and `squashes`: of all of a picture, or of the
    square in its middle.
    `generate(prompts, seeds, **options) -> uint8[n, H, W, 3]`, options of the command that were
    given: images, steps, scale, sampler, pixel_steps, size, language, max_pixels; ValueError for
    one that the system has not, as of the other verbs. `edit(images, instructions, seeds,
    **options)`, the same of steps, scale, size, language, decoder, max_pixels.
    `talk(conversations, **options) -> [parts.talking.Reply]`, of `parts.talking.How` and, of a
    model that draws in answers, steps, scale and size; `takes("chat")` has those of
    `parts.talking.takes`. `chat(questions, images, **options) -> [answer]`, the same of one turn;
    an answer is its text, or (its text, [uint8[H, W, 3]]).
    `reconstruct(images, seeds, **options) -> uint8[n, H, W, 3]`, of steps, pixel_steps, scale and
    size. Seeds are below 2**64. ValueError, which names the part, where a result is not finite.

    `generate`, `edit` and `reconstruct` take `watch`, which is called with a `parts.watching.Step`
    after each step of each stage: "features", what the pictures are to show, and "pixels". What it
    raises ends the call, which leaves nothing behind and raises the same. A preview shows the
    pictures that were asked for, without padding. Watched or not, looked at or not, the pictures
    are the same bit for bit.
    """

  def stages(self, cfg: Any, ask: Ask) -> list[Stage]:
    """The programs that the verbs run, for plans: of all parts, or those of `ask.directory`.

    Raises:
      FileNotFoundError, ValueError: files of that directory that are absent or wrong.
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


SYSTEMS: dict[str, Any] = {
  "blip3o": blip3o,
  "nexus_gen": nexus_gen,
  "contrast": contrast,
  "pixels": pixels,
}


def of(directory: str | Path) -> str:
  """The name of the system whose files these are: a key of SYSTEMS.

  Args:
    directory: of a run or converted, which say it, or in a released layout, which one system must
      recognise.

  Raises:
    FileNotFoundError: no directory. ValueError: none or several that recognise it, with what each
      looked for; a run or conversion of a system that is not here.
  """
  path = Path(directory)
  if not path.is_dir():
    raise FileNotFoundError(f"{path}: no such directory")
  if store.is_converted(path):
    return _known(store.read_manifest(path).get("system"), path)
  if checkpoint.is_run(path):
    return _known(checkpoint.read_record(path).get("system"), path)
  files = layout.Files(path)
  others.check(files)
  found = [name for name, system in SYSTEMS.items() if system.recognises(files)]
  if len(found) == 1:
    return found[0]
  wanted = "".join(f"\n  {name}: {system.LOOKS_FOR}" for name, system in SYSTEMS.items())
  if found:
    raise ValueError(
      f"{path}: {' and '.join(found)} both take it for theirs; each looks for{wanted}"
    )
  values = files.json("config.json")
  if not values:
    raise FileNotFoundError(
      f"{path}: no config.json, and no files of a model that is known{files.others()}; "
      f"looked for{wanted}"
    )
  seen = ", ".join(f"{key} {values.get(key)!r}" for key in ("model_type", "_class_name"))
  raise ValueError(
    f"{path}: the files of no system that is known; config.json has {seen}; looked for{wanted}"
  )


def _known(name: Any, path: Path) -> str:
  """The name, if SYSTEMS has it; raises ValueError."""
  if name not in SYSTEMS:
    raise ValueError(f"{path}: of the system {name!r}, which is none of {', '.join(SYSTEMS)}")
  return str(name)
