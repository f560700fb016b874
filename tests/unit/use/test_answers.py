"""Chat from Python and from the command, over a stand-in of a system."""

import io
import json
from pathlib import Path
import threading
from typing import Any

import numpy as np
from PIL import Image
import pytest

import blip3o_jax
from blip3o_jax import cli
from blip3o_jax.systems.parts import decoding
from blip3o_jax.systems.parts import talking
from blip3o_jax.use import model as using
from blip3o_jax.use import opening
from blip3o_jax.use import picture

RED = np.full((6, 4, 3), (200, 30, 40), np.uint8)
TAKES = {**talking.takes(0.5, decoding.Limits(top_k=7, penalty=1.1)), "scale": None, "size": (8, 8)}


class Own:
  """A system's model that says the last words again, letter by letter; to "draw" with pictures."""

  words: tuple[str, ...] = ()

  def __init__(self) -> None:
    self.asked: list[tuple[Any, dict[str, Any]]] = []
    self.heard = 0

  def takes(self, verb: str, **given: Any) -> dict[str, Any]:
    return dict(TAKES) if verb == "chat" else {}

  def talk(self, conversations: Any, *, hear: Any = None, **options: Any) -> list[talking.Reply]:
    self.asked.append((conversations, options))
    talking.how({"hear": hear, **{k: v for k, v in options.items() if k in talking.OPTIONS}})
    out = []
    for row, talk in enumerate(talking.checked(conversations)):
      said = talk[-1].texts[-1].upper()
      drawn = (RED, RED) if said == "DRAW" else ()
      text = f"{said}: <image> and <image>" if drawn else said
      for letter in text if hear else "":
        self.heard += 1
        hear(row, letter)
      out.append(talking.Reply(text, "stop", len(said) + 1, 10 + len(talk), drawn))
    return out


@pytest.fixture
def own() -> Own:
  return Own()


@pytest.fixture
def model(own: Own, tmp_path: Path) -> using.Model:
  folder = tmp_path / "model"
  folder.mkdir()
  (folder / "config.json").write_text("{}")
  return using.Model(opening.Opened("here", folder, "toy", "float32", own), ("chat",))


def user(text: str, *images: Any) -> dict[str, Any]:
  shown = [{"type": "image", "image": image} for image in images]
  return {"role": "user", "content": [*shown, {"type": "text", "text": text}]}


# From Python -------------------------------------------------------------------------------------


def test_one_conversation_and_several(model, own):
  answer = model.chat([user("hi", RED)], seed=5)
  assert isinstance(answer, blip3o_jax.Answer)
  assert (answer.text, answer.pictures, answer.finish) == ("HI", [], "stop")
  assert (answer.tokens, answer.prompt_tokens) == (3, 11)
  ((talk,),), options = own.asked.pop()
  assert (talk.role, talk.texts, len(talk.pictures)) == ("user", ["hi"], 1)
  assert options == {"seed": [5]}
  many = model.chat([[user(c)] for c in "abcde"], seed=5, batch=2)
  assert [a.text for a in many] == list("ABCDE")
  assert [(len(talks), told["seed"]) for talks, told in own.asked] == [
    *((2, [5, 6]), (2, [7, 8]), (1, [9])),
  ]
  assert [a.text for a in model.chat([[user("a")]], seed=[2**64 - 1])] == ["A"]


def test_options_are_those_of_the_model_unless_given(model, own):
  model.chat([user("a")], length=9, top_p=0.5, stop="x", temperature=None, size=(4, 4), guidance=2)
  limits = decoding.Limits(top_k=7, top_p=0.5, penalty=1.1)
  wanted = {"length": 9, "limits": limits, "stop": ["x"], "size": (4, 4), "scale": 2}
  assert own.asked.pop()[1] == {"seed": [0], **wanted}
  model.chat([user("a")], repetition_penalty=1, stop=("x", "y"), temperature=0)
  limits = decoding.Limits(top_k=7)
  assert own.asked.pop()[1] == {
    **{"seed": [0], "limits": limits, "stop": ("x", "y"), "temperature": 0}
  }
  assert model.options("chat")["guidance"] is None
  assert model.options("chat")["repetition_penalty"] == 1.1


