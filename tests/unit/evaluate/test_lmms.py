"""The adapter of lmms-eval, with stand-ins of its requests; the real package: tests/e2e."""

from importlib import metadata
import json
from pathlib import Path
import sys
import tomllib
import types
from typing import Any

import numpy as np
from PIL import Image
import pytest

from blip3o_jax.evaluate import lmms
from blip3o_jax.use import picture
from blip3o_jax.use.picture import Picture

SHOWN = Image.new("RGB", (4, 4), "red")


class Request:
  """As `Instance` of lmms-eval, of a chat model."""

  def __init__(self, document: int, options: Any = None, task: str = "task", again: str = ""):
    self.args = (f"context {document}", messages, options, document, task, "test")


def messages(document: dict[str, Any]) -> list[dict[str, Any]]:
  return [{"role": "user", "content": document["content"]}]


def text(value: str) -> dict[str, Any]:
  return {"type": "text", "text": value}


def image(value: Any = SHOWN) -> dict[str, Any]:
  return {"type": "image", "url": value}


class Answer:
  def __init__(self, said: str, pictures: list[Picture]):
    self.text, self.pictures, self.tokens, self.prompt_tokens = said, pictures, 3, 20


class Model:
  """Has of a model what the adapter asks for; remembers how it was called."""

  name = "stand-in"

  def __init__(self, *, verbs: tuple[str, ...] = lmms.MODES, draws: int = 0):
    self.verbs, self.draws = verbs, draws
    self.calls: list[tuple[Any, ...]] = []

  def options(self, verb: str) -> dict[str, Any]:
    if verb not in self.verbs:
      raise ValueError(f"{self.name}: cannot {verb}")
    if verb == "chat":
      return dict.fromkeys(
        ("length", "temperature", "top_p", "top_k", "repetition_penalty", "stop", "max_pixels")
      )
    return dict.fromkeys(("steps", "guidance", "size"))

  def chat(self, talks: Any, seeds: list[int], *, batch: int, **options: Any) -> list[Answer]:
    assert len(talks) == len(seeds) <= batch
    self.calls.append((talks, seeds, options))
    said = [" ".join(p["text"] for p in t[-1]["content"] if p["type"] == "text") for t in talks]
    return [
      Answer(f"{s}!", [self._picture(s, seed) for _ in range(self.draws)])
      for s, seed in zip(said, seeds, strict=True)
    ]

  def generate(self, texts: Any, seeds: list[int], *, batch: int, **options: Any) -> list[Picture]:
    self.calls.append((texts, seeds, options))
    return [self._picture(t, s) for t, s in zip(texts, seeds, strict=True)]

  def edit(self, shown: Any, texts: Any, seeds: list[int], *, batch: int, **options: Any):
    assert all(each.mode == "RGB" for each in shown)
    self.calls.append((shown, texts, seeds, options))
    return [self._picture(t, s) for t, s in zip(texts, seeds, strict=True)]

  def _picture(self, said: str, seed: int) -> Picture:
    return Picture(np.full((4, 4, 3), seed % 256, np.uint8), said, seed, {"steps": 4})


def answered(
  model: Model, contents: list[Any], options: Any = None, mode: str = "chat", **more: Any
) -> list[lmms.Reply]:
  """The replies to documents, each with its own options where `options` is a list."""
  documents = {"task": {"test": [{"content": c} for c in contents]}}
  each = options if isinstance(options, list) else [options] * len(contents)
  requests = [Request(i, told) for i, told in enumerate(each)]
  answering = lmms.Answering(model, mode, more.pop("output", Path("unused")), **more)
  return answering(lmms.read(requests, documents))


def test_questions_are_batched_by_their_options_and_answers_keep_their_order():
  model = Model()
  contents = [[image(), text(f"question {i}")] for i in range(5)]
  greedy = {"max_new_tokens": 16, "temperature": 0, "do_sample": False, "until": ["\n\n", ""]}
  other = {**greedy, "max_new_tokens": 32}
  found = answered(model, contents, [greedy, greedy, other, greedy, other], batch=2, seed=10)
  assert [reply.text for reply in found] == [f"question {i}!" for i in range(5)]
  assert found[0] == lmms.Reply("question 0!", 20, 3)
  assert [seeds for _, seeds, _ in model.calls] == [[10, 11], [13], [12, 14]]
  assert model.calls[0][2] == {"length": 16, "temperature": 0.0, "stop": ["\n\n"]}
  assert model.calls[2][2]["length"] == 32
  assert model.calls[0][0][0] == [
    {"role": "user", "content": [{"type": "image", "image": SHOWN}, text("question 0")]}
  ]


