"""What a row of a list or table becomes: records, and which pictures they have.

A row is a dict, of JSON or of parquet. Its form is the first of these that fits:

- Nested turns, `data`: [row, ...]. A record a turn. A turn with a picture to draw that names no
  input begins with the picture of the turn before.
- A chain, `image_list` with `instruction_list` or `files` with `metadata_edit_turn_prompts`. A
  record an instruction: the picture after it is drawn, the one before it is the input.
- A conversation, `messages` or `conversations`: see `conversations`.
- A pair of a caption, instruction or question and a picture, perhaps with inputs or an answer. One
  record; of a list of captions one each, with one picture or as many.

The fields of a pair are those that `Reading` names, else the first of `CAPTIONS`, of `PICTURES` and
of `INPUTS` that has a value; which ones that were is counted, and said. A picture of `TARGETS`, or
one beside inputs, is drawn; of a list of instructions for it the first counts, the second is
`extra["other"]`. What a row of preferences rejects is `extra["rejected"]`, a text or a tuple of
pictures; nothing trains on it.

Texts may say where pictures stand by marks `<image>`. Where all stand before the first text they
are taken away; else they stay, and `extra["placed"]` is True: prompt, answer and turns then hold
one mark for each picture, in this order: `image` and then `inputs` of a question, `inputs` of a
picture to draw. Without `placed` a text has no marks, and its pictures come before everything.
"""

from collections.abc import Mapping
import dataclasses
import re
from typing import Any
from typing import NamedTuple

from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.records import Record
from blip3o_jax.data.sources import conversations
from blip3o_jax.data.sources.conversations import TALKS
from blip3o_jax.data.sources.fields import UNREAD
from blip3o_jax.data.sources.fields import Made
from blip3o_jax.data.sources.fields import Row
from blip3o_jax.data.sources.fields import Unread
from blip3o_jax.data.sources.fields import decoded
from blip3o_jax.data.sources.fields import first_of
from blip3o_jax.data.sources.fields import has
from blip3o_jax.data.sources.fields import listed
from blip3o_jax.data.sources.fields import placed
from blip3o_jax.data.sources.fields import text
from blip3o_jax.data.sources.fields import value_of
from blip3o_jax.data.sources.reading import Reading
from blip3o_jax.data.text.chat import MARK

INSTRUCTIONS = ("instruction", "input_prompt", "edit_prompt", "edit_instruction", "instructions")
CAPTIONS = (
  *INSTRUCTIONS,
  *("prompt", "caption", "text", "captions", "texts", "long_caption", "description", "question"),
  *("edited_prompt_list", "TEXT"),
)
TARGETS = (
  *("output_image", "output_images", "target_image", "target_images", "edited_image"),
  *("edited_img", "target_img", "chosen_image"),
)
PICTURES = (
  *TARGETS,
  *("image", "images", "img", "img_path", "image_path", "image_file", "file_name", "filename"),
  *("jpg", "jpeg", "png", "webp", "image_bytes", "path"),
)
INPUTS = (
  *("input_image", "input_images", "local_input_image", "source_image", "source_images"),
  *("original_image", "src_img", "source_img", "open_image_input_url"),
)
REJECTED = ("rejected", "rejected_image", "rejected_images", "rejected_response")
ANSWERS = ("chosen", "answer")
CHAINS = (("image_list", "instruction_list"), ("files", "metadata_edit_turn_prompts"))
NESTED, KEYS = "data", ("id", "key", "uid")
FIELDS = frozenset(
  [*CAPTIONS, *PICTURES, *INPUTS, *REJECTED, *ANSWERS, *TALKS, *KEYS, NESTED]
  + [name for chain in CHAINS for name in chain]
)
LEFT = {
  "object": "rows that are no JSON objects",
  "caption": "rows without a caption",
  "blank": "rows whose caption is empty or white space",
  "picture": "rows without a picture",
  "talk": "conversations without a message",
}
_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")


class Counted(NamedTuple):
  """Records of a row, why there are none (of `LEFT`), and what was guessed, in words."""

  records: int
  why: str = ""
  guessed: tuple[str, ...] = ()


def count(row: Any, reading: Reading) -> Counted:
  """How many records a row becomes; those that are damaged among them."""
  if not isinstance(row, Mapping):
    return Counted(0, "object")
  if turns := _nested(row):
    return Counted(len(turns))
  if chain := _chain(row):
    return Counted(len(chain[1])) if chain[1] else Counted(0, "caption")
  if (talk := conversations.messages(row)) is not None:
    return Counted(conversations.count(talk, reading.whole)) if talk else Counted(0, "talk")
  return _count_pair(row, reading)


