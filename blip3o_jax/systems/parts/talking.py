"""Conversations: what is handed over, how it is answered, and the prompts that they become."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from blip3o_jax.data import images
from blip3o_jax.data.text import chat
from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.systems.parts import asked
from blip3o_jax.systems.parts import buckets
from blip3o_jax.systems.parts import decoding
from blip3o_jax.systems.parts import seeds

ROLES = ("system", "user", "assistant")

Finish = Literal["stop", "length"]
Hear = Callable[[int, str], None]


class Message(NamedTuple):
  """One message of a conversation.

  Attributes:
    role: of `ROLES`; a system message may stand first, in place of the model's own.
    texts: between any two of them stands a picture; or a single one, before which all pictures
      stand, as they did where the model was trained.
    pictures: of PIL or uint8[h, w, 3]; see `data.images.rgb`.
  """

  role: str
  texts: Sequence[str]
  pictures: Sequence[asked.Picture] = ()


Conversation = Sequence[Message]


@dataclasses.dataclass(frozen=True)
class Reply:
  """An answer to a conversation.

  Attributes:
    text: without white space around it, a mark `<image>` in the place of each picture.
    pictures: uint8[H, W, 3], that the model drew.
    finish: "stop" where the model or a stop string ended it, "length" where the length did.
    tokens: ids that were written, the last one too; a picture counts as one.
    prompt_tokens: ids of the conversation before it, pictures with all their places.
  """

  text: str
  finish: Finish
  tokens: int
  prompt_tokens: int
  pictures: tuple[np.ndarray, ...] = ()


@dataclasses.dataclass(frozen=True)
class How:
  """How conversations are answered.

  Attributes:
    length: most ids of an answer. temperature: 0 takes the likeliest; None is as the model says.
    limits: on what may be said; None as the model says.
    stop: texts that end an answer, and are no part of it.
    seed: of the draws of the first answer, the next has the next; or a list, one each.
    max_pixels: of a picture that is shown; 0 is what the model says.
    hear: called with (row, new text) while answers are written; together the pieces are the
      answer's text. What it raises ends the call.

  Raises:
    ValueError: a value out of its range, by name.
  """

  length: int = 64
  temperature: float | None = None
  limits: decoding.Limits | None = None
  stop: Sequence[str] = ()
  seed: int | Sequence[int] = 0
  max_pixels: int = 0
  hear: Hear | None = None

  def __post_init__(self) -> None:
    asked.check_numbers(1, length=self.length)
    asked.check_numbers(0, temperature=self.temperature or 0.0, max_pixels=self.max_pixels)
    given: Any = self.seed if hasattr(self.seed, "__len__") else [self.seed]
    seeds.words(given)
    listed = isinstance(self.stop, list | tuple)
    if not listed or not all(isinstance(text, str) and text for text in self.stop):
      raise ValueError(f"stop {self.stop!r}: expected a list of texts, none of them empty")

  def seeds(self, count: int) -> list[int]:
    """One for each of `count` answers.

    Raises:
      ValueError: another number of seeds.
    """
    given: Any = self.seed
    if not hasattr(given, "__len__"):
      return [(int(given) + i) % (seeds.MOST + 1) for i in range(count)]
    if len(given) != count:
      raise ValueError(f"{count} conversations but {len(given)} seeds")
    return [int(seed) for seed in given]

  def keys(self, values: Sequence[int], rows: int) -> jax.Array:
    """keys[rows] of seeds, the last one repeated."""
    return seeds.keys(jnp.asarray(buckets.repeat_last(seeds.words(values), rows)))


OPTIONS = tuple(field.name for field in dataclasses.fields(How))


def how(options: Mapping[str, Any]) -> How:
  """Options as `How`; raises ValueError for one that there is not, or out of its range."""
  asked.check_options("chat", options, OPTIONS)
  return How(**options)


def takes(temperature: float, limits: decoding.Limits) -> dict[str, Any]:
  """The options of a chat as a person knows them, with what they are unless given."""
  return {
    "length": How.length,
    "temperature": temperature,
    "top_k": limits.top_k,
    "top_p": limits.top_p,
    "repetition_penalty": limits.penalty,
    "stop": (),
    "max_pixels": 0,
  }


def checked(
  conversations: Sequence[Conversation], words: Sequence[str] = ()
) -> list[list[Message]]:
  """Conversations with pictures as RGB.

  Args:
    words: all that the model knows, see `asked.texts_of`, for what users say; empty for any.

  Raises:
    ValueError: no list, an empty one, no message, an unknown role, a system message that is not the
      first, another number of texts than of pictures, a user's message in which nothing is said or
      shown, a last message that is not the user's, what is no text or picture.
  """
  if isinstance(conversations, str) or not hasattr(conversations, "__len__"):
    raise ValueError(f"expected a list of conversations, got {type(conversations).__name__}")
  if not len(conversations):
    raise ValueError("no conversations: expected at least one")
  found = [_messages(talk, f"conversation {i + 1}") for i, talk in enumerate(conversations)]
  asks = [m.texts for talk in found for m in talk if m.role == "user"]
  told = [text for texts in asks for text in texts if text.strip()]
  if not words or not told:
    return found
  known = iter(asked.texts_of(told, "text", words))

  def lowered(message: Message) -> Message:
    if message.role != "user":
      return message
    return message._replace(texts=[next(known) if t.strip() else t for t in message.texts])

  return [[lowered(message) for message in talk] for talk in found]


def _messages(talk: Conversation, name: str) -> list[Message]:
  """One conversation, checked; see `checked`."""
  if isinstance(talk, str | Message) or not hasattr(talk, "__len__") or not len(talk):
    raise ValueError(f"{name}: expected a list of messages, at least one, got {talk!r:.80}")
  found = [_message(each, i, f"{name}, message {i + 1}") for i, each in enumerate(talk)]
  if found[-1].role != "user":
    raise ValueError(f"{name}: ends with the role {found[-1].role!r}; expected a user's message")
  return found


def _message(message: Any, place: int, name: str) -> Message:
  if not isinstance(message, Message):
    raise ValueError(f"{name}: expected a Message, got {type(message).__name__}")
  role, texts, pictures = message
  if role not in ROLES:
    raise ValueError(f"{name}: role {role!r}: expected one of {', '.join(ROLES)}")
  if role == "system" and (place or len(pictures)):
    raise ValueError(f"{name}: a system message stands first, and shows no picture")
  if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
    raise ValueError(f"{name}: texts: expected a list of texts, got {texts!r:.80}")
  if len(texts) not in (1, len(pictures) + 1):
    raise ValueError(f"{name}: {len(texts)} texts with {len(pictures)} pictures between them")
  if role == "user" and not len(pictures) and not texts[0].strip():
    raise ValueError(f"{name} is empty; say what is wanted")
  shown = [images.rgb(each, f"{name}, picture {i + 1}") for i, each in enumerate(pictures)]
  return Message(role, list(texts), shown)


def shown(talk: Conversation) -> list[Image.Image]:
  """The pictures of a checked conversation, in order."""
  return [picture for message in talk for picture in message.pictures]  # type: ignore[misc]


@dataclasses.dataclass(frozen=True)
class Prompts:
  """Makes prompts of conversations, for one model.

  Attributes:
    tokenizer, vision, image_token: of the model. system: its system message.
    lengths: that prompts are padded to. min_pixels, max_pixels: of a picture.
    before: what a user says, cut where so many pictures stand that all come before it.
  """

  tokenizer: Tokenizer
  vision: Any
  image_token: int
  system: str
  lengths: Sequence[int]
  min_pixels: int
  max_pixels: int
  before: Callable[[str, int], list[str]]

  def rows(
    self, conversations: Sequence[Conversation], max_pixels: int = 0
  ) -> tuple[dict[str, Any], list[int]]:
    """Left-padded prompts of `checked` conversations, the last one repeated to a power of two.

    Args:
      max_pixels: of a picture; 0 is what the model says. Where the prompt has no room for it, it is
        shrunk further, with a warning.

    Returns:
      tokens, segments int32[B, T], positions int32[3, B, T], deltas int32[B, 1], and `patches` and
      `layout` of pictures, if any; and how many ids each conversation has.

    Raises:
      ValueError: a conversation that is longer than the last of `lengths`.
    """
    said = [[self._cut(message) for message in talk] for talk in conversations]
    rooms = [room for i, talk in enumerate(said) for room in self._rooms(talk, i)]
    patches, grids = asked.patches(
      [image for talk in conversations for image in shown(talk)],
      rooms,
      self.vision,
      min_pixels=self.min_pixels,
      max_pixels=max_pixels or self.max_pixels,
    )
    places = iter(asked.places(grids, self.vision))
    rows = [
      self._ids([m._replace(shown=[next(places) for _ in m.texts[1:]]) for m in talk])
      for talk in said
    ]
    for i, row in enumerate(rows):
      self._check(i, len(row))
    out = asked.padded(rows, self.lengths, self.tokenizer.pad)
    out |= asked.positions(out, len(rows), grids, self.image_token, self.vision.merge)
    stacked = asked.stacked(patches, grids, len(rows), self.vision)
    return {**out, **stacked}, [len(row) for row in rows]

  def _cut(self, message: Message) -> chat.Message:
    role, texts, pictures = message
    if len(pictures) and len(texts) == 1:
      before = self.before if role == "user" else standing_before
      texts = before(texts[0], len(pictures))
    return chat.Message(role, texts, [0] * len(pictures))

  def _ids(self, messages: Sequence[chat.Message]) -> list[int]:
    return chat.talk_ids(self.tokenizer, messages, system=self.system)

  def _rooms(self, talk: Sequence[chat.Message], place: int) -> list[int]:
    """For each picture of a conversation, how many places its prompt has for it: as many as all."""
    count, bare = sum(len(message.shown) for message in talk), len(self._ids(talk))
    self._check(place, bare + count)
    return [(self.lengths[-1] - bare) // count] * count if count else []

  def _check(self, place: int, length: int) -> None:
    if length > self.lengths[-1]:
      raise ValueError(
        f"conversation {place + 1}: a prompt of {length} tokens is longer than the limit of "
        f"{self.lengths[-1]}"
      )


def standing_before(text: str, pictures: int) -> list[str]:
  """A text cut where pictures stand that come before it."""
  return [*[""] * pictures, text]
