"""Conversations with Nexus-Gen: pieces, draws and ends of rows with pictures; prompts; the verb."""

from collections.abc import Callable
from typing import Any

from fakes import parsed
import jax
import numpy as np
from PIL import Image
import pytest
from test_decoding import compiled
from test_nexus_speaking import CFG
from test_nexus_speaking import END
from test_nexus_speaking import PROMPTS
from test_nexus_speaking import network
from test_nexus_speaking import prompt
from test_nexus_speaking import rules
from test_nexus_verbs import CAPTION
from test_nexus_verbs import DRAW
from test_nexus_verbs import GREY
from test_nexus_verbs import SMALL
from test_nexus_verbs import bare
from test_nexus_verbs import model

from blip3o_jax.data.text import chat
from blip3o_jax.systems.nexus_gen import speaking
from blip3o_jax.systems.parts.talking import Message

__all__ = ["bare", "compiled", "model", "network"]
SEEDS = (3, 4, 5, 6)


def keys(order: Any = range(4)) -> jax.Array:
  return jax.numpy.stack([jax.random.key(SEEDS[i]) for i in order])


def same(one: speaking.Answer, other: speaking.Answer) -> None:
  assert one.tokens == other.tokens
  assert one.words == other.words
  np.testing.assert_array_equal(one.vectors, other.vectors)


@pytest.mark.parametrize("drawn", [False, True])
def test_it_does_not_matter_how_an_answer_is_heard(network, drawn, compiled):
  given = {"keys": keys() if drawn else None, "pictures": 3}
  told = rules(4, temperature=1.5 * drawn)
  whole = speaking.answer(network, prompt(PROMPTS), told, **given)
  assert sum(len(answer.vectors) for answer in whole) > 1, "too few pictures to try anything"
  warm = len(compiled)
  for chunk in (1, 3, 0):
    found: list[list[int]] = [[] for _ in PROMPTS]

    def listen(row: int, ids: list[int], found: list[list[int]] = found) -> bool:
      found[row] += ids
      return True

    again = speaking.answer(network, prompt(PROMPTS), told, listen=listen, chunk=chunk, **given)
    for one, other, ids in zip(whole, again, found, strict=True):
      same(one, other)
      # The slots of a picture are not heard, but the mark before it.
      said = [i for words in one.words for i in (*words, CFG.boi)][:-1]
      assert ids == [*said, *one.tokens[-1:]][: len(ids)]
      assert len(ids) - len(said) == (one.tokens[-1] == END)
  assert len(compiled) == warm


def test_a_draw_is_its_keys_wherever_its_row_stands(network):
  told, order = rules(4, temperature=1.5), [2, 0, 3, 1]
  found = speaking.answer(network, prompt(PROMPTS), told, keys=keys())
  moved = speaking.answer(network, prompt([PROMPTS[i] for i in order]), told, keys=keys(order))
  for i, answer in zip(order, moved, strict=True):
    same(answer, found[i])
  alike = speaking.answer(network, prompt([PROMPTS[0]] * 4), told, keys=keys([0, 1, 0, 1]))
  same(alike[0], alike[2])
  assert alike[0].tokens != alike[1].tokens


def test_a_row_whose_listener_has_enough_ends_alone(network):
  whole = speaking.answer(network, prompt(PROMPTS), rules(4), pictures=3)
  row = max(range(4), key=lambda i: len(whole[i].vectors))
  heard = []

  def listen(at: int, ids: list[int]) -> bool:
    heard.append((at, ids))
    return at != row

  found = speaking.answer(network, prompt(PROMPTS), rules(4), pictures=3, listen=listen, chunk=2)
  assert [at for at, _ in heard].count(row) == 1
  assert len(found[row].tokens) == 1
  assert not len(found[row].vectors)
  for i in set(range(4)) - {row}:
    same(found[i], whole[i])


def test_prompts(model):
  """A user's first pictures as in training, others where they are, and those of the assistant."""
  other = Image.new("RGB", (56, 56))
  talk = [
    Message("user", ["What is it?"], [GREY, other]),
    Message("assistant", ["Here: ", ""], [other]),
    Message("user", ["", "Sure?"], [other]),
  ]
  found, counts = model._batches.talks([talk])
  ids = found["tokens"][0][found["segments"][0] > 0].tolist()
  words = model.tokenizer
  places = [6, 4, 4, 4]
  wanted = chat.talk_ids(
    words,
    [
      chat.Message("user", ["", "", "\nWhat is it?"], places[:2]),
      chat.Message("assistant", ["Here: ", ""], places[2:3]),
      chat.Message("user", ["", "Sure?"], places[3:]),
    ],
    system="You are a helpful assistant.",
  )
  assert ids == wanted
  assert counts == [len(wanted)]
  assert len(found["patches"]) == 4
  assert parsed("\n"), "the line's end is a token"


def test_defaults_are_what_the_model_says(model):
  takes = model.takes("chat")
  assert takes["repetition_penalty"] == model.choice.limits.penalty
  assert {*SMALL, "length", "stop", "max_pixels", "top_p"} <= set(takes)
  settings = model.settings
  assert settings.scale != settings.edit_scale
  assert model.takes("edit")["scale"] == settings.edit_scale
  assert model.takes("edit", decoder="generator")["scale"] == settings.scale


@pytest.mark.slow
def test_talk(model):
  """Of two at once: the pieces are the text, the second turn sees the picture of the first."""
  pieces: list[list[str]] = [[], []]
  hear: Callable[[int, str], None] = lambda row, text: pieces[row].append(text)  # noqa: E731
  talks = [[Message("user", [DRAW + CAPTION])], [Message("user", ["What is it?"], [GREY])]]
  drawn, said = model.talk(talks, length=12, hear=hear, **SMALL)
  assert ["".join(each) for each in pieces] == [drawn.text, said.text]
  assert drawn.text.count(chat.MARK) == len(drawn.pictures) == 1
  assert drawn.pictures[0].shape == (16, 16, 3)
  again, _ = model.talk(talks, length=12, **SMALL)
  assert again.text == drawn.text
  np.testing.assert_array_equal(again.pictures[0], drawn.pictures[0])
  one, other = model.chat([DRAW + CAPTION, "What is it?"], [None, GREY], length=12, **SMALL)
  assert one[0] == drawn.text
  np.testing.assert_array_equal(one[1][0], drawn.pictures[0])
  assert (other[0] if isinstance(other, tuple) else other) == said.text
  seeds = model.talk([talks[0], talks[0]], seed=[7, 0], length=12, **SMALL)
  assert np.abs(seeds[0].pictures[0].astype(int) - seeds[1].pictures[0]).max() > 0
  before, after = drawn.text.split(chat.MARK)
  shown = Message("assistant", [before, after], drawn.pictures)
  more = [*talks[0], shown, Message("user", ["And now?"])]
  (answer,) = model.talk([more], length=6, stop=["never"], **SMALL)
  assert answer.prompt_tokens > drawn.prompt_tokens
