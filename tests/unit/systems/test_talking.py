"""Conversations of several turns and pictures: prompts, seeds, pieces of answers, errors."""

import json
from pathlib import Path
import shutil
from typing import Any

from fakes import TINY
from fakes import parsed
import numpy as np
import pytest
from test_decoding import compiled

from blip3o_jax.systems.blip3o import verbs
from blip3o_jax.systems.parts import decoding
from blip3o_jax.systems.parts import talking
from blip3o_jax.systems.parts import writing
from blip3o_jax.systems.parts.talking import Message

__all__ = ["compiled"]
RNG = np.random.default_rng(0)
FIRST, SECOND = (RNG.integers(0, 255, (*size, 3), np.uint8) for size in ((56, 84), (84, 56)))
TALK = [
  Message("user", ["Look ", " and ", "?"], [FIRST, SECOND]),
  Message("assistant", ["Two cats."]),
  Message("user", ["And <image> now?"]),
]
SHORT = [Message("system", ["Be brief."]), Message("user", ["hi"])]
OTHER = [Message("user", ["so?"], [SECOND])]


@pytest.fixture(scope="module")
def model() -> verbs.Model:
  return verbs.load(TINY)


def test_a_conversation_is_the_template_of_the_released_model(model):
  prompt, counts = model._batches.talks([TALK, SHORT])
  blocks = [f"<|vision_start|>{'<|image_pad|>' * 6}<|vision_end|>"] * 2
  texts = [
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    f"<|im_start|>user\nLook {blocks[0]} and {blocks[1]}?<|im_end|>\n"
    "<|im_start|>assistant\nTwo cats.<|im_end|>\n"
    "<|im_start|>user\nAnd <image> now?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
    "<|im_start|>assistant\n",
  ]
  # A mark in a message's text is ordinary text, as every special string there.
  before, after = texts[0].split("<|im_start|>user\nAnd <image> now?")
  said = [model.tokenizer.im_start, *model.tokenizer.encode("user\nAnd <image> now?")]
  for row, wanted in enumerate(([*parsed(before), *said, *parsed(after)], parsed(texts[1]))):
    assert prompt["tokens"][row][prompt["segments"][row] > 0].tolist() == wanted
    assert counts[row] == len(wanted)
  assert len(prompt["patches"]) == 2
  assert prompt["patches"].shape[1] == 24


def test_pictures_before_the_words_stand_before_them(model):
  before, between = (
    model._batches.talks([[Message("user", texts, [FIRST, SECOND])]])[0]["tokens"]
    for texts in (["so?"], ["", "", "so?"])
  )
  np.testing.assert_array_equal(before, between)


def test_it_does_not_matter_how_an_answer_is_heard(model, monkeypatch, compiled):
  """Ids and text are the same bit for bit, in pieces of any size; nothing is compiled again."""
  for options in ({}, {"temperature": 1.3, "limits": decoding.Limits(top_p=0.9, penalty=1.2)}):
    whole = model.talk([TALK, SHORT, OTHER], length=20, **options)
    warm = len(compiled)
    for size in (1, 3, 16):
      monkeypatch.setattr(writing, "CHUNK", size)
      pieces: list[list[str]] = [[], [], []]
      hear = lambda row, text: pieces[row].append(text)  # noqa: B023, E731
      assert model.talk([TALK, SHORT, OTHER], length=20, hear=hear, **options) == whole
      assert ["".join(each) for each in pieces] == [reply.text for reply in whole]
    assert len(compiled) == warm
  assert len({reply.text for reply in whole}) == 3


def test_a_stop_text_ends_its_row_alone(model):
  free = model.talk([TALK, SHORT], length=20)
  letter = next(c for c in free[0].text[3:] if c.isalpha() and c not in free[1].text)
  ended, other = model.talk([TALK, SHORT], length=20, stop=[letter, "never said"])
  assert (ended.text, ended.finish) == (free[0].text.partition(letter)[0].strip(), "stop")
  assert ended.tokens < free[0].tokens
  assert other == free[1]


def test_chat_is_a_conversation_of_one_turn(model):
  asked = ["what is it?", "hello"]
  found = model.chat(asked, [FIRST, None], length=20)
  talks = [[Message("user", ["what is it?"], [FIRST])], [Message("user", ["hello"])]]
  assert found == [reply.text for reply in model.talk(talks, length=20)]


def test_a_draw_is_its_seeds_wherever_its_row_stands(model):
  options: dict[str, Any] = {"length": 20, "temperature": 1.2}
  three = model.talk([TALK, SHORT, OTHER], seed=2**64 - 2, **options)
  given = model.talk([OTHER, TALK, SHORT], seed=[0, 2**64 - 2, 2**64 - 1], **options)
  assert three == [given[1], given[2], given[0]]
  again = model.talk([TALK, TALK, TALK], seed=[4, 5, 4], **options)
  assert again[0] == again[2] != again[1]


def test_another_conversation_compiles_nothing(model, compiled):
  model.talk([TALK, SHORT], length=20, temperature=0.5, hear=lambda *_: None)
  warm = len(compiled)
  more = [*TALK, Message("assistant", ["no"]), Message("user", ["why?"])]
  for talks, options in (
    ([more, SHORT], {"stop": ["x"]}),
    ([SHORT, TALK], {"seed": [7, 8], "limits": decoding.Limits(top_k=3)}),
    ([TALK, TALK[-1:]], {"length": 31, "temperature": 1.0}),
  ):
    model.talk(talks, **{"length": 20, "temperature": 0.5, **options})
  assert len(compiled) == warm