@pytest.mark.parametrize(
  ("told", "wanted"),
  [
    ({}, {"temperature": 0.0}),
    (None, {"temperature": 0.0}),
    ({"temperature": 0.0, "top_p": 0, "num_beams": 1}, {"temperature": 0.0}),
    ({"temperature": 0.7, "do_sample": False, "top_k": 5}, {"temperature": 0.0}),
    ({"temperature": 0.7, "top_p": 0.9}, {"temperature": 0.7, "top_p": 0.9}),
    ({"temperature": 0, "do_sample": True}, {"temperature": 0.0}),
    ({"do_sample": True, "top_k": 5, "top_p": None}, {"temperature": 1.0, "top_k": 5}),
    ({"until": "x", "stop_sequences": ["y"]}, {"temperature": 0.0, "stop": ["x", "y"]}),
    ({"repetition_penalty": 1.2}, {"temperature": 0.0, "repetition_penalty": 1.2}),
    ({"image_aspect_ratio": "original"}, {"temperature": 0.0}),
  ],
)
def test_options_of_a_task_as_a_model_takes_them(told, wanted):
  model = Model()
  answered(model, ["say"], told)
  assert model.calls[0][2] == {"length": lmms.LENGTH, **wanted}


def test_options_of_the_call_stand_before_those_of_a_task():
  model = Model()
  given = {"max_pixels": 999, "length": 5}
  answered(model, ["say", "more"], [{"seed": 3}, {"max_new_tokens": 7}], given=given)
  assert model.calls[0][1:] == ([3], {"length": 5, "temperature": 0.0, "max_pixels": 999})
  assert model.calls[1][1:] == ([1], {"length": 7, "temperature": 0.0, "max_pixels": 999})
  sampled = {"temperature": 0.7, "top_p": 0.9}
  model = Model()
  answered(model, ["say", "more"], [{"max_new_tokens": 7}, {"do_sample": False}], given=sampled)
  assert model.calls[0][2] == {"length": 7, **sampled}
  assert model.calls[1][2]["temperature"] == 0.0


@pytest.mark.parametrize(
  ("mode", "told", "content", "said"),
  [
    ("chat", {"num_beams": 3}, "say", "task task: generation_kwargs: num_beams 3"),
    ("chat", {"skip_special_tokens": False}, "say", "skip_special_tokens False: not known"),
    ("chat", {}, [{"type": "video", "url": "x"}], "document 1: shows video"),
    ("generate", {"visual_cot": True}, "say", "visual_cot True: not known"),
    ("generate", {"sampler": "heun"}, "say", "sampler: stand-in has it not"),
    ("generate", {}, [image(), image(), text("say")], "2 pictures and the text 'say'"),
    ("generate", {}, [image()], "1 pictures and the text ''"),
    ("edit", {}, "say", "mode=edit takes a text and a picture"),
    ("edit", {}, [image("/no/such.png"), text("say")], "no such file of a picture"),
  ],
)
def test_what_cannot_be_had_is_refused_before_anything_is_computed(mode, told, content, said):
  model = Model()
  first = [image(), text("fine")]
  with pytest.raises(ValueError, match=said):
    answered(model, [first, content], [{}, told], mode)
  assert model.calls == []


