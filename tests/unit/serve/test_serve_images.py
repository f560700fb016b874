"""The images API: what is honoured, what is ignored by name, what is refused by name."""

import base64
import io
import json
from typing import Any

import httpx
import numpy as np
from PIL import Image
import pytest
from standin import SIDE
from standin import StandIn
from standin import picture
from standin import server

URL = "/v1/images/generations"


def draw(client: httpx.Client, **fields: Any) -> httpx.Response:
  return client.post(URL, json={"prompt": "a red circle", **fields})


def opened(text: str) -> Image.Image:
  return Image.open(io.BytesIO(base64.b64decode(text)))


def refused(response: httpx.Response, param: str | None, status: int = 400) -> str:
  """The message of a refusal that names a field."""
  assert response.status_code == status, response.text
  error = response.json()["error"]
  assert set(error) == {"message", "type", "param", "code"}
  assert error["param"] == param
  return str(error["message"])


def test_pictures_have_seeds_one_after_the_other_and_their_metadata(client, model):
  answer = draw(client, n=3, seed=5).json()
  assert [each["seed"] for each in answer["data"]] == [5, 6, 7]
  assert answer["size"] == f"{SIDE}x{SIDE}"
  assert answer["output_format"] == "png"
  assert answer["usage"] == {
    "input_tokens": 3,
    "input_tokens_details": {"text_tokens": 3, "image_tokens": 0},
    "output_tokens": 12,
    "total_tokens": 15,
  }
  for each in answer["data"]:
    found = opened(each["b64_json"])
    np.testing.assert_array_equal(found, picture("a red circle", each["seed"]).pixels)
    known = json.loads(found.info["blip3o"])
    assert known["seed"] == each["seed"]
    assert known["model"] == "standin"  # not the path that the model has on this machine


def test_without_a_seed_there_is_one_that_draws_the_same_again(client):
  first = draw(client).json()["data"][0]
  assert draw(client, seed=first["seed"]).json()["data"][0] == first
  assert draw(client).json()["data"][0]["seed"] != first["seed"]


@pytest.mark.parametrize("inside", [False, True])
def test_the_names_of_vllm_omni_reach_the_model(client, model, inside):
  more = {"num_inference_steps": 7, "guidance_scale": 2, "seed": 3}
  answer = draw(client, **({"extra_body": more} if inside else more))
  assert answer.status_code == 200
  assert model.calls == [("generate", [3], {"steps": 7, "guidance": 2.0})]
  assert "x-ignored-fields" not in answer.headers


def test_a_field_beside_extra_body_with_another_value_is_refused(client):
  assert "extra_body" in refused(draw(client, seed=1, extra_body={"seed": 2}), None)


@pytest.mark.parametrize(("form", "kind"), [("jpeg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")])
def test_formats(client, form, kind):
  answer = draw(client, output_format=form).json()
  assert opened(answer["data"][0]["b64_json"]).format == kind
  assert answer["output_format"] == form


def test_compression_makes_fewer_bytes(client):
  sizes = [
    len(
      draw(client, output_format="jpeg", output_compression=q, seed=1).json()["data"][0]["b64_json"]
    )
    for q in (1, 100)
  ]
  assert sizes[0] < sizes[1]


def test_a_url_is_a_data_url(client):
  (each,) = draw(client, response_format="url", output_format="jpeg").json()["data"]
  head, _, text = each["url"].partition(",")
  assert head == "data:image/jpeg;base64"
  assert opened(text).size == (SIDE, SIDE)
  assert "b64_json" not in each


def test_what_changes_nothing_is_named_in_a_header(client):
  answer = draw(client, style="vivid", quality="high", user="me", moderation="low", **{"a\nb": 1})
  assert answer.headers["x-ignored-fields"] == "style, a?b, quality, moderation, user"
  quiet = draw(
    client, quality="auto", size=f"{SIDE}x{SIDE}", background="opaque", negative_prompt=""
  )
  assert quiet.status_code == 200
  assert "x-ignored-fields" not in quiet.headers


def test_words_that_the_model_does_not_know_are_named_in_a_header(client, model):
  assert "x-unknown-words" not in draw(client, prompt="a crimson circle").headers
  model.words = ("a", "red", "circle")
  assert "x-unknown-words" not in draw(client, prompt="a red circle").headers
  answer = draw(client, prompt="a crimson круг circle", style="vivid")
  assert answer.headers["x-unknown-words"] == "crimson, ????"
  assert answer.headers["x-ignored-fields"] == "style"
  told = client.get("/v1/models").json()["data"][0]["blip3o"]
  assert told["words"] == ["a", "red", "circle"]


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("size", "10x10"),
    ("background", "transparent"),
    ("negative_prompt", "hands"),
    ("true_cfg_scale", 2.0),
    ("language", "zh"),
    ("output_compression", 50),
    ("partial_images", 2),
    ("prompt", " "),
    ("prompt", "a\x00b"),
    ("prompt", "a" * 40_000),
    ("n", 11),
    ("n", "2"),
    ("seed", -1),
    ("seed", 2**64),
    ("num_inference_steps", 0),
    ("guidance_scale", 0),
    ("size", "big"),
    ("output_format", "gif"),
  ],
)
def test_what_cannot_be_honoured_is_refused_by_its_name(client, model, field, value):
  message = refused(draw(client, **{field: value}), field)
  assert message.startswith(f"{field}: ")
  assert not model.calls


def test_the_last_seed_must_be_one_too(client):
  refused(draw(client, seed=2**64 - 1, n=2), "seed")
  assert draw(client, seed=2**64 - 1).status_code == 200


