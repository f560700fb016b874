"""The chat template: the released strings, labels, cutting, padding, buckets."""

from fakes import TINY
from fakes import parsed
import numpy as np
import pytest

from blip3o_jax.data.text import chat
from blip3o_jax.data.text.tokenizer import Tokenizer

TOK = Tokenizer.load(TINY, chat.QWEN)
SYSTEM = "You are a helpful assistant."


def test_chat_is_the_template_of_the_released_model():
  text = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    "<|vision_start|><|image_pad|><|image_pad|><|vision_end|>"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "What is it?<|im_end|>\n<|im_start|>assistant\n"
  )
  assert chat.chat_ids(TOK, "What is it?", [2, 1], system=SYSTEM) == parsed(text)
  text = text.replace("<|vision_start|>", "").replace("<|vision_end|>", "")
  text = text.replace("<|image_pad|>", "")
  assert chat.chat_ids(TOK, "What is it?", system=SYSTEM) == parsed(text)


def test_labels_are_the_answer_and_its_end_one_place_before():
  ids, labels = chat.chat_row(TOK, "How many?", "There are two.", [3], limit=200, system=SYSTEM)
  answer = TOK.encode("There are two.")
  assert len(ids) == len(labels)
  assert [i for i in labels if i >= 0] == [*answer, TOK.im_end]
  for i, label in enumerate(labels[:-1]):
    assert label in (-1, ids[i + 1])
  assert labels[-1] == TOK.im_end
  assert labels.count(-1) == len(chat.chat_ids(TOK, "How many?", [3], system=SYSTEM)) - 1


def test_long_rows_keep_template_and_pictures(warnings):
  template = len(chat.chat_ids(TOK, "", [3], system=SYSTEM))
  ids, labels = chat.chat_row(
    TOK, "why " * 90, "since " * 90, [3], limit=template + 20, system=SYSTEM
  )
  assert len(ids) == len(labels) == template + 20
  assert ids.count(TOK.image_pad) == 3
  assert sum(i >= 0 for i in labels) == 11
  assert [line.split()[1] for line in warnings] == ["answer", "question"]
  with pytest.raises(ValueError, match="does not hold the chat template"):
    chat.chat_row(TOK, "why", "so", [30], limit=template, system=SYSTEM)


def test_further_turns_follow_the_first_and_are_cut_whole(warnings):
  first = chat.chat_row(TOK, "How many?", "Two.", [3], limit=400, system=SYSTEM)
  turns = [("Which?", "Red ones."), ("Sure?", "Yes.")]
  ids, labels = chat.chat_row(TOK, "How many?", "Two.", [3], turns, limit=400, system=SYSTEM)
  said = [TOK.encode(x) for x in ("Two.", "Red ones.", "Yes.")]
  assert ids[: len(first[0])] == first[0]
  assert labels[: len(first[1])] == first[1]
  assert [i for i in labels if i >= 0] == [i for x in said for i in (*x, TOK.im_end)]
  assert all(label in (-1, ids[i + 1]) for i, label in enumerate(labels[:-1]))
  assert not warnings
  cut = chat.chat_row(TOK, "How many?", "Two.", [3], turns, limit=len(ids) - 1, system=SYSTEM)
  assert cut == chat.chat_row(TOK, "How many?", "Two.", [3], turns[:1], limit=400, system=SYSTEM)
  assert "last 1 of 3 turns" in warnings[0]


def test_pad_left():
  tokens, segments = chat.pad_left([[1, 2], [3, 4, 5]], 4, 9)
  np.testing.assert_array_equal(tokens, [[9, 9, 1, 2], [9, 3, 4, 5]])
  np.testing.assert_array_equal(segments, [[0, 0, 1, 1], [0, 1, 1, 1]])
  assert tokens.dtype == segments.dtype == np.int32
  row = chat.token_row([3, 4, 5], 4, 9)
  np.testing.assert_array_equal(row["tokens"], tokens[1])
  np.testing.assert_array_equal(row["segments"], segments[1])
  with pytest.raises(ValueError, match="row 0 has 5 tokens"):
    chat.pad_left([[1] * 5], 4, 9)


def test_bucket_of():
  assert [chat.bucket_of(n, (64, 160, 448)) for n in (1, 64, 65, 160, 161, 448, 900)] == [
    *(64, 64, 160, 160, 448, 448, 448)
  ]


def test_a_conversation_of_messages():
  """As the template of the release has it, and as the rows that teach to answer begin."""
  messages = [
    chat.Message("user", ["", "\nHow many?"], [3]),
    chat.Message("assistant", ["Two: ", " and ", "."], [1, 2]),
    chat.Message("user", ["Sure?"]),
  ]
  found = chat.talk_ids(TOK, messages, system=SYSTEM)
  a, b, c = (f"<|vision_start|>{'<|image_pad|>' * n}<|vision_end|>" for n in (3, 1, 2))
  text = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    f"<|im_start|>user\n{a}\nHow many?<|im_end|>\n<|im_start|>assistant\nTwo: {b}"
    f" and {c}.<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
  )
  assert found == parsed(text)
  turns = [
    chat.Turn(["", "\nHow many?"], ["Two: ", " and ", "."], [3], [1, 2]),
    chat.Turn(["Sure?"], ["Yes."]),
  ]
  row, _ = chat.talk_row(TOK, turns, system=SYSTEM, limit=500)
  assert row == [*found, *TOK.encode("Yes.")]
  own = [chat.Message("system", ["Be brief."]), *messages]
  brief = text.replace("You are a helpful assistant.", "Be brief.")
  assert chat.talk_ids(TOK, own, system=SYSTEM) == parsed(brief)
  silent = [chat.Message("system", [""]), *messages]
  assert chat.talk_ids(TOK, silent, system=SYSTEM) == parsed(brief.replace("Be brief.", ""))
  asked = chat.talk_ids(TOK, [chat.Message("user", ["", "", "so?"], [2, 1])], system=SYSTEM)
  assert asked == chat.chat_ids(TOK, "so?", [2, 1], system=SYSTEM)
