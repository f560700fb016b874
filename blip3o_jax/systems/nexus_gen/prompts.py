"""What is said to Nexus-Gen: the strings of the release around captions, pictures and questions.

Pictures are `chat.MARK` in these texts. Source: Nexus-Gen spec 3.
"""

import dataclasses
import hashlib
from typing import Literal

from blip3o_jax.data import images
from blip3o_jax.data.text import chat

SYSTEM = "You are a helpful assistant."
QUESTION = "Please give a brief description of the image."  # where none is asked
SPECIAL = chat.QWEN

Language = Literal["en", "zh"]
Order = Literal["before", "after"]
GENERATE: dict[Language, str] = {
  "en": "Generate an image according to the following description: {}",
  "zh": "根据以下描述生成一张图像：{}",
}
GENERATED: dict[Language, str] = {
  "en": f"Here is an image based on the description: {chat.MARK}",
  "zh": f"这是根据您的描述生成的图像：{chat.MARK}",
}
EDITED: dict[Language, str] = {
  "en": f"Here is the image: {chat.MARK}",
  "zh": f"以下为编辑后的图像：{chat.MARK}",
}


@dataclasses.dataclass(frozen=True)
class Form:
  """How prompts and the pictures in them are made.

  Attributes:
    language: of the templates around captions and instructions.
    max_pixels: of a picture that the language model is shown (Nexus-Gen spec 4).
    resample: filter of an editing reference, "bicubic" as it was trained, "bilinear" as inference.
    pictures: where those stand that an instruction without marks is about, before it as the release
      has them, or after it, where all that is seen of them can know what is asked.
  """

  language: Language = "en"
  max_pixels: int = 262_640
  resample: images.Filter = "bicubic"
  pictures: Order = "before"


def generating(caption: str, language: Language = "en") -> list[str]:
  """What a user says who wants a picture of a caption; no picture stands in it."""
  return [GENERATE[language].format(caption)]


def editing(instruction: str, pictures: int = 1, order: Order = "before") -> list[str]:
  """What a user says who wants pictures changed, cut where they stand, all before it or after."""
  if order == "after":
    return [f"{instruction} ", *[""] * pictures]
  return [*[""] * pictures, f" {instruction}"]


def asking(question: str, pictures: int = 0) -> list[str]:
  """What a user says who asks about pictures, which stand before it, or about nothing."""
  return [*[""] * pictures, f"\n{question}"] if pictures else [question]


def drawn(pictures: int, language: Language = "en") -> list[str]:
  """What the assistant says around the picture that it draws, after so many that it was shown."""
  return (EDITED if pictures else GENERATED)[language].split(chat.MARK)


def counts(tokenizer: chat.Tokenizer, task: str, form: Form, places: int) -> str:
  """Names the lengths of a task's rows: equal where those of every record are.

  Args:
    places: of a picture at most.
  """
  told = (GENERATE, GENERATED, EDITED, SYSTEM, tokenizer.fingerprint)
  digest = hashlib.blake2b(repr(told).encode(), digest_size=8).hexdigest()
  said = f"{form.language}, pictures {form.pictures}"
  return f"nexus_gen {task}, {said}, {places} places a picture, {digest}"
