"""Rows that are conversations: LLaVA's `conversations` and the messages format.

A row is a record for each answer that holds `<image>`, a drawing, and one for the conversation
where its last answer is a text:

- A conversation has prompt, answer and turns; `image` is the first picture, `inputs` the others.
- A drawing has the question before it as prompt and its picture as `image`; `inputs` are the
  pictures that were shown since the drawing before, which is the first of them. Earlier questions
  and answers are `extra["before"]`, what the answer says beside its picture `extra["reply"]`, both
  without marks.

`extra["system"]` is a system's message. Of content in parts ({type: text or image}) texts and
pictures follow each other as they stand. See `rows` for marks. With `Reading.whole` a row is one
record, a conversation whose texts, its answers too, stand as they are, `placed` if they have marks.
"""

from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.records import Record
from blip3o_jax.data.sources import fields
from blip3o_jax.data.sources.fields import UNREAD
from blip3o_jax.data.sources.fields import Made
from blip3o_jax.data.text.chat import MARK

TALKS = ("messages", "conversations")
USER, ASSISTANT, SYSTEM = "user", "assistant", "system"
ROLES = {"human": USER, "gpt": ASSISTANT, "model": ASSISTANT, USER: USER, ASSISTANT: ASSISTANT}
ROLES |= {SYSTEM: SYSTEM}


class Message(NamedTuple):
  """Who says what, with a mark for each picture; pictures that stand in the message itself."""

  role: str
  text: str
  pictures: tuple[Any, ...] = ()


def messages(row: fields.Row) -> list[Any] | None:
  """The messages of a row, as they stand there; None for a row that is no conversation."""
  for field in TALKS:
    found = fields.decoded(row.get(field))
    if isinstance(found, list):
      return found
  chosen = row.get("chosen")
  if isinstance(chosen, list) and chosen and all(isinstance(each, Mapping) for each in chosen):
    asked = row.get("prompt")
    return [*(asked if isinstance(asked, list) else []), *chosen]
  return None


def count(talk: list[Any], whole: bool = False) -> int:
  """Records of a conversation; 1 for a damaged one, and of a `whole` one."""
  if whole:
    return 1
  try:
    said = _messages(talk, "")
  except BadRecord:
    return 1
  return max(1, len(_drawings(said)) + (not _draws(said[-1])))


