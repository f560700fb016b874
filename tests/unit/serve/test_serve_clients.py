"""Clients that nobody here wrote: the package of OpenAI, and requests made up from the schema."""

import base64
import io

import openai
from PIL import Image
import pytest
from standin import SIDE
from standin import StandIn
from standin import server

MODEL = "standin"


@pytest.fixture
def asked(shared):
  """The package's client of the shared server."""
  with openai.OpenAI(base_url=f"{shared[1].url}/v1", api_key="none", max_retries=0) as client:
    yield client


def opened(text: str) -> Image.Image:
  return Image.open(io.BytesIO(base64.b64decode(text)))


def test_pictures(asked, model):
  answer = asked.images.generate(
    model=MODEL,
    prompt="a red circle",
    n=2,
    size="auto",
    output_format="webp",
    extra_body={"seed": 9, "num_inference_steps": 3},
  )
  assert [each.seed for each in answer.data] == [9, 10]
  assert opened(answer.data[0].b64_json).format == "WEBP"
  assert answer.usage.total_tokens == 3 + 2 * 4
  assert answer.usage.input_tokens_details.text_tokens == 3
  assert model.calls == [("generate", [9, 10], {"steps": 3})]


def test_streamed_pictures(asked):
  stream = asked.images.generate(
    model=MODEL, prompt="a", stream=True, partial_images=2, extra_body={"seed": 1}
  )
  events = list(stream)
  assert [type(event).__name__ for event in events] == [
    "ImageGenPartialImageEvent",
    "ImageGenPartialImageEvent",
    "ImageGenCompletedEvent",
  ]
  assert [event.partial_image_index for event in events[:-1]] == [0, 1]
  for event in events:
    assert event.size == f"{SIDE}x{SIDE}"
    assert opened(event.b64_json).size == (SIDE, SIDE)
    type(event).model_validate(event.model_dump(exclude_unset=True), strict=True)
  assert events[-1].usage.output_tokens == 4


def test_edits_of_one_picture_and_of_a_list(asked, png):
  for image, count in ((png, 1), ([png], 1), ([png, png], 2), (("a.png", png, "image/png"), 1)):
    answer = asked.images.edit(model=MODEL, image=image, prompt="reconstruct", n=1)
    assert len(answer.data) == count
  events = list(asked.images.edit(model=MODEL, image=[png], prompt="reconstruct", stream=True))
  assert [event.type for event in events] == ["image_edit.partial_image"] * 0 + [
    "image_edit.completed"
  ]


def test_errors(asked, png):
  with pytest.raises(openai.BadRequestError) as refused:
    asked.images.generate(model=MODEL, prompt="a", size="1024x1024")
  assert (refused.value.param, refused.value.code) == ("size", "unsupported")
  with pytest.raises(openai.NotFoundError):
    asked.images.generate(model="other", prompt="a")
  with pytest.raises(openai.BadRequestError, match="mask"):
    asked.images.edit(model=MODEL, image=png, mask=png, prompt="reconstruct")
  with pytest.raises(openai.APIError):
    list(asked.images.generate(model=MODEL, prompt="break", stream=True, partial_images=1))


def test_chat(asked):
  answer = asked.chat.completions.create(
    model=MODEL, messages=[{"role": "user", "content": "hello"}], extra_body={"top_k": 3}
  )
  assert answer.choices[0].message.content == "you said hello"
  assert answer.usage.total_tokens == 8


def test_streamed_chat(asked):
  stream = asked.chat.completions.create(
    model=MODEL,
    messages=[{"role": "user", "content": "hello"}],
    stream=True,
    stream_options={"include_usage": True},
  )
  chunks = list(stream)
  said = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
  assert "".join(said) == "you said hello "
  assert chunks[-1].usage.completion_tokens == 3


def test_models(asked):
  (found,) = asked.models.list()
  assert found.id == MODEL
  assert asked.models.retrieve(MODEL).blip3o["system"] == "blip3o"


def test_a_key():
  with server(StandIn(), key="right").running() as running:
    for key, fails in (("wrong", True), ("right", False)):
      with openai.OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0) as client:
        if fails:
          with pytest.raises(openai.AuthenticationError):
            client.models.list()
        else:
          assert client.images.generate(prompt="a").data
