"""Texts as ids in the chat template of Qwen: messages, questions, training rows, padding, buckets.

Special ids are placed between encoded texts, so a special string that occurs in a text stays
ordinary text. What is said in the messages is a system's. Source: spec 1.6, 1.8.
"""

import collections
from collections.abc import Sequence
from typing import NamedTuple
from typing import Protocol

from absl import logging
import numpy as np

IGNORED = -1
MARK = "<image>"  # in the texts of a record whose pictures stand in certain places
# The special tokens of Qwen2.5-VL, by the attribute of a tokenizer, in the order of the release.
QWEN = {
  "pad": "<|endoftext|>",
  "im_start": "<|im_start|>",
  "im_end": "<|im_end|>",
  "vision_start": "<|vision_start|>",
  "vision_end": "<|vision_end|>",
  "image_pad": "<|image_pad|>",
  "video_pad": "<|video_pad|>",
}


class Tokenizer(Protocol):
  """What the template needs of a tokenizer; `encode` reads special strings as ordinary text."""

  @property
  def pad(self) -> int: ...

  @property
  def im_start(self) -> int: ...

  @property
  def im_end(self) -> int: ...

  @property
  def vision_start(self) -> int: ...

  @property
  def vision_end(self) -> int: ...

  @property
  def image_pad(self) -> int: ...

  @property
  def fingerprint(self) -> str:
    """Equal for tokenizers that make the same ids of every text."""
    ...

  def encode(self, text: str) -> list[int]:
    """Ids of a text."""
    ...


# Pieces of the template ---------------------------------------------------------------------------


def message(tokenizer: Tokenizer, role: str, text: str) -> list[int]:
  """A whole message, its end and the line's."""
  middle = tokenizer.encode(f"{role}\n{text}")
  return [tokenizer.im_start, *middle, *closing(tokenizer)]


def closing(tokenizer: Tokenizer) -> list[int]:
  """The end of a message."""
  return [tokenizer.im_end, *tokenizer.encode("\n")]


def reply(tokenizer: Tokenizer) -> list[int]:
  """The end of the user's message and the assistant's header."""
  return [*closing(tokenizer), tokenizer.im_start, *tokenizer.encode("assistant\n")]


def picture(tokenizer: Tokenizer, n: int) -> list[int]:
  """A picture of `n` places, merged cells of its grid, between its marks."""
  return [tokenizer.vision_start, *[tokenizer.image_pad] * n, tokenizer.vision_end]


def cut(ids: list[int], room: int, what: str, limit: int) -> list[int]:
  """The first `room` ids, with a warning where some are lost.

  Args:
    what: they are, and limit: of the whole prompt, for the warning.
  """
  if len(ids) <= room:
    return ids
  lost = f"its last {len(ids) - room} of {len(ids)} tokens are cut"
  _warn(f"the {what} is too long for a prompt of {limit} tokens", lost)
  return ids[:room]


# Conversations ------------------------------------------------------------------------------------


def chat_ids(
  tokenizer: Tokenizer,
  question: str,
  image_tokens: Sequence[int] = (),
  *,
  system: str,
  limit: int = 0,
) -> list[int]:
  """A question, after the pictures it is about, in the chat template of Qwen2.5-VL (spec 1.6, 1.8).

  Args:
    question: what is asked.
    image_tokens: for each picture the number of its places, merged cells of its grid.
    system: the system message.
    limit: most ids, 0 for any number; a longer question is cut, with a warning.

  Returns:
    Ids that end in the assistant's header; what the model says next is the answer.

  Raises:
    ValueError: a limit in which template and pictures do not fit.
  """
  texts = [*[""] * len(image_tokens), question]
  return _asked(tokenizer, texts, image_tokens, system=system, limit=limit)


class Message(NamedTuple):
  """One message of a conversation.

  Attributes:
    role: "system", "user" or "assistant". texts: between any two of them stands a picture.
    shown: places of the pictures.
  """

  role: str
  texts: Sequence[str]
  shown: Sequence[int] = ()