def test_pictures_of_answers_and_the_next_turn(model, own):
  answer = model.chat([user("draw")], seed=2**64 - 1, temperature=1.5)
  assert [p.seed for p in answer.pictures] == [2**64 - 1, 0]
  assert [p.prompt for p in answer.pictures] == ["draw"] * 2
  settings = answer.pictures[0].settings
  wanted = {"verb": "chat", "temperature": 1.5, "top_k": 7, "size": [8, 8], "model": "here"}
  assert wanted.items() <= settings.items()
  assert json.loads(json.dumps(settings)) == settings
  assert answer.message["role"] == "assistant"
  model.chat([user("draw"), answer.message, user("more")])
  (talk,), _ = own.asked.pop()
  assert talk[1].texts == ["DRAW: ", " and ", ""]
  np.testing.assert_array_equal(np.asarray(talk[1].pictures[1]), RED)
  # Words of the model that look like marks are words.
  odd = blip3o_jax.Answer("a <image> b", answer.pictures, "stop", 1, 1)
  model.chat([user("draw"), odd.message, user("more")])
  assert own.asked.pop()[0][0][1].texts == ["a <image> b", "", ""]
  plain = blip3o_jax.Answer("a <image>", [], "stop", 1, 1)
  assert plain.message == {"role": "assistant", "content": "a <image>"}


def test_an_answer_is_heard_and_streamed(model, own):
  heard: list[str] = []
  answer = model.chat([user("hi there")], hear=heard.append)
  assert "".join(heard) == answer.text
  stream = model.stream([user("draw")], seed=3)
  pieces = list(stream)
  assert "".join(p for p in pieces if isinstance(p, str)) == "DRAW: <image> and <image>"
  assert [type(p) for p in pieces[-3:]] == [str, picture.Picture, picture.Picture]

  def last() -> Any:
    return (yield from model.stream([user("draw")], seed=3))

  run = last()
  with pytest.raises(StopIteration) as end:  # noqa: PT012
    while True:
      next(run)
  assert end.value.value.tokens == 5


def test_several_answers_are_heard_by_their_number_and_can_be_ended(model, own):
  said = ["", "", ""]

  def hear(which: int, text: str) -> None:
    said[which] += text
    if said[2] == "C":
      raise KeyboardInterrupt

  talks = [[user(text)] for text in ("ab", "b", "cde")]
  answers = model.chat(talks[:2], hear=hear)
  assert said == [*(answer.text for answer in answers), ""]
  with pytest.raises(KeyboardInterrupt):
    model.chat(talks, hear=hear, batch=2)
  assert said[2] == "C"


def test_closing_a_stream_ends_the_answer(model, own, monkeypatch):
  more, talk = threading.Event(), own.talk

  def slowly(conversations: Any, *, hear: Any, **options: Any) -> Any:
    def wait(row: int, text: str) -> None:
      hear(row, text)
      more.wait(5)

    return talk(conversations, hear=wait, **options)

  monkeypatch.setattr(own, "talk", slowly)
  before = threading.active_count()
  stream = model.stream([user("x" * 1000)])
  assert next(stream) == "X"
  threading.Timer(0.05, more.set).start()
  stream.close()
  assert own.heard < 1000
  assert threading.active_count() <= before + 1  # the timer's


def test_errors_of_a_stream(model, own, monkeypatch):
  for messages, options, text in (
    ([], {}, "messages: expected at least one message"),
    ([user("a")], {"beams": 3}, "cannot chat with the option beams; it takes length"),
    ([user("a")], {"length": 0}, "length 0: expected"),
    ([user("a")], {"seed": -1}, "seed -1: expected"),
  ):
    with pytest.raises(ValueError, match=text):
      model.stream(messages, **options)
  assert not own.asked

  def fails(*args: Any, **options: Any) -> Any:
    options["hear"](0, "a")
    raise FloatingPointError("not finite")

  monkeypatch.setattr(own, "talk", fails)
  stream = model.stream([user("a")])
  assert next(stream) == "a"
  with pytest.raises(FloatingPointError, match="not finite"):
    next(stream)


