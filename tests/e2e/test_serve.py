"""The server of the shipped miniature: its pictures and answers are the model's own."""

import base64
import io
import signal
import subprocess
import sys
import threading
import time

import httpx
import numpy as np
import openai
from PIL import Image
import pytest

import blip3o_jax
from blip3o_jax.serve import app as application
from blip3o_jax.serve import serving
from blip3o_jax.serve.settings import Limits
from blip3o_jax.serve.settings import Settings

PROMPT = "a red circle left of a blue square"
QUESTION = "how many circles are there?"


@pytest.fixture(scope="module")
def own():
  """The model in this process."""
  return blip3o_jax.load()


def wait_for(url, alive):
  """Until a server is ready; its first pictures compile for a while."""
  with httpx.Client(base_url=url, timeout=60) as asking:
    while asking.get("/readyz").status_code != 200:
      assert alive()
      time.sleep(0.2)


@pytest.fixture(scope="module")
def served(own):
  """A server of that model, in a thread; its address."""
  settings = Settings(
    name="blip3o-miniature",
    batch=2,
    prompts=(PROMPT,),
    questions=(QUESTION,),
    limits=Limits(tokens=64),  # as `chat` has it, so that both run the same programs
  )
  server = serving.Server(application.create(own, settings))
  listening = serving.listen("127.0.0.1", 0)
  thread = threading.Thread(target=server.run, args=([listening],))
  thread.start()
  url = f"http://127.0.0.1:{listening.getsockname()[1]}"
  wait_for(url, thread.is_alive)
  yield url
  server.should_exit = True
  thread.join(30)


@pytest.fixture(scope="module")
def client(served):
  with openai.OpenAI(base_url=f"{served}/v1", api_key="none", max_retries=0) as found:
    yield found


def opened(text):
  return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def test_pictures_are_those_of_generate_bit_for_bit(client, own):
  answer = client.images.generate(prompt=PROMPT, n=2, extra_body={"seed": 7})
  drawn = own.generate(PROMPT, 7, images_per_prompt=2)
  for each, picture in zip(answer.data, drawn, strict=True):
    assert each.seed == picture.seed
    np.testing.assert_array_equal(opened(each.b64_json), picture.pixels)
  known = Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json))).info["blip3o"]
  assert own.fingerprint in known


def test_previews_become_the_picture(client, own):
  stream = client.images.generate(
    prompt=PROMPT, stream=True, partial_images=3, extra_body={"seed": 7}
  )
  *partial, done = list(stream)
  assert [event.partial_image_index for event in partial] == [0, 1, 2]
  (drawn,) = own.generate(PROMPT, 7)
  np.testing.assert_array_equal(opened(done.b64_json), drawn.pixels)
  apart = [np.abs(opened(e.b64_json) - drawn.pixels.astype(float)).mean() for e in partial]
  assert apart[2] < apart[0]


def test_an_uploaded_picture_is_rebuilt(client, own):
  image = own.generate(PROMPT, 7)[0].image
  file = io.BytesIO()
  image.save(file, "PNG")
  answer = client.images.edit(image=file.getvalue(), prompt="reconstruct", extra_body={"seed": 3})
  (drawn,) = own.reconstruct([image], 3)
  np.testing.assert_array_equal(opened(answer.data[0].b64_json), drawn.pixels)


def test_an_answer_and_its_stream(client, own):
  image = own.generate(PROMPT, 7)[0]
  url = "data:image/png;base64," + base64.b64encode(image.png()).decode()
  shown = {"type": "image_url", "image_url": {"url": url}}
  messages = [{"role": "user", "content": [shown, {"type": "text", "text": QUESTION}]}]
  asked = {
    "role": "user",
    "content": [{"type": "image", "image": image.image}, {"type": "text", "text": QUESTION}],
  }
  expected = own.chat([asked])
  answer = client.chat.completions.create(model="blip3o-miniature", messages=messages)
  assert answer.choices[0].message.content == expected.text
  assert answer.choices[0].finish_reason == expected.finish
  assert answer.usage.completion_tokens == expected.tokens
  assert answer.usage.prompt_tokens == expected.prompt_tokens
  chunks = client.chat.completions.create(model="blip3o-miniature", messages=messages, stream=True)
  assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected.text


def test_what_the_model_refuses_is_told(client):
  talk = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello"}]
  with pytest.raises(openai.BadRequestError, match="expected a user's message"):
    client.chat.completions.create(model="blip3o-miniature", messages=talk)


@pytest.mark.slow
def test_the_command(tmp_path):
  command = [sys.executable, "-m", "blip3o_jax.cli", "serve", "--port", "0", "--batch", "1"]
  with subprocess.Popen(
    command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
  ) as running:
    name, url = running.stdout.readline().split()
    assert name == "blip3o-miniature:"
    wait_for(url, lambda: running.poll() is None)
    page = httpx.get(url)
    assert page.headers["content-type"].startswith("text/html")
    body = {"prompt": PROMPT, "seed": 7}
    (drawn,) = httpx.post(f"{url}/v1/images/generations", json=body, timeout=120).json()["data"]
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 0
    said = running.stderr.read()
  assert "Traceback" not in said
  assert "other machines" not in said  # it listens to this machine alone
  # Bit for bit what the other command draws, which has as many devices.
  words = ["generate", PROMPT, "--seed", "7", "--output", str(tmp_path / "drawn.png")]
  subprocess.run([sys.executable, "-m", "blip3o_jax.cli", *words], check=True, capture_output=True)
  wanted = np.asarray(Image.open(tmp_path / "drawn.png"))
  np.testing.assert_array_equal(opened(drawn["b64_json"]), wanted)