def test_what_is_raised_while_it_is_heard_ends_the_call(model, monkeypatch):
  calls = []
  more = verbs.speaking.more
  monkeypatch.setattr(verbs.speaking, "more", lambda *args: calls.append(1) or more(*args))

  def hear(row, text):
    raise InterruptedError("enough")

  with pytest.raises(InterruptedError, match="enough"):
    model.talk([TALK, SHORT], length=32, hear=hear)
  assert len(calls) <= 3


def test_pictures_share_the_room_of_the_prompt(model, warnings):
  photo = np.zeros((3024, 4032, 3), np.uint8)
  prompt, counts = model._batches.talks([[Message("user", ["a", "b", "c"], [photo, photo])]])
  assert counts[0] <= 4096
  assert (prompt["tokens"] == model.cfg.image_token).sum() > 3600
  assert len(warnings) == 2
  assert all("is shrunk to" in line for line in warnings)


def test_words_of_users_that_the_model_does_not_know(tmp_path, warnings):
  home = Path(shutil.copytree(TINY, tmp_path / "model"))
  values = json.loads((home / "tiny.json").read_text())
  values.setdefault("blip3o_jax", {})["words"] = ["is", "it", "red"]
  (home / "tiny.json").write_text(json.dumps(values))
  few = verbs.load(home, decoder=False)
  talk = [Message("user", ["IS it"]), Message("assistant", ["Nobody knows."]), SHORT[1]]
  found = few._batches.talks([talk])[0]
  lowered = [Message("user", ["is it"]), *talk[1:]]
  np.testing.assert_array_equal(found["tokens"], few._batches.talks([lowered])[0]["tokens"])
  assert [line.rpartition(": ")[2] for line in warnings] == ["hi", "hi"]


USER = Message("user", ["hi"])
WRONG: list[tuple[Any, dict[str, Any], str]] = [
  ("hi", {}, "expected a list of conversations, got str"),
  ([], {}, "no conversations: expected at least one"),
  ([[USER], []], {}, "conversation 2: expected a list of messages, at least one"),
  ([USER], {}, "conversation 1: expected a list of messages"),
  ([[("user", ["a"])]], {}, "conversation 1, message 1: expected a Message, got tuple"),
  ([[Message("tool", ["a"])]], {}, "message 1: role 'tool': expected one of system, user, ass"),
  ([[USER, Message("system", ["a"]), USER]], {}, "message 2: a system message stands first"),
  ([[Message("system", ["a", ""], [FIRST]), USER]], {}, "message 1: a system message stands first"),
  ([[Message("user", "a")]], {}, "message 1: texts: expected a list of texts, got 'a'"),
  ([[Message("user", [None])]], {}, "message 1: texts: expected a list of texts, got [None]"),
  ([[Message("user", ["a", "b"])]], {}, "message 1: 2 texts with 0 pictures between them"),
  ([[Message("user", ["a"], ["x.png"])]], {}, "message 1, picture 1: expected a picture, of PIL"),
  ([[Message("user", [" \n"])]], {}, "conversation 1, message 1 is empty; say what is wanted"),
  ([[USER, Message("assistant", ["a"])]], {}, "conversation 1: ends with the role 'assistant'"),
  ([[USER]], {"length": 0}, "length 0: expected a whole number, 1 to"),
  ([[USER]], {"temperature": float("nan")}, "temperature nan: expected a finite number"),
  ([[USER]], {"stop": "x"}, "stop 'x': expected a list of texts, none of them empty"),
  ([[USER]], {"stop": ["x", ""]}, "stop ['x', '']: expected a list of texts"),
  ([[USER]], {"seed": -1}, "seed -1: expected a whole number"),
  ([[USER]], {"seed": [1, 2]}, "1 conversations but 2 seeds"),
  ([[USER]], {"max_pixels": -1}, "max_pixels -1: expected a whole number"),
  ([[USER]], {"beams": 3}, "cannot chat with the option beams; it takes length, temperature"),
  ([[USER]], {"limits": decoding.Limits(begin="a b c d"), "length": 1}, "cannot begin with"),
  (
    [[USER], [Message("user", ["why " * 5000])]],
    {},
    "conversation 2: a prompt of 20027 tokens is longer than the limit of 4096",
  ),
  (
    [[Message("user", [*["why " * 800] * 3], [FIRST, FIRST])]],
    {},
    "tokens is longer than the limit of 4096",
  ),
]


@pytest.mark.parametrize(("talks", "options", "message"), WRONG)
def test_wrong_conversations(model, talks, options, message, monkeypatch):
  monkeypatch.setattr(verbs.speaking, "begin", None)  # before any long work
  with pytest.raises(ValueError) as error:  # noqa: PT011
    model.talk(talks, **options)
  assert message in str(error.value)
  assert "\n" not in str(error.value)


def test_defaults_are_what_the_model_takes(model):
  assert model.takes("chat") == talking.takes(0.0, decoding.Limits())
  assert set(talking.takes(0.0, decoding.Limits())) == {
    *("length", "temperature", "top_k", "top_p", "repetition_penalty", "stop", "max_pixels")
  }