def made(row: Row, number: int, reading: Reading, name: str) -> Made:
  """The record of this number of a row.

  Args:
    row: with the pictures that were not read as `UNREAD`, where its words are wanted only.
    name: how errors call it.

  Raises:
    BadRecord: of kind "lists", "empty", "text" or "missing".
  """
  if turns := _nested(row):
    out = made(turns[number], 0, reading, name)
    if number and not out.inputs and _fields(turns[number], reading).picture in TARGETS:
      before = made(turns[number - 1], 0, reading, name)
      out = out._replace(
        inputs=(before.image,), record=dataclasses.replace(out.record, kind="edit")
      )
    return out
  if chain := _chain(row):
    return _link(*chain, number, name)
  if (talk := conversations.messages(row)) is not None:
    pictures = _named_pictures(row, reading)
    found = conversations.made(talk, pictures, number, name, whole=reading.whole)
    return _with_rejected(found, row, name)
  return _with_rejected(_pair(row, number, reading, name), row, name)


def key(row: Any, spare: str) -> bytes:
  """The id of a row: its field of `KEYS`, where that is text or a whole number; else `spare`."""
  for field in KEYS if isinstance(row, Mapping) else ():
    value = row.get(field)
    if (isinstance(value, str) and value) or (
      isinstance(value, int) and not isinstance(value, bool)
    ):
      return str(value).encode("utf-8", "surrogatepass")
  return spare.encode("utf-8", "surrogatepass")


def _nested(row: Row) -> list[Row]:
  turns = row.get(NESTED)
  if isinstance(turns, list) and turns and all(isinstance(turn, Mapping) for turn in turns):
    return turns
  return []


def _chain(row: Row) -> tuple[Any, list[Any]] | None:
  """(pictures, instructions) of a row that edits a picture several times."""
  for pictures, texts in CHAINS:
    if pictures in row and isinstance(row.get(texts), list):
      found = row[pictures]
      if pictures == "files" and isinstance(found, list):
        found = _files(row, found)
      return found, row[texts]
  return None


def _files(row: Row, files: list[Any]) -> list[Any]:
  """Pictures of a multi-turn row in their order: the original, those of the turns, the last."""
  by_id = {str(file.get("id")): file.get("url") for file in files if isinstance(file, Mapping)}
  turns = sorted(
    (int(match[1]), url)
    for name, url in by_id.items()
    if (match := re.fullmatch(r"edit_turn(\d+)", name)) is not None
  )
  first = row.get("local_input_image") or by_id.get("original_input_image")
  last = [by_id["final_image"]] if "final_image" in by_id else []
  return [first, *(url for _, url in turns), *last]


def _link(pictures: Any, texts: list[Any], number: int, name: str) -> Made:
  known = pictures is not UNREAD
  if known and len(listed(pictures)) != len(texts) + 1:
    raise BadRecord(
      f"{name}: {len(listed(pictures))} pictures for {len(texts)} instructions, expected one more",
      "lists",
    )
  said = [text(each, name) for each in listed(texts[number])[:2]]
  if not said:
    raise BadRecord(f"{name}: instruction {number} is empty", "empty")
  record = Record(prompt=said[0], extra=_other(said), kind="edit", name=name)
  if not known:
    return Made(record, UNREAD, (UNREAD,))
  before, after = pictures[number : number + 2]
  if not has(before) or not has(after):
    raise BadRecord(f"{name}: a picture of it has no name", "missing")
  return Made(record, after, (before,))


def _other(texts: list[str]) -> dict[str, Any]:
  return {"other": texts[1]} if len(texts) > 1 else {}


def _named_pictures(row: Row, reading: Reading) -> Any:
  """The pictures of a conversation: a list, or UNREAD."""
  field = first_of(row, reading.image, ("images", "image", *PICTURES))
  found = None if field is None else value_of(row, field)
  return found if found is UNREAD else listed(found)


class _Fields(NamedTuple):
  """Of a pair: where its text, picture, inputs and answer stand; None where there is none."""

  caption: str | None
  picture: str | None
  inputs: str | None
  answer: str | None

  @property
  def edits(self) -> bool:
    return self.inputs is not None or self.picture in TARGETS


