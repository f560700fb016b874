"""The text of an answer while its ids come: whole characters, stop texts, nothing taken back."""

from pathlib import Path

import numpy as np
import pytest

from blip3o_jax.data.text import chat
from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.systems.parts import talking
from blip3o_jax.systems.parts import writing

TOK = Tokenizer.load(Path(__file__).parents[2] / "data" / "tiny-blip3o", chat.QWEN)
END, MARK = TOK.im_end, TOK.vision_start


def heard(ids, stop=(), mark=None):
  """(the reply, the pieces that were heard, for each id how many there were)."""
  pieces, counts = [], []
  how = talking.How(stop=stop, hear=lambda row, text: pieces.append((row, text)))
  text = writing.Writing(TOK, (END,), how, 3, mark)
  for token in ids:
    goes_on = text.take([token])
    counts.append(len(pieces))
    if not goes_on:
      break
  reply = text.reply(5)
  assert {row for row, _ in pieces} <= {3}
  pieces = [piece for _, piece in pieces]
  assert "".join(pieces) == reply.text
  assert all(pieces)
  return reply, pieces, counts


def test_a_character_is_heard_when_all_its_bytes_are_there():
  ids = TOK.encode("a é 猫 🙂!")
  assert len(ids) > 8, "bytes are tokens here"
  reply, pieces, _ = heard([*ids, END])
  assert reply == talking.Reply("a é 猫 🙂!", "stop", len(ids) + 1, 5)
  assert not any(writing.UNFINISHED in piece for piece in pieces)
  cut = ids[: ids.index(TOK.encode("🙂")[0]) + 2]
  reply, pieces, _ = heard(cut)
  assert reply.text == TOK.decode(cut) == f"a é 猫 {writing.UNFINISHED}"
  assert reply.finish == "length"


@pytest.mark.parametrize(
  ("said", "stop", "text", "finish"),
  [
    ("one two three", ["two"], "one", "stop"),
    ("one two three", ["four", "e t"], "on", "stop"),
    ("one two three", ["twoo"], "one two three", "length"),
    ("abab ababc", ["ababc"], "abab", "stop"),
    ("aab", ["ab", "aab"], "", "stop"),
    ("xaby", ["ab", "xa"], "", "stop"),  # which is there first
    ("so\n\nUser: more", ["\n\nUser"], "so", "stop"),
    ("end", ["end"], "", "stop"),
    ("猫と犬", ["と"], "猫", "stop"),
    ("  so it is  ", [], "so it is", "length"),
    ("", ["x"], "", "length"),
  ],
)
def test_stop_texts(said, stop, text, finish):
  ids = TOK.encode(said)
  reply, _, _ = heard(ids, stop)
  assert (reply.text, reply.finish) == (text, finish)
  there = [n for n in range(len(ids) + 1) if any(s in TOK.decode(ids[:n]) for s in stop)]
  assert reply.tokens == min(there, default=len(ids))


def test_what_may_begin_a_stop_text_waits():
  ids = [i for letter in "a <en <end" for i in TOK.encode(letter)]
  reply, pieces, counts = heard(ids, ["<end"])
  assert pieces == ["a", " <en"]
  assert counts == [1, 1, 1, 1, 1, 2, 2, 2, 2, 2]
  assert reply.text == "a <en"
  assert reply.finish == "stop"


def test_random_ids_are_heard_as_they_are_decoded():
  """Of all ids, special ones too: pieces decoded one by one are the whole text."""
  rng = np.random.default_rng(0)
  common = "".join(map(chr, range(97, 123)))
  for _ in range(300):
    ids = rng.integers(0, TOK.size, rng.integers(1, 40)).tolist()
    ids = [i for i in ids if i != END]
    reply, _, _ = heard(ids)
    assert reply.text == TOK.decode(ids).strip()
    whole = TOK.decode(ids)
    stop = [common[int(rng.integers(26))] for _ in range(2)]
    reply, _, _ = heard(ids, stop)
    ends = [whole.index(s) for s in stop if s in whole]
    assert (reply.finish == "stop") == bool(ends)
    assert whole[: min(ends, default=len(whole))].strip() == reply.text


def test_pictures_stand_where_their_marks_are():
  ids = [*TOK.encode("Here: "), MARK, *TOK.encode(" so "), MARK, END]
  reply, pieces, _ = heard(ids, mark=MARK)
  assert reply.text == "Here: <image> so <image>"
  assert reply.tokens == len(ids)
  assert pieces[-1].endswith("<image>")
  # A stop text is one of words: it reaches over no picture, and a mark is none of them.
  split = [*TOK.encode("ab"), MARK, *TOK.encode("cd")]
  assert heard(split, ["abcd", "b<", "image", ">c"], MARK)[0].text == "ab<image>cd"
  assert heard(split, ["cd"], MARK)[0].text == "ab<image>"
  # Elsewhere the id is a special one that is not heard.
  assert heard(split)[0].text == "abcd"


def test_what_is_raised_while_it_is_heard_ends_the_answer():
  def hear(row, text):
    raise InterruptedError(text)

  text = writing.Writing(TOK, (END,), talking.How(hear=hear), 0)
  with pytest.raises(InterruptedError, match="a"):
    text.take(TOK.encode("a cat"))
