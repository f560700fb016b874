"""Texts as ids: the generation prompt, chat prompts, training rows with labels, padding, buckets.

Special ids are placed by this file alone: text is encoded between them, and a special string that
occurs in a text stays ordinary text. Source: spec 1.6, 1.9, 1.10.
"""

import collections
from collections.abc import Sequence
from typing import Literal
from typing import Protocol

from absl import logging
import numpy as np

SYSTEM = "You are a helpful assistant."
GENERATE = "Please generate image based on the following caption: "
RECONSTRUCT = "\nPlease reconstruct the given image."
BUCKETS = (64, 160, 448)
IGNORED = -1
# Ids of the bytes that ASCII text does not use, in every byte-level vocabulary (and in Qwen's).
UNUSED = (94, 256)

Form = Literal["inference", "training"]


class Tokenizer(Protocol):
  """What this file needs of a tokenizer; `encode` reads special strings as ordinary text."""

  pad: int
  im_start: int
  im_end: int
  vision_start: int
  vision_end: int
  image_pad: int
  image_start: int

  def encode(self, text: str) -> list[int]: ...


def generation_ids(
  tokenizer: Tokenizer, caption: str, *, limit: int = BUCKETS[-1], form: Form = "inference"
) -> list[int]:
  """The prompt that asks for a picture, ending in [IMG]; the slots follow it (spec 1.9, 1.10).

  Args:
    caption: what to draw.
    limit: most ids, [IMG] included (released: 447 + 1). A longer caption is cut, with a warning;
      the template is kept.
    form: "inference" ends `assistant\\n` as in released inference, "training" closes the
      assistant's empty message as in released training.

  Raises:
    ValueError: a limit in which the template alone does not fit.
  """
  head = [*_message(tokenizer, "system", SYSTEM), tokenizer.im_start]
  user = tokenizer.encode(f"user\n{GENERATE}{caption}")
  tail = _after_user(tokenizer)
  if form == "training":
    tail += [tokenizer.im_end, *tokenizer.encode("\n")]
  tail.append(tokenizer.image_start)
  template = len(tokenizer.encode(f"user\n{GENERATE}"))
  room = limit - len(head) - len(tail)
  if room < template:
    raise ValueError(
      f"a limit of {limit} tokens does not hold the prompt's template of "
      f"{limit - room + template} tokens"
    )
  return head + _cut(user, room, "caption", limit) + tail


def reconstruction_ids(
  tokenizer: Tokenizer, image_tokens: int, *, form: Form = "inference"
) -> list[int]:
  """The prompt that asks to draw a given picture again: its tokens, then the request (spec 1.9).

  `image_tokens` is the number of places of the picture, merged cells of its grid.
  """
  out = [*_message(tokenizer, "system", SYSTEM), tokenizer.im_start]
  out += tokenizer.encode("user\n") + _vision(tokenizer, image_tokens)
  out += tokenizer.encode(RECONSTRUCT) + _after_user(tokenizer)
  if form == "training":
    out += [tokenizer.im_end, *tokenizer.encode("\n")]
  return [*out, tokenizer.image_start]


def edit_ids(
  tokenizer: Tokenizer,
  caption: str,
  image_tokens: int,
  *,
  limit: int = BUCKETS[-1],
  form: Form = "inference",
) -> list[int]:
  """The prompt that asks for a picture after a given one: its tokens, then the caption.

  Of the form of `reconstruction_ids`, with the caption as the request; a longer one is cut.

  Raises:
    ValueError: a limit in which template and picture do not fit.
  """
  head = [*_message(tokenizer, "system", SYSTEM), tokenizer.im_start]
  head += tokenizer.encode("user\n") + _vision(tokenizer, image_tokens)
  tail = _after_user(tokenizer)
  if form == "training":
    tail += [tokenizer.im_end, *tokenizer.encode("\n")]
  tail.append(tokenizer.image_start)
  room = limit - len(head) - len(tail)
  if room < 0:
    raise ValueError(
      f"a limit of {limit} tokens does not hold the prompt's template and {image_tokens} image "
      "tokens"
    )
  return head + _cut(tokenizer.encode(f"\n{caption}"), room, "caption", limit) + tail


def chat_ids(
  tokenizer: Tokenizer,
  question: str,
  image_tokens: Sequence[int] = (),
  *,
  limit: int = 0,
  system: str = SYSTEM,
) -> list[int]:
  """A question, after the pictures it is about, in the chat template of Qwen2.5-VL (spec 1.6, 1.8).

  Args:
    question: what is asked.
    image_tokens: for each picture the number of its places, merged cells of its grid.
    limit: most ids, 0 for any number; a longer question is cut, with a warning.
    system: the system message.

  Returns:
    Ids that end in the assistant's header; what the model says next is the answer.

  Raises:
    ValueError: a limit in which template and pictures do not fit.
  """
  head = [*_message(tokenizer, "system", system), tokenizer.im_start]
  text = tokenizer.encode(f"user\n{question}")
  if image_tokens:
    head += tokenizer.encode("user\n")
    for n in image_tokens:
      head += _vision(tokenizer, n)
    text = tokenizer.encode(question)
  tail = _after_user(tokenizer)
  if limit:
    room = limit - len(head) - len(tail)
    if room < (0 if image_tokens else len(tokenizer.encode("user\n"))):
      raise ValueError(
        f"a limit of {limit} tokens does not hold the chat template and {sum(image_tokens)} "
        f"image tokens"
      )
    text = _cut(text, room, "question", limit)
  return head + text + tail


