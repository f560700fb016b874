"""The chat API, and what the server says of itself."""

import base64
import io
import json
from typing import Any

import httpx
from PIL import Image
import pytest
from standin import SIDE

from blip3o_jax.serve import app as application
from blip3o_jax.serve import talking
from blip3o_jax.serve.jobs import Answered
from blip3o_jax.serve.jobs import Said
from blip3o_jax.serve.settings import Settings

URL = "/v1/chat/completions"


def ask(client: httpx.Client, content: Any = "hello", **fields: Any) -> httpx.Response:
  return client.post(URL, json={"messages": [{"role": "user", "content": content}], **fields})


def url(png: bytes) -> str:
  return "data:image/png;base64," + base64.b64encode(png).decode()


def test_an_answer(client, model):
  answer = ask(client, "hello", model="standin", seed=3).json()
  (choice,) = answer["choices"]
  assert choice["message"] == {"role": "assistant", "content": "you said hello", "refusal": None}
  assert choice["finish_reason"] == "stop"
  assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
  assert answer["object"] == "chat.completion"
  assert model.calls[-1][1:] == ([{"role": "user", "content": "hello"}], {"length": 256})


def test_words_of_users_that_the_model_does_not_know_are_named(client, model):
  model.words = ("hello",)
  asked = {"role": "user", "content": [{"type": "text", "text": "hello you"}]}
  talk = [asked, {"role": "assistant", "content": "words"}, {"role": "user", "content": "there"}]
  answer = client.post(URL, json={"messages": talk})
  assert answer.headers["x-unknown-words"] == "you, there"


def test_pictures_and_turns_reach_the_model(client, model, png):
  shown = {"type": "image_url", "image_url": {"url": url(png), "detail": "low"}}
  talk = [
    {"role": "developer", "content": "be short"},
    {"role": "user", "content": [shown, {"type": "text", "text": "what?"}]},
    {"role": "assistant", "content": "red"},
    {"role": "user", "content": [{"type": "text", "text": "and"}, shown, shown], "name": "me"},
  ]
  answer = client.post(URL, json={"messages": talk}).json()
  assert answer["choices"][0]["message"]["content"] == "you said and   30x20 30x20"
  (told,) = (call[1] for call in model.calls)
  assert [message["role"] for message in told] == ["system", "user", "assistant", "user"]
  first = told[1]["content"][0]
  assert first["type"] == "image"
  assert first["image"].getpixel((0, 0)) == (255, 0, 0)


def test_options_reach_the_model(client, model):
  answer = ask(
    client,
    max_completion_tokens=9,
    temperature=0.5,
    top_p=0.9,
    top_k=-1,
    stop="x",
    extra=1,
    user="u",
    extra_body={"top_k": -1},
  )
  assert answer.headers["x-ignored-fields"] == "extra, user"
  assert "x-unknown-words" not in answer.headers
  assert model.calls[-1][2] == {
    "length": 9,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 0,
    "stop": ["x"],
  }


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("n", 2),
    ("tools", [{"type": "function"}]),
    ("functions", [{}]),
    ("response_format", {"type": "json_object"}),
    ("logprobs", True),
    ("frequency_penalty", 1),
    ("presence_penalty", 1.5),
    ("logit_bias", {"5": 1}),
    ("repetition_penalty", 1.2),
    ("max_tokens", 0),
    ("max_tokens", 100_000),
    ("temperature", -1),
    ("temperature", 1e400),
    ("top_p", 0),
    ("stop", ""),
    ("stream_options", {"include_usage": True}),
    ("messages", []),
    ("messages", [{"role": "user", "content": "a" * 40_000}]),
  ],
)
def test_what_cannot_be_honoured_is_refused_by_its_name(client, model, field, value):
  body = {"messages": [{"role": "user", "content": "a"}], field: value}
  response = client.post(
    URL, content=json.dumps(body), headers={"Content-Type": "application/json"}
  )
  assert response.status_code == 400
  assert response.json()["error"]["param"] == field
  assert not model.calls


def test_two_lengths_are_refused(client):
  response = ask(client, max_tokens=5, max_completion_tokens=6)
  assert response.json()["error"]["param"] == "max_completion_tokens"
  assert ask(client, max_tokens=5, max_completion_tokens=5).status_code == 200


@pytest.mark.parametrize(
  "content", [None, 5, [], [{"type": "audio"}], [{"type": "image_url"}], [{"type": "text"}]]
)
def test_messages_of_another_form_are_refused(client, content):
  assert ask(client, content).status_code == 400


def test_an_answer_with_pictures_has_parts(client):
  parts = ask(client, "draw").json()["choices"][0]["message"]["content"]
  assert [part["type"] for part in parts] == ["text", "image_url", "text"]
  head, _, text = parts[1]["image_url"]["url"].partition(",")
  assert head == "data:image/png;base64"
  assert Image.open(io.BytesIO(base64.b64decode(text))).size == (SIDE, SIDE)


