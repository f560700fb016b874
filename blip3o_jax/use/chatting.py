"""The part of a model that answers: conversations in a person's form, and what comes of them."""

import abc
from collections.abc import Generator
from collections.abc import Mapping
from collections.abc import Sequence
import functools
from typing import Any
from typing import Literal
from typing import Unpack
from typing import overload

import numpy as np

from blip3o_jax.systems.parts import asked
from blip3o_jax.systems.parts import seeds as seed_arrays
from blip3o_jax.systems.parts import talking
from blip3o_jax.use import answer as answer_of
from blip3o_jax.use import messages as messages_of
from blip3o_jax.use.answer import Answer
from blip3o_jax.use.answer import Chatting
from blip3o_jax.use.answer import Hear
from blip3o_jax.use.answer import HearOf
from blip3o_jax.use.messages import Messages
from blip3o_jax.use.picture import Picture

BATCH = 8
Verb = Literal["generate", "edit", "reconstruct", "chat"]


class Chats(abc.ABC):
  """What `use.model.Model` is besides what draws."""

  _own: Any

  @abc.abstractmethod
  def options(self, verb: Verb) -> dict[str, Any]:
    """The options of a verb, with what they are unless given."""

  @abc.abstractmethod
  def _check(self, verb: Verb) -> None:
    """Raises ValueError for a verb that the model has not."""

  @abc.abstractmethod
  def settings(self, verb: Verb, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a picture says of how it came to be, of JSON, where these options are given."""

  @overload
  def chat(
    self,
    messages: Messages | talking.Conversation,
    seed: int = 0,
    *,
    hear: Hear | None = None,
    **options: Unpack[Chatting],
  ) -> Answer: ...

  @overload
  def chat(
    self,
    messages: Sequence[Messages],
    seed: int | Sequence[int] = 0,
    *,
    batch: int = BATCH,
    hear: HearOf | None = None,
    **options: Unpack[Chatting],
  ) -> list[Answer]: ...

  def chat(
    self,
    messages: Any,
    seed: int | Sequence[int] = 0,
    *,
    batch: int = BATCH,
    hear: Any = None,
    **options: Unpack[Chatting],
  ) -> Answer | list[Answer]:
    """Answers a conversation, or each of several.

    Args:
      messages: of one conversation, see `use.messages`; or a list of such lists.
      seed: of what is drawn: answer i of the call has seed + i; or a list, one an answer.
      batch: how many are answered at once.
      hear: called with pieces of the text while an answer is written, of several conversations
        with (which, piece); what it raises ends the call.

    Raises:
      ValueError: before any long work: messages that are wrong, by index and field; a conversation
        that is too long; an option that the model has not or out of its range. After it: a result
        that is not finite. FileNotFoundError: no such picture.
    """
    self._check("chat")
    asked.check_numbers(1, batch=batch)
    several = messages_of.are_several(messages)
    talks = (
      [messages_of.read(m, name=f"conversations[{i}]") for i, m in enumerate(messages)]
      if several
      else [messages_of.read(messages)]
    )
    seeds = seeds_of(seed, len(talks), "conversations", "answers")
    takes = self.options("chat")
    told = {private(name): v for name, v in answer_of.options(takes, options).items()}
    made: list[Answer] = []
    for first in range(0, len(talks), batch):
      part = slice(first, first + batch)
      if hear is not None:
        told["hear"] = functools.partial(_heard, hear, first if several else None)
      replies = self._own.talk(talks[part], seed=seeds[part], **told)
      for talk, own, reply in zip(talks[part], seeds[part], replies, strict=True):
        made.append(self._answer(talk, own, reply, options))
    return made if several else made[0]

  def stream(
    self,
    messages: Messages | talking.Conversation,
    seed: int = 0,
    **options: Unpack[Chatting],
  ) -> Generator[str | Picture, None, Answer]:
    """The text of an answer as it is written, then its pictures; it returns the `Answer`.

    The pieces of text, put together, are the answer's. To close the generator ends the answer.

    Args, Raises: as `chat`; errors of the messages and options are raised at once.
    """
    self._check("chat")
    talk = messages_of.read(messages)
    answer_of.options(self.options("chat"), options)
    seeds_of(seed, 1, "a conversation", "answers")
    return answer_of.pieces(lambda hear: self.chat(talk, seed, hear=hear, **options))

  def _answer(
    self, talk: talking.Conversation, seed: int, reply: talking.Reply, options: Mapping[str, Any]
  ) -> Answer:
    settings = self.settings("chat", options) if reply.pictures else {}
    asked_for = "".join(talk[-1].texts)
    pictures = [
      Picture(pixels, asked_for, (seed + i) % (seed_arrays.MOST + 1), settings)
      for i, pixels in enumerate(reply.pictures)
    ]
    return Answer(reply.text, pictures, reply.finish, reply.tokens, reply.prompt_tokens)


def _heard(hear: Any, first: int | None, row: int, text: str) -> None:
  """Tells a piece of an answer of a batch, with which one of the call it is unless it is alone."""
  hear(text) if first is None else hear(first + row, text)


def seeds_of(seed: int | Sequence[int], count: int, what: str, each: str = "pictures") -> list[int]:
  """One seed of each; see `use.model.Model.generate`."""
  if hasattr(seed, "__len__"):
    found = [int(s) if isinstance(s, np.integer) else s for s in seed]  # type: ignore[union-attr]
    if len(found) != count:
      raise ValueError(f"{len(found)} seeds for the {count} {each} of {what}: expected as many")
  else:
    seed_arrays.words([seed])
    found = [int(seed) + i for i in range(count)]  # type: ignore[arg-type]
  seed_arrays.words(found)
  return found


def private(name: str) -> str:
  """The name that systems have for an option of a person."""
  return "scale" if name == "guidance" else name
