"""What rows become, by a table: forms, fields, marks of pictures, and what is refused."""

import json

import pytest
from talks import DAMAGED_TALKS
from talks import TALKS

from blip3o_jax.data.records import BadRecord
from blip3o_jax.data.sources import fields
from blip3o_jax.data.sources import rows
from blip3o_jax.data.sources.fields import UNREAD
from blip3o_jax.data.sources.reading import Reading


def simple(made):
  """A record as a tuple without what it has not: prompt, picture, then by name."""
  record = made.record
  out = {"prompt": record.prompt, "image": made.image}
  for name, value in (
    ("inputs", made.inputs),
    ("answer", record.answer),
    ("turns", record.turns),
    ("rejected", made.rejected),
  ):
    if value:
      out[name] = value
  return out | dict(record.extra)


# A row, what of `Reading` reads it, and the records that it becomes.
ROWS = TALKS | {
  "a prompt": ({"prompt": "a cat", "image": "1.jpg"}, {}, [dict(prompt="a cat", image="1.jpg")]),
  "JourneyDB": (
    {"img_path": "./0/1.jpg", "caption": "c", "unknown": 3},
    {},
    [dict(prompt="c", image="./0/1.jpg")],
  ),
  "an image folder's metadata": (
    {"file_name": "1.png", "text": "c"},
    {},
    [dict(prompt="c", image="1.png")],
  ),
  "the first field of the table that has a value": (
    {"text": "t", "caption": "c", "prompt": None, "image": "", "img_path": "1.png"},
    {},
    [dict(prompt="c", image="1.png")],
  ),
  "fields that are named": (
    {"prompt": "p", "short": "s", "image": "1.png", "photo": "2.png"},
    {"caption": "short", "image": "photo"},
    [dict(prompt="s", image="2.png")],
  ),
  "a field inside of another, which is JSON in a text": (
    {"captions": json.dumps({"long": "l", "short": "s"}), "image": b"x"},
    {"caption": "captions.short"},
    [dict(prompt="s", image=b"x")],
  ),
  "captions by name, none of them named": (
    {"captions": json.dumps({"long": "l", "short": "s"}), "image": b"x"},
    {},
    [dict(prompt="l", image=b"x"), dict(prompt="s", image=b"x")],
  ),
  "several pictures with a caption each": (
    {"texts": ["a", "b"], "images": [b"1", {"bytes": b"2", "path": None}]},
    {},
    [dict(prompt="a", image=b"1"), dict(prompt="b", image={"bytes": b"2", "path": None})],
  ),
  "several captions of a picture": (
    {"caption": ["a", "b"], "image": "1.png"},
    {},
    [dict(prompt="a", image="1.png"), dict(prompt="b", image="1.png")],
  ),
  "a question": (
    {"question": "what?", "answer": "a cat", "image": "1.png"},
    {},
    [dict(prompt="what?", answer="a cat", image="1.png")],
  ),
  "ShareGPT-4o-Image, an edit of two": (
    {"input_prompt": "join", "input_image": ["1.png", "2.png"], "output_image": "3.png"},
    {},
    [dict(prompt="join", image="3.png", inputs=("1.png", "2.png"))],
  ),
  "an edit of nothing is a drawing": (
    {"instruction": "a lake", "input_images": None, "output_image": "3.png"},
    {},
    [dict(prompt="a lake", image="3.png")],
  ),
  "ImgEdit": (
    {"input_images": ["1.png"], "output_images": ["2.png"], "prompt": "p"},
    {},
    [dict(prompt="p", image="2.png", inputs=("1.png",))],
  ),
  "inputs that are named, with a picture that is not of the targets": (
    {"text": "p", "before": "1.png", "image": "2.png"},
    {"inputs": "before"},
    [dict(prompt="p", image="2.png", inputs=("1.png",))],
  ),
  "an edit in other words": (
    {"edited_prompt_list": ["long", "short"], "src_img": b"1", "edited_img": b"2"},
    {},
    [dict(prompt="long", image=b"2", inputs=(b"1",), other="short")],
  ),
  "an edit whose text says where its pictures stand": (
    {"instruction": "put <image> in <image>", "input_images": ["1", "2"], "output_image": "3"},
    {},
    [dict(prompt="put <image> in <image>", image="3", inputs=("1", "2"), placed=True)],
  ),
  "an edit with its marks before the text": (
    {"instruction": "<image> <image>\nput it in", "input_images": ["1", "2"], "output_image": "3"},
    {},
    [dict(prompt="put it in", image="3", inputs=("1", "2"))],
  ),
  "nested turns, the second from its own input, the third from the picture before": (
    {
      "data": [
        {"input_images": ["0"], "output_images": ["1"], "prompt": "a"},
        {"input_images": ["9"], "output_images": ["2"], "prompt": "b"},
        {"output_images": ["3"], "prompt": "c"},
      ]
    },
    {},
    [
      dict(prompt="a", image="1", inputs=("0",)),
      dict(prompt="b", image="2", inputs=("9",)),
      dict(prompt="c", image="3", inputs=("2",)),
    ],
  ),
  "nested captions are no turns of each other": (
    {"data": [{"image": "1", "caption": "a"}, {"image": "2", "caption": "b"}]},
    {},
    [dict(prompt="a", image="1"), dict(prompt="b", image="2")],
  ),
  "BAGEL": (
    {"image_list": [b"0", b"1", b"2"], "instruction_list": [["a", "A"], ["b"]]},
    {},
    [
      dict(prompt="a", image=b"1", inputs=(b"0",), other="A"),
      dict(prompt="b", image=b"2", inputs=(b"1",)),
    ],
  ),
  "Pico-Banana, several turns in any order": (
    {
      "files": [
        {"id": "final_image", "url": "3"},
        {"id": "edit_turn2", "url": "2"},
        {"id": "original_input_image", "url": "https://example/0"},
        {"id": "edit_turn1", "url": "1"},
      ],
      "metadata_edit_turn_prompts": ["a", "b", "c"],
      "local_input_image": "0",
    },
    {},
    [
      dict(prompt="a", image="1", inputs=("0",)),
      dict(prompt="b", image="2", inputs=("1",)),
      dict(prompt="c", image="3", inputs=("2",)),
    ],
  ),
  "Pico-Banana, preferences": (
    {"text": "p", "local_input_image": "0", "output_image": "1", "rejected_images": ["2", "3"]},
    {},
    [dict(prompt="p", image="1", inputs=("0",), rejected=("2", "3"))],
  ),
  "pictures that are preferred": (
    {"prompt": "p", "chosen": b"1", "rejected": b"2"},
    {},
    [dict(prompt="p", image=b"1", rejected=(b"2",))],
  ),
  "an edit that is preferred": (
    {"prompt": "p", "image": "0.png", "chosen": "1.png", "rejected": "2.png"},
    {},
    [dict(prompt="p", image="1.png", inputs=("0.png",), rejected=("2.png",))],
  ),
  "an answer that is preferred": (
    {"question": "q", "image": "0.png", "chosen": "yes.", "rejected": "no."},
    {},
    [dict(prompt="q", answer="yes.", image="0.png", rejected="no.")],
  ),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row(name):
  row, reading, expected = ROWS[name]
  reading = Reading(**reading)
  counted = rows.count(row, reading)
  assert (counted.records, counted.why) == (len(expected), "")
  found = [simple(rows.made(row, i, reading, "x:1")) for i in range(len(expected))]
  assert found == expected


# Rows that are damaged: the kind, and what the error says.
DAMAGED = DAMAGED_TALKS | {
  "two pictures to draw": (
    {"prompt": "p", "input_images": ["0"], "output_images": ["1", "2"]},
    "lists",
    "2 pictures to draw, expected one",
  ),
  "pictures for other captions": (
    {"texts": ["a", "b"], "images": ["1", "2", "3"]},
    "lists",
    "3 pictures for 2 captions",
  ),
  "one caption for two pictures": (
    {"caption": "a", "images": ["1", "2"]},
    "lists",
    "2 pictures for 1 captions",
  ),
  "BAGEL, too few pictures": (
    {"image_list": ["1", "2"], "instruction_list": ["a", "b"]},
    "lists",
    "2 pictures for 2 instructions",
  ),
  "marks of an edit": (
    {"prompt": "<image> and <image>", "input_images": ["0"], "output_image": "1"},
    "lists",
    "2 marks <image> for 1 pictures",
  ),
  "an empty caption among others": ({"caption": [" ", "a"], "image": "1"}, "empty", "is empty"),
  "a caption that is a number": ({"caption": 3, "image": "1"}, "text", "is a int"),
  "half a letter": ({"caption": "\ud83d", "image": "1"}, "text", "is not UTF-8"),
  "a nested turn without a text": ({"data": [{"output_image": "1"}]}, "empty", "no caption"),
  "a chain without a picture": (
    {"image_list": ["1", None], "instruction_list": ["a"]},
    "missing",
    "a picture of it has no name",
  ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_row(name):
  row, kind, says = DAMAGED[name]
  assert rows.count(row, Reading()).records >= 1
  with pytest.raises(BadRecord) as error:
    rows.made(row, 0, Reading(), "list.jsonl:7")
  assert error.value.kind == kind
  assert str(error.value).startswith("list.jsonl:7: ")
  assert says in str(error.value)


@pytest.mark.parametrize(
  ("row", "why"),
  [
    ([1, 2], "object"),
    ({"image": "1.png"}, "caption"),
    ({"image": "1.png", "caption": None}, "caption"),
    ({"image": "1.png", "caption": " \n"}, "blank"),
    ({"image": "1.png", "caption": ["", " "]}, "blank"),
    ({"caption": "a"}, "picture"),
    ({"caption": "a", "image": []}, "picture"),
    ({"messages": []}, "talk"),
    ({"image_list": ["1"], "instruction_list": []}, "caption"),
  ],
)
def test_what_is_no_record_is_left_out(row, why):
  assert rows.count(row, Reading()) == (0, why, ())
  assert why in rows.LEFT


def test_what_was_guessed_is_said():
  row = {"text": "a", "input_image": "0", "output_image": "1"}
  said = rows.count(row, Reading()).guessed
  assert said == (
    "rows have their caption in the field 'text'",
    "rows have their picture in the field 'output_image'",
    "rows have their input pictures in the field 'input_image'",
  )
  named = Reading(caption="text", image="output_image", inputs="input_image")
  assert rows.count(row, named).guessed == ()


@pytest.mark.parametrize("name", ROWS)
def test_words_do_not_need_the_pictures(name):
  """As parquet gives rows whose columns of bytes were not read."""
  row, reading, expected = ROWS[name]
  reading = Reading(**reading)
  unread = row | {
    field: UNREAD
    for field, value in row.items()
    if isinstance(value, bytes)
    or (isinstance(value, list) and any(isinstance(each, bytes) for each in value))
  }
  assert rows.count(unread, reading).records == len(expected)
  for i, record in enumerate(expected):
    made = rows.made(unread, i, reading, "x:1").record
    assert (made.prompt, made.answer) == (record["prompt"], record.get("answer", ""))


def test_ids():
  assert rows.key({"id": "a", "key": "b"}, "f:1") == b"a"
  assert rows.key({"uid": 7}, "f:1") == b"7"
  assert rows.key({"id": True, "key": ""}, "f:1") == b"f:1"
  assert rows.key({"id": None}, "f:1") == rows.key([], "f:1") == b"f:1"


def test_marks_are_told_apart_from_what_looks_like_one():
  assert fields.placed(["<Image> a"], 0, "x") == (["<Image> a"], False)
  assert fields.placed([" <image>\n <image> a", "b"], 2, "x") == (["a", "b"], False)
  assert fields.placed(["a", "<image> b"], 1, "x") == (["a", "<image> b"], True)
