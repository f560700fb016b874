"""A model that draws nothing real and is fast, and a server of it in a thread."""

from collections.abc import Generator
from collections.abc import Iterator
import contextlib
import dataclasses
import threading
import time
from typing import Any

import numpy as np

from blip3o_jax.serve import app as application
from blip3o_jax.serve import serving
from blip3o_jax.serve.settings import Settings

SIDE, STEPS = 24, 4


@dataclasses.dataclass(frozen=True)
class Step:
  """How far a batch is."""

  stage: str
  done: int
  total: int
  preview: Any


@dataclasses.dataclass(frozen=True)
class Drawn:
  """A picture."""

  pixels: np.ndarray
  prompt: str
  seed: int
  settings: dict[str, Any]

  @property
  def metadata(self) -> dict[str, Any]:
    return {"prompt": self.prompt, "seed": self.seed, **self.settings}


@dataclasses.dataclass(frozen=True)
class Answer:
  """An answer."""

  text: str
  pictures: tuple[Drawn, ...] = ()
  finish: str = "stop"
  tokens: int = 3
  prompt_tokens: int = 5


def picture(text: str, seed: int, size: tuple[int, int] = (SIDE, SIDE), **settings: Any) -> Drawn:
  """What the stand-in draws of a text with a seed."""
  told = sum(text.encode()) % 251
  pixels = np.full((*size, 3), (told, seed % 251, 7), np.uint8)
  return Drawn(pixels, text, seed, {"model": "/home/someone/secret", **settings})


class NotFinite(ValueError, ArithmeticError):
  """As a model's."""


class StandIn:
  """A model with the methods that a server needs.

  Attributes:
    words: see `blip3o_jax.Model`. calls: (verb, seeds or conversations, options) of each call.
    pause: seconds of a step. go: an event without which no step is done.
    steps: that were done in all.
  """

  system, fingerprint = "blip3o", "blake3:" + "0123456789abcdef" * 4

  def __init__(self, verbs: tuple[str, ...] = ("generate", "chat", "reconstruct")):
    self.verbs, self.calls, self.pause = verbs, [], 0.0
    self.words: tuple[str, ...] = ()
    self.go, self.steps = threading.Event(), 0
    self.go.set()

  def options(self, verb: str) -> dict[str, Any]:
    drawing = {"steps": STEPS, "guidance": 3.0, "sampler": "euler", "pixel_steps": 2}
    if "edit" in self.verbs:
      drawing["size"] = (SIDE, SIDE)
    saying = {"length": 64, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "stop": ()}
    rebuilding = {"pixel_steps": 2}
    return {"chat": saying, "reconstruct": rebuilding}.get(verb, drawing)

  def tokens(self, text: str) -> int:
    return len(text.split())

  def unknown_words(self, *texts: str) -> list[str]:
    return [w for text in texts for w in text.split() if self.words and w not in self.words]

  def features(self, images: Any) -> np.ndarray:
    return np.zeros((len(images), 2, 2, 8), np.float32)

  def generate(
    self, prompts: Any, seed: Any, *, batch: int, progress: Any, every: float = 0.0, **options: Any
  ) -> Any:
    return self._draw("generate", prompts, seed, progress, options)

  def edit(
    self,
    images: Any,
    texts: Any,
    seed: Any,
    *,
    batch: int,
    progress: Any,
    every: float = 0.0,
    **options: Any,
  ) -> Any:
    assert all(image.mode == "RGB" for image in images)
    return self._draw("edit", texts, seed, progress, options)

  def reconstruct(
    self, images: Any, seed: Any, *, batch: int, progress: Any, every: float = 0.0, **options: Any
  ) -> Any:
    texts = [f"{image.size} {image.getpixel((0, 0))}" for image in images]
    return self._draw("reconstruct", texts, seed, progress, options)

  def _draw(self, verb: str, texts: Any, seeds: Any, progress: Any, options: Any) -> Any:
    self.calls.append((verb, list(seeds), options))
    if "refuse me" in texts:
      raise ValueError("prompt 'refuse me': a prompt of 99 tokens is longer than the limit of 9")
    if "where are you" in texts:
      raise ValueError("/home/someone/secret/model.safetensors: damaged")
    total = options.get("steps", STEPS)
    for done in range(1, total + 1):
      assert self.go.wait(20)
      time.sleep(self.pause)
      self.steps += 1
      shown = np.full((len(texts), SIDE, SIDE, 3), done, np.uint8)
      progress(Step("features", done, total, lambda shown=shown: shown))
      if "break" in texts:
        raise RuntimeError("/home/someone/secret fell over")
    progress(Step("pixels", 1, 1, None))
    size = options.get("size", (SIDE, SIDE))
    return [picture(t, s, size, steps=total) for t, s in zip(texts, seeds, strict=True)]

  def chat(self, messages: Any, *, seed: Any, hear: Any = None, **options: Any) -> list[Answer]:
    self.calls.append(("chat", messages, options))
    answers = [self._answer(talk) for talk in messages]
    assert self.go.wait(20)
    for which, answer in enumerate(answers if hear else ()):
      for word in answer.text.split():
        self.steps += 1
        time.sleep(self.pause)
        hear(which, word + " ")
    return answers

  def stream(
    self, messages: Any, *, seed: int, **options: Any
  ) -> Generator[str | Drawn, None, Answer]:
    self.calls.append(("stream", messages, options))
    answer = self._answer(messages)
    for word in answer.text.split():
      assert self.go.wait(20)
      self.steps += 1
      time.sleep(self.pause)
      yield word + " "
    yield from answer.pictures  # last, as the model has it
    return answer

  def _answer(self, talk: Any) -> Answer:
    content = talk[-1]["content"]
    if content == "not a number":
      raise NotFinite("the output of the language model is not finite: backbone/norm")
    if content == "draw":
      return Answer("here <image> it is", (picture("draw", 1),))
    shown = [] if isinstance(content, str) else [p for p in content if p["type"] == "image"]
    words = content if isinstance(content, str) else " ".join(p.get("text", "") for p in content)
    sizes = " ".join(f"{p['image'].width}x{p['image'].height}" for p in shown)
    return Answer(f"you said {words} {sizes}".strip())


class Running(serving.Server):
  """A server in a thread; `url` is where."""

  url: str

  @contextlib.contextmanager
  def running(self, patience: float = 20) -> Iterator["Running"]:
    """Until it is left; it must be ready within seconds."""
    listening = serving.listen("127.0.0.1", 0)
    self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    thread = threading.Thread(target=self.run, args=([listening],))
    thread.start()
    until = time.monotonic() + patience
    while not (self.started and self._service.ready):
      assert time.monotonic() < until
      assert thread.is_alive()
      time.sleep(0.01)
    try:
      yield self
    finally:
      self.should_exit = True
      thread.join(20)
      assert not thread.is_alive()


def server(model: Any, **settings: Any) -> Running:
  """A server of a model."""
  settings = {"name": "standin", "questions": ("what is it?",), **settings}
  return Running(application.create(model, Settings(**settings)))