def stream(client: httpx.Client, content: Any, **fields: Any) -> list[Any]:
  response = ask(client, content, stream=True, **fields)
  assert response.headers["content-type"].startswith("text/event-stream")
  lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
  assert lines[-1] == "[DONE]"
  return [json.loads(line) for line in lines[:-1]]


def test_a_stream_of_an_answer(client):
  chunks = stream(client, "one two", stream_options={"include_usage": True})
  assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
  said = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[:-1]]
  assert "".join(said) == "you said one two "
  assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
  assert chunks[-1]["choices"] == []
  assert chunks[-1]["usage"]["total_tokens"] == 8
  assert len({chunk["id"] for chunk in chunks}) == 1
  assert all("usage" not in chunk for chunk in stream(client, "one"))


def test_a_stream_with_a_picture(client):
  found = [chunk["choices"][0]["delta"].get("content") for chunk in stream(client, "draw")]
  ((part,),) = [each for each in found if isinstance(each, list)]
  assert part["image_url"]["url"].startswith("data:image/png;base64,")
  # As without a stream: where the mark stood, which is no word of the answer.
  place = found.index([part])
  assert "".join(filter(None, found[:place])) == "here "
  assert "".join(filter(None, found[place + 1 :])) == " it is "


@pytest.mark.parametrize(
  ("pieces", "told"),
  [
    (["a <ima", "ge> b", 1], ["a ", 1, " b"]),
    (["<image> <image>", 1, 2], [1, " ", 2]),
    (["a < b", " <im"], ["a < b", " ", "<im"]),
    (["a <image> b"], ["a ", "<image> b"]),  # the model said so in words
    ([1, 2], [1, 2]),
  ],
)
def test_pictures_of_a_stream_stand_at_their_marks(pieces, told):
  held = talking._Pieces()
  found = [part for piece in pieces for part in held.add(Said(piece))]
  assert [*found, *held.add(Answered(None))] == told


# About --------------------------------------------------------------------------------------------


def test_the_model_says_what_it_can(client):
  (entry,) = client.get("/v1/models").json()["data"]
  assert client.get("/v1/models/standin").json() == entry
  assert entry["id"] == "standin"
  known = entry["blip3o"]
  assert known["verbs"] == ["generate", "chat", "reconstruct"]
  assert (known["side"], known["size"]) == ([SIDE, SIDE], f"{SIDE}x{SIDE}")
  assert (known["steps"], known["guidance"]) == (4, 3.0)
  assert known["options"]["reconstruct"] == {"pixel_steps": 2}
  assert known["prompts"]
  assert known["questions"]
  assert client.get("/v1/models/other").status_code == 404


def test_the_schema_names_every_route(client):
  paths = client.get("/openapi.json").json()["paths"]
  assert set(paths) == {
    "/v1/images/generations",
    "/v1/images/edits",
    "/v1/chat/completions",
    "/v1/models",
    "/v1/models/{name}",
    "/healthz",
    "/readyz",
    "/metrics",
  }
  assert all("422" not in way["responses"] for each in paths.values() for way in each.values())


def test_metrics_count(client):
  def number(name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return float(next((x.rpartition(" ")[2] for x in lines if x.startswith(name)), 0))

  before = number('blip3o_items_total{verb="chat"}'), number("blip3o_batch_size_count")
  ask(client)
  assert number('blip3o_items_total{verb="chat"}') == before[0] + 1
  assert number("blip3o_batch_size_count") == before[1] + 1
  client.get("/some/path/that/nobody/has")
  text = client.get("/metrics").text
  assert "nobody" not in text  # a client cannot make names
  assert 'blip3o_requests_total{path="other",status="404"}' in text
  assert "blip3o_ready 1\n" in text


def test_the_page_is_served_by_its_names_alone(tmp_path, model):
  (tmp_path / "page").mkdir()
  (tmp_path / "page" / "index.html").write_text("<p>hello</p>")
  (tmp_path / "page" / "page.js").write_text("1")
  (tmp_path / "secret").write_text("no")
  from starlette.testclient import TestClient

  app = application.create(model, Settings(key="k"), tmp_path / "page")
  client = TestClient(app)
  shown = client.get("/")
  assert shown.text == "<p>hello</p>"
  assert shown.headers["content-type"].startswith("text/html")
  assert "default-src 'self'" in shown.headers["content-security-policy"]
  assert "javascript" in client.get("/page.js").headers["content-type"]
  key = {"Authorization": "Bearer k"}
  for path in ("/../secret", "/%2e%2e/secret", "/page/../../secret", "/index.html"):
    assert client.get(path, headers=key).status_code == 404


def test_the_server_needs_no_jax():
  import subprocess
  import sys

  code = (
    "import sys, blip3o_jax.serve.serving, blip3o_jax.serve.app; sys.exit('jax' in sys.modules)"
  )
  done = subprocess.run([sys.executable, "-c", code], check=False)
  assert done.returncode == 0
