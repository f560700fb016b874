"""What waits for the model: a request's pictures or its answer, and what it is told meanwhile."""

from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Mapping
import dataclasses
from typing import Any
from typing import Literal

import numpy as np

from blip3o_jax.serve.faults import Refused
from blip3o_jax.serve.interface import Answer
from blip3o_jax.serve.interface import Picture

Verb = Literal["generate", "edit", "reconstruct", "chat", "stream"]
DRAWS = ("generate", "edit", "reconstruct")


@dataclasses.dataclass(frozen=True)
class Preview:
  """What a picture will look like. place: which of its job; index: how many came before."""

  place: int
  index: int
  pixels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Drawn:
  """A picture that is done."""

  place: int
  picture: Picture


@dataclasses.dataclass(frozen=True)
class Said:
  """The next piece of an answer, a text or a picture."""

  piece: str | Picture


@dataclasses.dataclass(frozen=True)
class Answered:
  """A whole answer, also after it was told in pieces."""

  answer: Answer


@dataclasses.dataclass(frozen=True)
class Failed:
  """There is no more."""

  error: Refused


Event = Preview | Drawn | Said | Answered | Failed


@dataclasses.dataclass(eq=False)
class Item:
  """One picture that is asked for, or one conversation.

  Attributes:
    place: which of its job. text: the prompt. image: a picture of PIL that is changed or rebuilt.
    messages: the conversation. shown: how many previews there were.
  """

  job: "Job"
  place: int
  text: str = ""
  image: Any = None
  seed: int = 0
  messages: Any = None
  shown: int = 0


@dataclasses.dataclass(eq=False)
class Job:
  """What one request asks of the model.

  Attributes:
    options: keywords of the model's method. post: takes events, in the worker's thread.
    previews: how many before each picture. pixels: of pictures that it keeps in memory.
    items: see `Item`. left: nobody waits for it any more.
  """

  verb: Verb
  options: Mapping[str, Any]
  post: Callable[[Event], None]
  previews: int = 0
  pixels: int = 0
  items: list[Item] = dataclasses.field(default_factory=list)
  left: bool = False

  def add(self, **what: Any) -> None:
    """Another picture or conversation."""
    self.items.append(Item(self, len(self.items), **what))

  @property
  def key(self) -> Hashable:
    """Items of equal keys may be drawn together."""
    if self.verb == "stream":
      return id(self)
    return self.verb, tuple(sorted((name, repr(value)) for name, value in self.options.items()))
