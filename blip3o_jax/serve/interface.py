"""What the server needs of a model: the public one (`blip3o_jax.Model`) has all of it."""

from collections.abc import Callable
from collections.abc import Generator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import Protocol

import numpy as np

Conversation = list[dict[str, Any]]  # {"role": ..., "content": str or parts}


class Progress(Protocol):
  """How far a batch is.

  Attributes:
    done, total: steps of this stage. preview: what the pictures will look like,
      uint8[count, H, W, 3]; None in stages that know no better than the last.
  """

  @property
  def done(self) -> int: ...
  @property
  def total(self) -> int: ...
  @property
  def preview(self) -> Callable[[], np.ndarray] | None: ...


class Picture(Protocol):
  """A picture: pixels uint8[H, W, 3], its seed, and all that is known of it, as JSON."""

  @property
  def pixels(self) -> np.ndarray: ...
  @property
  def seed(self) -> int: ...
  @property
  def metadata(self) -> Mapping[str, Any]: ...


class Answer(Protocol):
  """An answer; `<image>` in its text marks where its pictures stand."""

  @property
  def text(self) -> str: ...
  @property
  def pictures(self) -> Sequence[Picture]: ...
  @property
  def finish(self) -> str: ...
  @property
  def tokens(self) -> int: ...
  @property
  def prompt_tokens(self) -> int: ...


Watch = Callable[[Progress], None]


class Model(Protocol):
  """See `blip3o_jax.Model`; what is raised for a request that it refuses is ValueError.

  One that is an ArithmeticError, too, says that the model's own result was no number.
  """

  @property
  def system(self) -> str: ...
  @property
  def verbs(self) -> Sequence[str]: ...
  @property
  def words(self) -> Sequence[str]: ...
  @property
  def fingerprint(self) -> str: ...

  def unknown_words(self, *texts: str) -> Sequence[str]: ...

  def options(self, verb: str) -> Mapping[str, Any]: ...

  def tokens(self, text: str) -> int: ...

  def features(self, images: Sequence[Any]) -> np.ndarray: ...

  def generate(
    self,
    prompts: Sequence[str],
    seed: Sequence[int],
    *,
    batch: int,
    progress: Watch,
    every: float = 0.0,
    **options: Any,
  ) -> Sequence[Picture]: ...

  def edit(
    self,
    images: Sequence[Any],
    instructions: Sequence[str],
    seed: Sequence[int],
    *,
    batch: int,
    progress: Watch,
    every: float = 0.0,
    **options: Any,
  ) -> Sequence[Picture]: ...

  def reconstruct(
    self,
    images: Sequence[Any],
    seed: Sequence[int],
    *,
    batch: int,
    progress: Watch,
    every: float = 0.0,
    **options: Any,
  ) -> Sequence[Picture]: ...

  def chat(
    self,
    messages: Sequence[Conversation],
    *,
    seed: Sequence[int],
    hear: Callable[[int, str], None] | None = None,
    **options: Any,
  ) -> Sequence[Answer]: ...

  def stream(
    self, messages: Conversation, *, seed: int, **options: Any
  ) -> Generator[str | Picture, None, Answer]: ...
