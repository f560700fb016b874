"""What is said to BLIP3-o: the strings of the release around captions, pictures and questions.

Source: spec 1.6, 1.9, 1.10.
"""

from collections.abc import Sequence
import hashlib
from typing import Literal
from typing import Protocol

from blip3o_jax.data.text import chat

SYSTEM = "You are a helpful assistant."
GENERATE = "Please generate image based on the following caption: "
RECONSTRUCT = "Please reconstruct the given image."
# {attribute: token} in the order of the release; `image` stands for the slots in its training rows.
SPECIAL = {**chat.QWEN, "image_start": "[IMG]", "image_end": "[/IMG]", "image": "<image>"}
LIMIT = 448  # of a generation prompt: the release's 512 positions less 64 slots
UNLIMITED = 1 << 30  # more than any prompt has
# Ids of the bytes that ASCII text does not use, in every byte-level vocabulary (and in Qwen's).
UNUSED = (94, 256)

Form = Literal["inference", "training"]


class Tokenizer(chat.Tokenizer, Protocol):
  """What this file needs of a tokenizer."""

  @property
  def image_start(self) -> int: ...


def generation_ids(
  tokenizer: Tokenizer, caption: str, *, limit: int = LIMIT, form: Form = "inference"
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
  head = [*chat.message(tokenizer, "system", SYSTEM), tokenizer.im_start]
  user = tokenizer.encode(f"user\n{GENERATE}{caption}")
  tail = _before_slots(tokenizer, form)
  template = len(tokenizer.encode(f"user\n{GENERATE}"))
  room = limit - len(head) - len(tail)
  if room < template:
    raise ValueError(
      f"a limit of {limit} tokens does not hold the prompt's template of "
      f"{limit - room + template} tokens"
    )
  return head + chat.cut(user, room, "caption", limit) + tail


def drawing_ids(
  tokenizer: Tokenizer,
  caption: str,
  image_tokens: Sequence[int] = (),
  *,
  limit: int,
  form: Form = "inference",
) -> list[int]:
  """The prompt that asks for a picture, after those it is given: their tokens, then the caption.

  Without any it is that of `generation_ids`.

  Args:
    caption: what to draw, or to change; cut with a warning where it is too long.
    image_tokens: for each picture the number of its places, merged cells of its grid.
    limit, form: as in `generation_ids`.

  Raises:
    ValueError: a limit in which template and pictures do not fit.
  """
  if not image_tokens:
    return generation_ids(tokenizer, caption, limit=limit, form=form)
  head = [*chat.message(tokenizer, "system", SYSTEM), tokenizer.im_start]
  head += tokenizer.encode("user\n")
  for n in image_tokens:
    head += chat.picture(tokenizer, n)
  tail = _before_slots(tokenizer, form)
  room = limit - len(head) - len(tail)
  if room < 0:
    raise ValueError(
      f"a limit of {limit} tokens does not hold the prompt's template and {sum(image_tokens)} "
      "image tokens"
    )
  return head + chat.cut(tokenizer.encode(f"\n{caption}"), room, "caption", limit) + tail


def reconstruction_ids(
  tokenizer: Tokenizer, image_tokens: int, *, form: Form = "inference"
) -> list[int]:
  """The prompt that asks to draw a given picture again (spec 1.9); see `drawing_ids`."""
  return drawing_ids(tokenizer, RECONSTRUCT, [image_tokens], limit=UNLIMITED, form=form)


def edit_ids(
  tokenizer: Tokenizer, caption: str, image_tokens: int, *, limit: int, form: Form = "inference"
) -> list[int]:
  """The prompt that asks for a picture after a given one; see `drawing_ids`."""
  return drawing_ids(tokenizer, caption, [image_tokens], limit=limit, form=form)


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
  return [*prompt, *fill], [chat.IGNORED] * len(prompt) + chat.single_ids(tokenizer, words)


def counts(tokenizer: Tokenizer, task: str, image_tokens: int, form: Form) -> str:
  """Names the lengths of a task's rows: equal where those of every record are.

  Args:
    image_tokens: places of a picture.
  """
  said = (
    tokenizer.fingerprint,
    drawing_ids(tokenizer, "", [0], limit=UNLIMITED, form=form),
    generation_ids(tokenizer, "", form=form),
    chat.chat_ids(tokenizer, "", system=SYSTEM),
  )
  digest = hashlib.blake2b(repr(said).encode(), digest_size=8).hexdigest()
  return f"blip3o {task}, {form} form, {image_tokens} places a picture, {digest}"


def _before_slots(tokenizer: Tokenizer, form: Form) -> list[int]:
  """The end of a prompt that is followed by slots."""
  closed = chat.closing(tokenizer) if form == "training" else []
  return [*chat.reply(tokenizer), *closed, tokenizer.image_start]