def made(talk: list[Any], pictures: Any, number: int, name: str, *, whole: bool = False) -> Made:
  """The record of this number of a conversation.

  Args:
    talk: of `messages`. pictures: a list, or UNREAD. name: how errors call it. whole: it is one
      record, with the pictures of its answers.

  Raises:
    BadRecord: of kind "lists": questions and answers that do not follow each other, marks and
      pictures that are not as many; "text", "empty".
  """
  said = _messages(talk, name)
  shown = _pictures(said, pictures, name)
  system = "\n".join(m.text for m in said if m.role == SYSTEM)
  said = [m for m in said if m.role != SYSTEM]
  extra: dict[str, Any] = {"system": system} if system else {}
  roles = [m.role for m in said]
  if not said or roles != [USER, ASSISTANT] * (len(said) // 2):
    raise BadRecord(
      f"{name}: its messages are of {', '.join(roles) or 'nobody'}; expected a question and an "
      "answer in turn",
      "lists",
    )
  drawings = [] if whole else _drawings(said)
  if number < len(drawings):
    first = drawings[number - 1] + 1 if number else 0
    before = sum(m.text.count(MARK) for m in said[:first])
    return _drawing(said[first : drawings[number] + 1], shown, before, extra, name)
  count = None if shown is UNREAD else len(shown)
  texts, keeps = fields.placed([m.text for m in said], count, name)
  if whole:
    texts = [m.text for m in said]
    keeps = any(MARK in each for each in texts)
  # A picture alone may be the question, nothing is no answer.
  texts = [
    fields.text(each, name, blank=m.role == USER) for each, m in zip(texts, said, strict=True)
  ]
  pairs = list(zip(texts[::2], texts[1::2], strict=True))
  record = Record(
    prompt=pairs[0][0],
    answer=pairs[0][1],
    turns=tuple(pairs[1:]),
    extra=extra | ({"placed": True} if keeps else {}),
    kind="conversation",
    name=name,
  )
  if shown is UNREAD:
    return Made(record, UNREAD)
  return Made(record, shown[0] if shown else None, tuple(shown[1:]))


def _drawing(
  said: list[Message], shown: Any, before: int, extra: dict[str, Any], name: str
) -> Made:
  """The record of a drawing.

  Args:
    said: from after the last drawing to this one. before: pictures that came before `said`.
  """
  *earlier, question, answer = said
  if answer.text.count(MARK) != 1:
    raise BadRecord(
      f"{name}: an answer holds {answer.text.count(MARK)} pictures, expected one", "lists"
    )
  started = min(before, 1)  # with the last drawing
  count = started + sum(m.text.count(MARK) for m in (*earlier, question))
  leading = MARK * (count - question.text.count(MARK))
  (prompt,), keeps = fields.placed([leading + question.text], count, name)
  texts = [_bare(m.text) for m in earlier]
  if texts:
    extra = extra | {"before": tuple(zip(texts[::2], texts[1::2], strict=True))}
  if reply := _bare(answer.text):
    extra = extra | {"reply": reply}
  if keeps:
    extra = extra | {"placed": True}
  kind = "edit" if count else "caption"
  record = Record(prompt=fields.text(prompt, name), extra=extra, kind=kind, name=name)
  if shown is UNREAD:
    return Made(record, UNREAD, (UNREAD,) * count)
  last = before - started + count
  return Made(record, shown[last], tuple(shown[before - started : last]))


def last_text(value: Any, name: str) -> str:
  """What a rejected answer says: a text, or the last message of a conversation."""
  if isinstance(value, list) and value and isinstance(value[-1], Mapping):
    return _messages(value, name)[-1].text
  return fields.text(value[0] if isinstance(value, list) and len(value) == 1 else value, name)


def _messages(talk: list[Any], name: str) -> list[Message]:
  out = []
  for each in talk:
    if not isinstance(each, Mapping):
      raise BadRecord(f"{name}: a message is a {type(each).__name__}, expected an object", "lists")
    said = each.get("role", each.get("from"))
    role = ROLES.get(str(said).lower())
    if role is None:
      raise BadRecord(f"{name}: a message of {said!r}; expected one of {', '.join(ROLES)}", "lists")
    content = each["content"] if each.get("content") is not None else each.get("value")
    out.append(_message(role, content, name))
  return out


def _message(role: str, content: Any, name: str) -> Message:
  if not isinstance(content, list):
    if content is not None and not isinstance(content, str):
      raise BadRecord(f"{name}: a message is a {type(content).__name__}, expected text", "text")
    return Message(role, content or "")
  texts, pictures = [], []
  for part in content:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
      texts.append(part["text"])
    elif kind in ("image", "image_url"):
      texts.append(MARK)
      own = part.get("image") or part.get("image_url") or part.get("path") or part.get("url")
      own = own.get("url") if isinstance(own, Mapping) and "url" in own else own
      pictures += [own] if own is not None else []
    else:
      raise BadRecord(f"{name}: a part of a message is neither text nor image: {kind!r}", "lists")
  return Message(role, "".join(texts), tuple(pictures))


def _pictures(said: list[Message], pictures: Any, name: str) -> Any:
  """The pictures of a conversation in the order of their marks, or UNREAD."""
  own = [each for m in said for each in m.pictures]
  marks = sum(m.text.count(MARK) for m in said)
  found = own if own and not pictures else pictures
  if found is not UNREAD and len(found) != marks:
    raise BadRecord(f"{name}: {marks} marks {MARK} for {len(found)} pictures", "lists")
  return found


def _draws(message: Message) -> bool:
  return message.role == ASSISTANT and MARK in message.text


def _drawings(said: list[Message]) -> list[int]:
  return [i for i, message in enumerate(said) if _draws(message)]


def _bare(text: str) -> str:
  return text.replace(MARK, "").strip()