@pytest.mark.parametrize(
  ("messages", "options", "message"),
  [
    ([{"role": "user"}], {}, r"messages\[0\].content is absent"),
    ([[user("a")], [{"role": "user"}]], {}, r"conversations\[1\]\[0\].content is absent"),
    ([user("a")], {"steps": 3}, "cannot chat with the option steps; it takes length, temperature"),
    ([user("a")], {"top_p": 2}, "top_p 2"),
    ([user("a")], {"top_k": 1.5}, "top_k 1.5: expected a whole number"),
    ([user("a")], {"top_p": "x"}, "top_p 'x': expected a number"),
    ([user("a")], {"repetition_penalty": True}, "repetition_penalty True: expected a number"),
    ([user("a")], {"temperature": -1}, "temperature -1: expected"),
    ([user("a")], {"stop": [""]}, r"stop \[''\]: expected"),
    ([user("a")], {"seed": [1, 2]}, "2 seeds for the 1 answers of conversations"),
    ([user("a")], {"batch": 0}, "batch 0: expected"),
  ],
)
def test_what_is_wrong_is_said_before_any_work(messages, options, message, model, own):
  with pytest.raises(ValueError, match=message):
    model.chat(messages, **options)
  assert not own.asked


def test_a_model_that_cannot_chat(own, tmp_path):
  model = using.Model(opening.Opened("here", tmp_path, "toy", "float32", own), ("generate",))
  for call in (model.chat, model.stream):
    with pytest.raises(ValueError, match="cannot chat; it can generate"):
      call([user("a")])


# The command -------------------------------------------------------------------------------------


class Terminal(io.StringIO):
  def isatty(self) -> bool:
    return True


@pytest.fixture
def call(model, own, monkeypatch, tmp_path, capsys):
  """call(*words, typed=None): (status, lines of stdout, stderr)."""
  monkeypatch.setattr(blip3o_jax, "load", lambda *args, **kw: model)
  monkeypatch.chdir(tmp_path)

  def run(*words: Any, typed: Any = None) -> Any:
    own.asked.clear()
    if typed is not None:
      monkeypatch.setattr("sys.stdin", typed)
    status = cli.main(["chat", "--model", "x", *map(str, words)])
    out, err = capsys.readouterr()
    return status, out.splitlines(), err

  return run


def said(own: Own, i: int) -> list[tuple[str, str, int]]:
  """Role, words and number of pictures of the messages of the i-th call."""
  ((talk,), _) = own.asked[i]
  return [(m.role, "|".join(m.texts), len(m.pictures)) for m in talk]


def test_questions_stand_each_for_itself(call, own, tmp_path):
  Image.fromarray(RED).save(tmp_path / "in.png")
  assert call("a", "b", "--image", "in.png", "--system", "Be kind.")[:2] == (0, ["A", "B"])
  system = ("system", "Be kind.", 0)
  assert [said(own, i) for i in (0, 1)] == [[system, ("user", c, 1)] for c in "ab"]
  assert own.asked[0][1] == {"seed": [0]}
  assert call("c", "--image", "in.png", "--image", "in.png")[0] == 0
  assert said(own, 0) == [("user", "c", 2)]
  words = ["--length", 9, "--temperature", 0, "--top-k", 0, "--top-p", 0.5, "--seed", 4]
  words += ["--repetition-penalty", 1.2, "--stop", "x", "--stop", "y", "--max-pixels", 784]
  assert call("a", *words, "--guidance", 2)[0] == 0
  limits = decoding.Limits(top_p=0.5, penalty=1.2)
  wanted = {"length": 9, "temperature": 0, "stop": ["x", "y"], "limits": limits, "scale": 2}
  assert own.asked[0][1] == {"seed": [4], "max_pixels": 784, **wanted}


