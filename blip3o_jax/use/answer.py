"""An answer of a model, how it is asked for, and its pieces while it is being written."""

from collections.abc import Callable
from collections.abc import Generator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import queue
import threading
from typing import Any
from typing import Literal
from typing import TypedDict

from blip3o_jax.data.text import chat
from blip3o_jax.systems.parts import asked
from blip3o_jax.systems.parts import decoding
from blip3o_jax.systems.parts import talking
from blip3o_jax.use.picture import Picture

Hear = Callable[[str], None]
HearOf = Callable[[int, str], None]
# Fields of `decoding.Limits` by the names that a person knows.
LIMITS = {"top_k": "top_k", "top_p": "top_p", "repetition_penalty": "penalty"}


class Chatting(TypedDict, total=False):
  """How a model answers; what is absent is as the model says.

  Attributes:
    length: most tokens. temperature: 0 takes the likeliest token. top_k, top_p: only the k
      likeliest are drawn from, only the likeliest whose shares add up to p.
    repetition_penalty: above 1 what was said before is said less.
    stop: texts that end an answer, and are no part of it; or one.
    max_pixels: of a picture that the model is shown.
    steps, guidance, size: of the pictures that a model draws, see `use.model.Drawing`.
  """

  length: int
  temperature: float
  top_k: int
  top_p: float
  repetition_penalty: float
  stop: str | Sequence[str]
  max_pixels: int
  steps: int
  guidance: float
  size: tuple[int, int]


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
  """An answer to a conversation.

  Attributes:
    text: with a mark `<image>` in the place of each picture. pictures: that the model drew.
    finish: "stop" where the model or a stop text ended it, "length" where the length did.
    tokens: that were written, the last one too; a picture counts as one.
    prompt_tokens: of the conversation before it, pictures with all their places.
  """

  text: str
  pictures: list[Picture]
  finish: Literal["stop", "length"]
  tokens: int
  prompt_tokens: int

  @property
  def message(self) -> dict[str, Any]:
    """The assistant's message with it, for the next turn of the conversation."""
    if not self.pictures:
      return {"role": "assistant", "content": self.text}
    texts = self.text.split(chat.MARK)
    if len(texts) != len(self.pictures) + 1:  # the model said a mark itself
      texts = [self.text, *[""] * len(self.pictures)]
    parts: list[dict[str, Any]] = [{"type": "text", "text": texts[0]}]
    for text, picture in zip(texts[1:], self.pictures, strict=True):
      parts += [{"type": "image", "image": picture}, {"type": "text", "text": text}]
    return {"role": "assistant", "content": parts}


def options(takes: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
  """Options of a person as `talk` of a system takes them.

  Args:
    takes: what the model takes and, unless given, is.

  Raises:
    ValueError: one that the model has not, or out of its range.
  """
  told = {name: value for name, value in given.items() if value is not None}
  asked.check_options("chat", told, tuple(takes))
  changed = [name for name in LIMITS if name in told]
  if changed:
    whole = {**takes, **told}
    for name in changed:
      _check(name, whole[name])
    values = {field: whole[name] for name, field in LIMITS.items()}
    told["limits"] = decoding.Limits(**values)
  if isinstance(told.get("stop"), str):
    told["stop"] = [told["stop"]]
  talking.how({name: value for name, value in told.items() if name in talking.OPTIONS})
  return {name: value for name, value in told.items() if name not in LIMITS}


def _check(name: str, value: Any) -> None:
  """Raises ValueError for a limit that is no number."""
  kind = int if name == "top_k" else int | float
  if isinstance(value, bool) or not isinstance(value, kind):
    raise ValueError(f"{name} {value!r}: expected a {'whole ' if name == 'top_k' else ''}number")


class Closed(BaseException):
  """Nobody hears the answer any more."""


def pieces(run: Callable[[Hear], Answer]) -> Generator[str | Picture, None, Answer]:
  """The text of an answer as it is written, then its pictures; it returns the answer.

  Args:
    run: writes the answer, in a thread, and lets its text be heard. What it raises is raised here.
      To close the generator stops it.
  """
  found: queue.SimpleQueue[str | Answer | BaseException] = queue.SimpleQueue()
  closed = threading.Event()

  def hear(text: str) -> None:
    if closed.is_set():
      raise Closed
    found.put(text)

  def work() -> None:
    try:
      found.put(run(hear))
    except BaseException as error:  # for whoever takes the pieces
      found.put(error)

  thread = threading.Thread(target=work, daemon=True)
  thread.start()
  try:
    while isinstance(piece := found.get(), str):
      yield piece
    if isinstance(piece, BaseException):
      raise piece
    yield from piece.pictures
    return piece
  finally:
    closed.set()
    thread.join()