def talk_ids(tokenizer: Tokenizer, messages: Sequence[Message], *, system: str) -> list[int]:
  """A conversation in the chat template of Qwen2.5-VL, ending in the assistant's header.

  Args:
    system: the system message, unless the first message is one.
  """
  ids = [] if messages[0].role == "system" else message(tokenizer, "system", system)
  for role, texts, shown in messages:
    middle = _mixed(tokenizer, [f"{role}\n{texts[0]}", *texts[1:]], shown)
    ids += [tokenizer.im_start, *middle, *closing(tokenizer)]
  return [*ids, tokenizer.im_start, *tokenizer.encode("assistant\n")]


def chat_row(
  tokenizer: Tokenizer,
  question: str,
  answer: str,
  image_tokens: Sequence[int] = (),
  turns: Sequence[tuple[str, str]] = (),
  *,
  system: str,
  limit: int,
  mark: str = "",
) -> tuple[list[int], list[int]]:
  """One training row of understanding: ids, and for each the id that its hidden vector predicts.

  Only the answers and the <|im_end|> after each carry loss, the rest is -1. A row that is too long
  loses whole turns from the end, and their pictures; then the end of its answer, to half of what
  the template leaves, then the last words of its question; each loss with a warning.

  Args:
    turns: further questions and answers of the same conversation.
    mark: stands in the questions, once for each picture in their order, where a picture is shown;
      "": all pictures stand before the first question. Others as in `chat_ids`.

  Returns:
    tokens and labels, equally long, at most `limit`; each picture begins with `vision_start`.

  Raises:
    ValueError: a limit in which template and pictures of the first question do not fit; another
      number of marks than of pictures.
  """
  asked = [text.split(mark) if mark else [text] for text in (question, *(q for q, _ in turns))]
  if not mark:
    asked[0] = [*[""] * len(image_tokens), question]
  answers = [[text] for text in (answer, *(a for _, a in turns))]
  return talk_row(tokenizer, turns_of(asked, answers, image_tokens), system=system, limit=limit)


class Turn(NamedTuple):
  """A question and its answer, each as texts; between any two of them stands a picture.

  Attributes:
    asked, said: the texts. shown, drawn: places of the pictures of the question, of the answer.
  """

  asked: Sequence[str]
  said: Sequence[str]
  shown: Sequence[int] = ()
  drawn: Sequence[int] = ()


def turns_of(
  asked: Sequence[Sequence[str]], said: Sequence[Sequence[str]], image_tokens: Sequence[int]
) -> list[Turn]:
  """Questions and answers, each cut where pictures stand, with these pictures in their order.

  Raises:
    ValueError: another number of cuts than of pictures.
  """
  each = [texts for pair in zip(asked, said, strict=True) for texts in pair]
  if (marks := sum(len(texts) - 1 for texts in each)) != len(image_tokens):
    raise ValueError(f"{marks} marks {MARK} for {len(image_tokens)} pictures")
  left = iter(image_tokens)
  places = [[next(left) for _ in texts[1:]] for texts in each]
  return [Turn(*four) for four in zip(asked, said, places[::2], places[1::2], strict=True)]