def test_a_conversation_remembers(call, own, tmp_path):
  Image.fromarray(RED).save(tmp_path / "in.png")
  assert call("a", "draw", "b", "--image", "in.png", "--conversation")[0] == 0
  assert said(own, 0) == [("user", "a", 1)]
  assert said(own, 2) == [
    *(("user", "a", 1), ("assistant", "A", 0), ("user", "draw", 0)),
    *(("assistant", "DRAW: | and |", 2), ("user", "b", 0)),
  ]


def test_what_is_typed_is_a_conversation(call, own, tmp_path):
  Image.fromarray(RED).save(tmp_path / "one two.png")
  lines = ["a", "", "/image one two.png", " /image one two.png ", "b", "/new", "c"]
  status, out, _ = call(typed=io.StringIO("\n".join(lines)))
  assert (status, out) == (0, ["A", "B", "C"])
  assert said(own, 1) == [("user", "a", 0), ("assistant", "A", 0), ("user", "b", 2)]
  assert said(own, 2) == [("user", "c", 0)]
  status, out, err = call(typed=io.StringIO("a\n/image absent.png\nb\n"))
  assert (status, out) == (1, ["A"])
  assert err.endswith("blip3o chat: absent.png: no such image file\n")


def test_at_a_terminal(call, own, monkeypatch):
  """Words appear as they are written; what is wrong is said, forgotten, and the talk goes on."""
  typed = Terminal("/image absent.png\n/help\nhi\nbad\nbye\n")
  talk = own.talk

  def fails(conversations: Any, **options: Any) -> Any:
    if conversations[0][-1].texts == ["bad"]:
      raise ValueError("too long")
    return talk(conversations, **options)

  monkeypatch.setattr(own, "talk", fails)
  shown = Terminal()
  written: list[str] = []
  write = shown.write
  shown.write = lambda text: written.append(text) or write(text)  # type: ignore[method-assign]
  with monkeypatch.context() as patch:
    patch.setattr("sys.stdout", shown)
    status, _, err = call(typed=typed)
  assert status == 0
  assert shown.getvalue().replace("> ", "") == "HI\nBYE\n"
  assert {"H", "I", "B", "Y", "E"} <= set(written)
  for text in ("absent.png: no such image", "'/help': expected a question, or one of /new, /image"):
    assert f"blip3o chat: {text}" in err
  assert "blip3o chat: too long\n" in err
  assert said(own, -1) == [("user", "hi", 0), ("assistant", "HI", 0), ("user", "bye", 0)]


def test_pictures_and_json(call, own, tmp_path):
  _, out, _ = call("draw", "a", "draw", "--output", "made/out.png")
  paths = [f"made/out{end}.png" for end in ("", "-2", "-3", "-4")]
  text = "DRAW: <image> and <image>"
  assert out == [text, *paths[:2], "A", text, *paths[2:]]
  assert picture.read(tmp_path / paths[1])["seed"] == 1
  status, out, _ = call("draw", "é", "--json")
  assert status == 0
  told = {"finish": "stop", "prompt_tokens": 11}
  assert [json.loads(line) for line in out] == [
    {"text": text, "tokens": 5, "pictures": ["answer.png", "answer-2.png"], **told},
    {"text": "É", "tokens": 2, "pictures": [], **told},
  ]
  assert "É" in out[1]


def test_wrong_words_of_the_command(call, own, capsys):
  for words in ("--length 0", "--temperature -1", "--output x.jpg", "--top-k x"):
    with pytest.raises(SystemExit):
      call("a", *words.split())
    assert "blip3o chat: argument" in capsys.readouterr().err
  status, _, err = call("a", "--top-p", 1.5)
  assert status == 1
  assert "top_p 1.5" in err
  status, _, err = call("a", "--steps", 3)
  assert status == 1
  assert "blip3o chat: this model cannot chat with the option steps; it takes length" in err
  assert not own.asked