def _fields(row: Row, reading: Reading) -> _Fields:
  (named,) = reading.captions()
  caption = first_of(row, named, CAPTIONS)
  picture = first_of(row, reading.image, PICTURES)
  inputs = first_of(row, reading.inputs, INPUTS)
  answer = first_of(row, "", ANSWERS)
  if answer == "chosen" and _is_picture(row["chosen"]):
    # Where a picture is preferred, another one that the row has is what it began with.
    if inputs is None and picture is not None and not reading.image:
      inputs = picture
    picture, answer = "chosen", None
  if inputs is not None and not has(value_of(row, inputs)):
    inputs = None
  return _Fields(caption, picture, inputs, answer)


def _is_picture(value: Any) -> bool:
  """Whether a value that may be text is a picture, or the name of one."""
  if isinstance(value, str):
    return "\n" not in value and value.lower().endswith(_ENDINGS)
  if isinstance(value, Mapping):
    return "bytes" in value or "path" in value
  return isinstance(value, bytes | Unread)


def _captions(row: Row, field: str | None) -> list[Any]:
  """The captions of a field: one, those of a list, or those of an object or of one as JSON."""
  value = value_of(row, field) if field else None
  if isinstance(value, str) and value.lstrip().startswith("{"):
    value = decoded(value)
  values = list(value.values()) if isinstance(value, Mapping) else listed(value)
  return [each for each in values if each is not None]


def _count_pair(row: Row, reading: Reading) -> Counted:
  of = _fields(row, reading)
  captions = _captions(row, of.caption)
  if not captions:
    blank = of.caption is not None and value_of(row, of.caption) is not None
    return Counted(0, "blank" if blank else "caption")
  if all(isinstance(each, str) and not each.strip() for each in captions):
    return Counted(0, "blank")
  pictures = value_of(row, of.picture) if of.picture else None
  if pictures is not UNREAD and not listed(pictures) and not of.answer:
    return Counted(0, "picture")
  guessed = [
    f"rows have their {what} in the field {field!r}"
    for what, field, named in (
      ("caption", of.caption, reading.caption),
      ("picture", of.picture, reading.image),
      ("input pictures", of.inputs, reading.inputs),
    )
    if field and not named
  ]
  return Counted(1 if of.edits else len(captions), "", tuple(guessed))


def _pair(row: Row, number: int, reading: Reading, name: str) -> Made:
  of = _fields(row, reading)
  captions = _captions(row, of.caption)
  if not captions:
    raise BadRecord(f"{name}: it has no caption", "empty")
  found = value_of(row, of.picture) if of.picture else None
  pictures = [UNREAD] if found is UNREAD else listed(found)
  if of.edits:
    said = [text(each, name) for each in captions[:2]]
    return _edit(said, pictures, value_of(row, of.inputs) if of.inputs else None, name)
  if not pictures and not of.answer:
    raise BadRecord(f"{name}: it has no picture", "missing")
  if len(pictures) > 1 and len(pictures) != len(captions):
    raise BadRecord(f"{name}: {len(pictures)} pictures for {len(captions)} captions", "lists")
  image = pictures[number if len(pictures) > 1 else 0] if pictures else None
  prompt = text(captions[number], name)
  if not of.answer:
    return Made(Record(prompt=prompt, kind="caption", name=name), image)
  answer, extra = text(row[of.answer], name), {}
  if MARK in prompt:
    (prompt,), keeps = placed([prompt], len(pictures), name)
    extra = {"placed": True} if keeps else {}
  record = Record(prompt=prompt, answer=answer, extra=extra, kind="question", name=name)
  return Made(record, image)


def _edit(said: list[str], targets: list[Any], inputs: Any, name: str) -> Made:
  if len(targets) != 1:
    raise BadRecord(f"{name}: {len(targets)} pictures to draw, expected one", "lists")
  shown = (UNREAD,) if inputs is UNREAD else tuple(listed(inputs))
  prompt, extra = said[0], _other(said)
  if shown and MARK in prompt:
    (prompt,), keeps = placed([prompt], None if inputs is UNREAD else len(shown), name)
    extra = {"placed": True} if keeps else {}  # the other instruction has marks of its own
  kind = "edit" if shown else "caption"
  return Made(Record(prompt=prompt, extra=extra, kind=kind, name=name), targets[0], shown)


def _with_rejected(out: Made, row: Row, name: str) -> Made:
  """With what a row of preferences rejects."""
  field = first_of(row, "", REJECTED)
  if field is None:
    return out
  values = listed(row[field])
  if "image" in field or all(map(_is_picture, values)):
    return out._replace(rejected=tuple(values))
  extra = {**out.record.extra, "rejected": conversations.last_text(row[field], name)}
  return out._replace(record=dataclasses.replace(out.record, extra=extra))