def test_another_model_is_not_there(client):
  assert "standin" in refused(draw(client, model="gpt-image-1"), "model", 404)
  assert draw(client, model="standin").status_code == 200


def test_what_the_model_says_is_told_without_its_paths(client, caplog):
  assert "longer than the limit of 9" in refused(draw(client, prompt="refuse me"), None)
  for prompt, status in (("where are you", 400), ("break", 500)):
    message = refused(draw(client, prompt=prompt), None, status)
    assert "secret" not in message
    assert "log" in message
  assert "model.safetensors" in caplog.text
  assert "fell over" in caplog.text


def test_bodies_that_are_no_json(client):
  for body in (b"{", b"\xff", b"[" * 100_000, b"1" * 5000):
    response = client.post(URL, content=body, headers={"Content-Type": "application/json"})
    assert refused(response, None)
  untyped = client.post(URL, content=b'{"prompt": "a"}', headers={"Content-Type": "text/plain"})
  assert refused(untyped, None)
  assert "Content-Type: application/json" in untyped.json()["error"]["message"]


def test_a_stream_shows_previews_before_each_picture(client):
  with client.stream(
    "POST", URL, json={"prompt": "a", "stream": True, "seed": 4, "n": 2, "partial_images": 3}
  ) as response:
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.iter_lines() if line]
  events = [json.loads(line.removeprefix("data: ")) for line in lines[1::2]]
  assert [f"event: {event['type']}" for event in events] == lines[::2]
  for place in (0, 1):
    own = [event for event in events if event["index"] == place]
    partial, done = own[:-1], own[-1]
    assert [each["partial_image_index"] for each in partial] == [0, 1, 2]
    # What the stand-in shows is which of its four steps is done.
    assert [opened(each["b64_json"]).getpixel((0, 0))[0] for each in partial] == [1, 2, 3]
    assert done["type"] == "image_generation.completed"
    assert done["seed"] == 4 + place
    assert done["usage"]["output_tokens"] == 4


def test_a_stream_that_is_refused_has_a_status(client):
  assert draw(client, stream=True, prompt="refuse me").status_code == 400


def test_a_stream_that_breaks_ends_with_an_error(client):
  response = draw(client, stream=True, partial_images=1, prompt="break", num_inference_steps=1)
  assert response.status_code == 500
  response = draw(client, stream=True, partial_images=3, prompt="break", num_inference_steps=4)
  assert response.status_code == 200
  assert '"server_error"' in response.text.splitlines()[-2]


# Edits --------------------------------------------------------------------------------------------


def edit(
  client: httpx.Client, png: bytes, names: Any = ("image",), **fields: Any
) -> httpx.Response:
  files = [(name, ("x.png", png, "image/png")) for name in names]
  return client.post("/v1/images/edits", data=fields, files=files)


@pytest.mark.parametrize(
  "names", [("image",), ("image[]",), ("image[]", "image[]"), ("image",) * 2]
)
def test_a_model_that_cannot_edit_reconstructs(client, model, png, names):
  answer = edit(client, png, names, prompt="Reconstruct", seed="3", n="2").json()
  assert [each["seed"] for each in answer["data"]] == list(range(3, 3 + 2 * len(names)))
  assert answer["usage"]["input_tokens_details"]["image_tokens"] == 4 * len(names)
  assert json.loads(opened(answer["data"][0]["b64_json"]).info["blip3o"])["prompt"] == (
    "(30, 20) (255, 0, 0)"
  )


def test_a_model_that_cannot_edit_says_so(client, png):
  message = refused(edit(client, png, prompt="make it blue"), "prompt")
  assert "cannot edit" in message
  assert "`reconstruct`" in message


def test_a_model_that_edits(png):
  model = StandIn(("generate", "edit", "reconstruct"))
  with server(model).running() as running, httpx.Client(base_url=running.url) as client:
    answer = edit(client, png, prompt="make it blue", seed="7", size="16x32", input_fidelity="high")
    assert answer.headers["x-ignored-fields"] == "input_fidelity"
    (each,) = answer.json()["data"]
    assert opened(each["b64_json"]).size == (16, 32)
    assert model.calls[-1] == ("edit", [7], {"size": (32, 16)})
    events = edit(client, png, prompt="blue", stream="true", partial_images="1").text
    assert "image_edit.partial_image" in events
    assert "image_edit.completed" in events
    refused(edit(client, png, prompt="blue", size="99999x99999"), "size")
    refused(
      edit(client, png, prompt="blue", extra_body='{"num_inference_steps": 0}'),
      "num_inference_steps",
    )
    refused(
      client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "a"}]}),
      None,
    )


def test_uploads_that_are_refused(client, png, model):
  post, url = client.post, "/v1/images/edits"
  ok = {"prompt": "reconstruct"}
  refused(edit(client, png, (), **ok), None, 415)
  refused(post(url, json=ok), None, 415)
  refused(post(url, files={"x": ("", b"")}, data=ok), "image")
  refused(edit(client, png, ("image", "mask"), **ok), "mask")
  refused(edit(client, png, ("image", "other"), **ok), "other")
  refused(edit(client, png, ("image",) * 17, **ok), "image")
  refused(edit(client, png, n="abc", **ok), "n")
  refused(edit(client, png, ("image",) * 9, n="2", **ok), "n")
  refused(edit(client, png, extra_body="{", **ok), "extra_body")
  refused(edit(client, b"no picture", **ok), "image")
  refused(edit(client, png[:60], **ok), "image")
  refused(edit(client, b"", **ok), "image")
  refused(post(url, content=b"--x", headers={"Content-Type": "multipart/form-data"}), None)
  assert not model.calls