def talk_row(
  tokenizer: Tokenizer, turns: Sequence[Turn], *, system: str, limit: int
) -> tuple[list[int], list[int]]:
  """One training row of a conversation; see `chat_row`. An answer with a picture is never cut.

  Raises:
    ValueError: a limit in which template and pictures of the first turn do not fit.
  """
  first = turns[0]
  said, blank = _mixed(tokenizer, first.said, first.drawn), [""] * len(first.asked)
  if first.drawn:
    if len(_asked(tokenizer, blank, first.shown, system=system, limit=0)) + len(said) > limit:
      raise ValueError(_no_room(limit, sum(first.shown) + sum(first.drawn)))
  else:
    words = len(_user(tokenizer, first.asked, first.shown))
    words -= len(_user(tokenizer, blank, first.shown))
    room = limit - len(_asked(tokenizer, blank, first.shown, system=system, limit=limit))
    said = cut(said, max(room - words, room // 2), "answer", limit)
  ids = _asked(tokenizer, first.asked, first.shown, system=system, limit=limit - len(said))
  labels = [IGNORED] * (len(ids) - 1) + said + [tokenizer.im_end]
  ids += said
  for n, turn in enumerate(turns[1:]):
    between = [*closing(tokenizer), tokenizer.im_start]
    between += _user(tokenizer, turn.asked, turn.shown) + reply(tokenizer)
    said = _mixed(tokenizer, turn.said, turn.drawn)
    if len(ids) + len(between) + len(said) > limit:
      lost = f"its last {len(turns) - 1 - n} of {len(turns)} turns are cut"
      _warn(f"the conversation is too long for a row of {limit} tokens", lost)
      break
    ids += between + said
    labels += [IGNORED] * (len(between) - 1) + said + [tokenizer.im_end]
  return ids, labels


def _asked(
  tokenizer: Tokenizer,
  texts: Sequence[str],
  image_tokens: Sequence[int],
  *,
  system: str,
  limit: int,
) -> list[int]:
  """System message, question and the assistant's header; see `chat_ids` and `_user`."""
  head = [*message(tokenizer, "system", system), tokenizer.im_start]
  user, tail = _user(tokenizer, texts, image_tokens), reply(tokenizer)
  if limit:
    room, bare = limit - len(head) - len(tail), _user(tokenizer, [""] * len(texts), image_tokens)
    if room < len(bare):
      raise ValueError(_no_room(limit, sum(image_tokens)))
    shown = {tokenizer.vision_start, tokenizer.image_pad, tokenizer.vision_end}
    words = [i for i, token in enumerate(user) if token not in shown]
    kept = cut(words, room - len(user) + len(words), "question", limit)
    user = [token for i, token in enumerate(user) if token in shown or i <= kept[-1]]
  return head + user + tail


def _no_room(limit: int, places: int) -> str:
  return f"a limit of {limit} tokens does not hold the chat template and {places} image tokens"


def _user(tokenizer: Tokenizer, texts: Sequence[str], image_tokens: Sequence[int]) -> list[int]:
  """A user's message after its beginning and before its end."""
  return _mixed(tokenizer, [f"user\n{texts[0]}", *texts[1:]], image_tokens)


def _mixed(tokenizer: Tokenizer, texts: Sequence[str], image_tokens: Sequence[int]) -> list[int]:
  """Texts with a picture between any two."""
  ids = tokenizer.encode(texts[0])
  for n, text in zip(image_tokens, texts[1:], strict=True):
    ids += picture(tokenizer, n) + tokenizer.encode(text)
  return ids


# Rows of a batch ----------------------------------------------------------------------------------


def pad_left(rows: Sequence[Sequence[int]], length: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
  """Rows of ids as one array, padded before them.

  Returns:
    tokens int32[B, length] and segments int32[B, length] (0 at padding, else 1).

  Raises:
    ValueError: a row longer than `length`.
  """
  tokens = np.full((len(rows), length), pad, np.int32)
  segments = np.zeros((len(rows), length), np.int32)
  for i, row in enumerate(rows):
    if len(row) > length:
      raise ValueError(f"row {i} has {len(row)} tokens, more than {length}")
    if len(row):
      tokens[i, -len(row) :] = row
      segments[i, -len(row) :] = 1
  return tokens, segments


def token_row(ids: Sequence[int], length: int, pad: int) -> dict[str, np.ndarray]:
  """One row of a batch: tokens and segments, int32[length], see `pad_left`."""
  tokens, segments = pad_left([ids], length, pad)
  return {"tokens": tokens[0], "segments": segments[0]}


def bucket_of(n: int, buckets: Sequence[int]) -> int:
  """The smallest bucket that holds n tokens; the largest for more (the text is cut to it)."""
  return min((b for b in buckets if b >= n), default=max(buckets))


# How often each loss happened in this process.
_seen: collections.Counter[str] = collections.Counter()


def _warn(what: str, lost: str) -> None:
  """Says the 1st, 10th, 100th ... loss of a kind: a data set of long texts fills no log."""
  _seen[what] += 1
  number = str(_seen[what])
  if number.strip("0") == "1":
    logging.warning("%s: %s%s", what, lost, "" if number == "1" else f" ({number} so far)")


def single_ids(tokenizer: Tokenizer, words: Sequence[str]) -> list[int]:
  """The ids of words that are one token each: what one hidden vector can predict.

  Raises:
    ValueError: a word of several tokens.
  """
  encoded = [tokenizer.encode(word) for word in words]
  for word, ids in zip(words, encoded, strict=True):
    if len(ids) != 1:
      raise ValueError(f"{word!r} is {len(ids)} tokens, but one hidden vector predicts one token")
  return [ids[0] for ids in encoded]