def test_pictures_are_written_and_their_paths_told(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  model = Model()
  # As WISE asks.
  told = {"max_new_tokens": 64, "temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False}
  told |= {"until": ["\n\n"], "guidance_scale": 4.0, "height": 64, "width": 32}
  contents = [[text("a wall")], "a tree", [image(), text("like this")]]
  found = answered(model, contents, told, "generate", output=Path("drawn"), batch=2, seed=7)
  for i, reply in enumerate(found):
    data = json.loads(reply.text)
    assert data == {"text": "", "images": [str(tmp_path / f"drawn/task/test/{i}.png")]}
    about = picture.read(data["images"][0])
    assert (about["prompt"], about["seed"]) == (["a wall", "a tree", "like this"][i], 7 + i)
    assert reply.tokens is None
  options = {"guidance": 4.0, "size": (64, 32)}
  assert model.calls[0] == (["a wall", "a tree"], [7, 8], options)
  assert model.calls[1][2].keys() == {*options, "images"}


def test_edits_are_given_the_picture(tmp_path):
  model, path = Model(), tmp_path / "before.png"
  Image.new("RGBA", (4, 4), (0, 0, 255, 0)).save(path)
  contents = [[image(SHOWN.convert("L")), text("redder")], [text("bluer"), image(str(path))]]
  found = answered(model, contents, {}, "edit", output=tmp_path, batch=8)
  assert [Path(json.loads(each.text)["images"][0]).name for each in found] == ["0.png", "1.png"]
  ((shown, texts, seeds, options),) = model.calls
  assert (texts, seeds, options) == (["redder", "bluer"], [0, 1], {})
  assert np.asarray(shown[1])[0, 0].tolist() == [255, 255, 255]  # what is transparent, on white


def test_an_answer_with_pictures_names_them(tmp_path):
  found = answered(Model(draws=2), ["show"], {}, output=tmp_path)
  data = json.loads(found[0].text)
  assert data["text"] == "show!"
  assert [Path(path).name for path in data["images"]] == ["0_0.png", "0_1.png"]
  assert all(Path(path).is_file() for path in data["images"])


def test_a_question_that_is_asked_again_has_another_seed_and_file():
  documents = {"a b/c": {"test": [{"content": "x"}]}}
  asked = lmms.read([Request(0, {}, "a b/c"), Request(0, {}, "a b/c")], documents)
  assert [each.name for each in asked] == ["a-b-c/test/0", "a-b-c/test/0-1"]
  model = Model()
  lmms.Answering(model, "chat", Path("unused"), batch=2)(asked)
  assert model.calls[0][1] == [0, lmms.AGAIN]


def test_requests_of_another_form_and_modes_that_a_model_has_not():
  request = Request(0)
  request.args = request.args[:5]  # type: ignore[assignment]
  with pytest.raises(ValueError, match="a request with 5 arguments"):
    lmms.read([request], {})
  with pytest.raises(ValueError, match="cannot edit"):
    lmms.Answering(Model(verbs=("chat",)), "edit", Path("unused"))
  with pytest.raises(ValueError, match="mode=draw: expected one of"):
    lmms.Answering(Model(), "draw", Path("unused"))
  with pytest.raises(ValueError, match="colour: stand-in has it not"):
    lmms.Answering(Model(), "generate", Path("unused"), given={"colour": 1})


@pytest.fixture
def made(monkeypatch):
  """The class for lmms-eval, over stand-ins of what it takes of the package; makes one."""

  class Base:
    def __init__(self) -> None:
      self.task_dict: dict[str, Any] = {}
      self.cache_hook = types.SimpleNamespace(add_partial=lambda *args: cached.append(args))

  def module(name: str, **members: Any) -> None:
    found = types.ModuleType(name)
    vars(found).update(members)
    monkeypatch.setitem(sys.modules, name, found)

  cached: list[Any] = []
  module("lmms_eval")
  module("lmms_eval.api")
  module("lmms_eval.api.model", lmms=Base)
  counts = lambda **told: told  # noqa: E731
  module("lmms_eval.api.instance", GenerationResult=lambda *a: a, TokenCounts=counts)
  module("lmms_eval.models", registry_v2=types.SimpleNamespace(ModelManifest=counts))
  monkeypatch.delitem(sys.modules, "blip3o_jax.evaluate.lmms_model", raising=False)
  from blip3o_jax.evaluate import lmms_model

  loads: list[Any] = []

  def load(model: Any, *, dtype: str, verb: str) -> Model:
    loads.append((model, dtype, verb))
    return Model()

  monkeypatch.setattr(lmms_model.blip3o_jax, "load", load)
  yield types.SimpleNamespace(Blip3o=lmms_model.Blip3o, loads=loads, cached=cached)
  sys.modules.pop("blip3o_jax.evaluate.lmms_model", None)


def test_the_class_that_lmms_eval_makes(made, tmp_path):
  model = made.Blip3o(
    pretrained="DIR", mode="generate", output_dir=str(tmp_path), seed=5, steps=3, batch_size=4
  )
  assert made.loads == [("DIR", "float32", "generate")]
  assert model.is_simple is False
  model.task_dict["task"] = {"test": [{"content": "a wall"}]}
  (said,) = model.generate_until([Request(0, {"until": []})])
  assert picture.read(json.loads(said)["images"][0])["seed"] == 5
  assert made.cached == [("generate_until", ("context 0", {"until": []}), said)]
  chat = made.Blip3o(batch_size="2", max_batch_size=None)
  assert made.loads[1] == (None, "float32", "chat")
  chat.task_dict["task"] = {"test": [{"content": "why?"}]}
  assert chat.generate_until([Request(0)]) == [("why?!", {"input_tokens": 20, "output_tokens": 3})]
  for call in (chat.loglikelihood, chat.generate_until_multi_round):
    with pytest.raises(NotImplementedError, match="blip3o"):
      call([])


@pytest.mark.parametrize(
  ("more", "said"),
  [
    ({"device": "cuda:0"}, "device cuda:0: JAX"),
    ({"batch_size": "auto"}, "batch_size auto"),
    ({"mode": "draw"}, "mode=draw"),
    ({"colour": 1}, "colour"),
  ],
)
def test_arguments_of_the_class_that_are_wrong(made, more, said):
  with pytest.raises(ValueError, match=said):
    made.Blip3o(**more)


def test_one_process_alone(made, monkeypatch):
  monkeypatch.setenv("WORLD_SIZE", "2")
  with pytest.raises(ValueError, match="several processes"):
    made.Blip3o()


def test_the_entry_point_s_manifest_names_the_class(made):
  text = (Path(__file__).parents[3] / "pyproject.toml").read_text()
  points = tomllib.loads(text)["project"]["entry-points"]["lmms_eval.models"]
  found = metadata.EntryPoint("blip3o", points["blip3o"], "lmms_eval.models").load()()
  assert found == {
    "model_id": "blip3o",
    "chat_class_path": "blip3o_jax.evaluate.lmms_model.Blip3o",
  }