def chat_row(
  tokenizer: Tokenizer,
  question: str,
  answer: str,
  image_tokens: Sequence[int] = (),
  turns: Sequence[tuple[str, str]] = (),
  *,
  limit: int,
) -> tuple[list[int], list[int]]:
  """One training row of understanding: ids, and for each the id that its hidden vector predicts.

  Only the answers and the <|im_end|> after each carry loss, the rest is -1. A row that is too long
  loses whole turns from the end, then the end of its answer, to half of what the template leaves,
  then the end of its question; each loss with a warning.

  Args:
    turns: further questions and answers of the same conversation.

  Returns:
    tokens and labels, equally long, at most `limit`.

  Raises:
    ValueError: a limit in which template and pictures do not fit.
  """
  room = limit - len(chat_ids(tokenizer, "", image_tokens, limit=limit))
  asked = len(tokenizer.encode(question))
  said = _cut(tokenizer.encode(answer), max(room - asked, room // 2), "answer", limit)
  prompt = chat_ids(tokenizer, question, image_tokens, limit=limit - len(said))
  ids, labels = prompt + said, [IGNORED] * (len(prompt) - 1) + said + [tokenizer.im_end]
  for n, (more, reply) in enumerate(turns):
    between = [tokenizer.im_end, *tokenizer.encode("\n"), tokenizer.im_start]
    between += tokenizer.encode(f"user\n{more}") + _after_user(tokenizer)
    said = tokenizer.encode(reply)
    if len(ids) + len(between) + len(said) > limit:
      cut = f"its last {len(turns) - n} of {len(turns) + 1} turns are cut"
      _warn(f"the conversation is too long for a row of {limit} tokens", cut)
      break
    ids += between + said
    labels += [IGNORED] * (len(between) - 1) + said + [tokenizer.im_end]
  return ids, labels


def reading_row(
  tokenizer: Tokenizer, prompt: Sequence[int], words: Sequence[str], fill: Sequence[int]
) -> tuple[list[int], list[int]]:
  """A row that teaches to read a prompt at the places of the slots, each place its own word.

  The prompt is followed by ids that say nothing; the k-th hidden vector after [IMG] predicts the
  k-th word, whatever stands there. So a slot finds there what was asked for.

  Args:
    prompt: of `generation_ids` or `reconstruction_ids`. words: of one token each.
    fill: as many ids.

  Returns:
    tokens and labels, equally long.

  Raises:
    ValueError: a word of several tokens, another number of ids.
  """
  if len(words) != len(fill):
    raise ValueError(f"{len(words)} words to be read at {len(fill)} places")
  return [*prompt, *fill], [IGNORED] * len(prompt) + single_ids(tokenizer, words)


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


def text_ids(tokenizer: Tokenizer, text: str, *, limit: int) -> list[int]:
  """A bare caption and <|im_end|>, for a text tower; cut to `limit` with a warning."""
  return [*_cut(tokenizer.encode(text), limit - 1, "caption", limit), tokenizer.im_end]


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


def bucket_of(n: int, buckets: Sequence[int] = BUCKETS) -> int:
  """The smallest bucket that holds n tokens; the largest for more (the text is cut to it)."""
  return min((b for b in buckets if b >= n), default=max(buckets))


def _message(tokenizer: Tokenizer, role: str, text: str) -> list[int]:
  middle = tokenizer.encode(f"{role}\n{text}")
  return [tokenizer.im_start, *middle, tokenizer.im_end, *tokenizer.encode("\n")]


def _after_user(tokenizer: Tokenizer) -> list[int]:
  """The end of the user's message and the assistant's header."""
  header = tokenizer.encode("assistant\n")
  return [tokenizer.im_end, *tokenizer.encode("\n"), tokenizer.im_start, *header]


def _vision(tokenizer: Tokenizer, n: int) -> list[int]:
  return [tokenizer.vision_start, *[tokenizer.image_pad] * n, tokenizer.vision_end]


def _cut(ids: list[int], room: int, what: str, limit: int) -> list[int]:
  if len(ids) <= room:
    return ids
  cut = f"its last {len(ids) - room} of {len(ids)} tokens are cut"
  _warn(f"the {what} is too long for a prompt of {limit} tokens", cut)
  return ids[:room]


# How often each loss happened in this process.
_seen: collections.Counter[str] = collections.Counter()


def _warn(what: str, cut: str) -> None:
  """Says the 1st, 10th, 100th ... loss of a kind: a data set of long texts fills no log."""
  _seen[what] += 1
  number = str(_seen[what])
  if number.strip("0") == "1":
    logging.warning("%s: %s%s", what, cut, "" if number == "1" else f" ({number} so far)")
