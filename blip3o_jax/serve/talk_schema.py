"""Requests and answers of the chat API: OpenAI's fields."""

from typing import Annotated
from typing import Any
from typing import Literal

from pydantic import BaseModel
from pydantic import ConfigDict
from pydantic import Field

from blip3o_jax.serve.schema import Open
from blip3o_jax.serve.schema import Seed
from blip3o_jax.serve.schema import Word

Tokens = Annotated[int, Field(ge=1, le=2**31)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class Part(BaseModel):
  """Unknown fields of parts are ignored."""

  model_config = ConfigDict(extra="ignore", strict=True)


class TextPart(Part):
  type: Literal["text"]
  text: str


class ImageUrl(Part):
  """`url` is a data URL; others only where the server was told to fetch them."""

  url: str
  detail: Literal["auto", "low", "high"] | None = None


class ImagePart(Part):
  type: Literal["image_url"]
  image_url: ImageUrl


AnyPart = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(Part):
  role: Literal["system", "developer", "user", "assistant"]
  content: str | Annotated[list[AnyPart], Field(min_length=1)]


class StreamOptions(Part):
  include_usage: bool | None = None


class ChatRequest(Open):
  """POST /v1/chat/completions."""

  messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
  model: Word | None = None
  temperature: Annotated[float, Field(ge=0, le=2)] | None = None
  top_p: Annotated[float, Field(gt=0, le=1)] | None = None
  top_k: Annotated[int, Field(ge=-1, le=2**31)] | None = Field(None, description="0, -1: all")
  repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
  max_tokens: Tokens | None = None
  max_completion_tokens: Tokens | None = None
  stop: str | Annotated[list[str], Field(max_length=16)] | None = None
  seed: Seed | None = None
  n: Annotated[int, Field(ge=1, le=1)] | None = None
  stream: bool | None = None
  stream_options: StreamOptions | None = None
  user: Word | None = None
  max_pixels: Annotated[int, Field(ge=1, le=2**31)] | None = None
  # Known fields that no model here can honour; they are refused unless they ask for nothing.
  frequency_penalty: Penalty | None = None
  presence_penalty: Penalty | None = None
  logit_bias: dict[str, Any] | None = None
  logprobs: bool | None = None
  tools: list[Any] | None = None
  functions: list[Any] | None = None
  response_format: dict[str, Any] | None = None


class Usage(BaseModel):
  prompt_tokens: int
  completion_tokens: int
  total_tokens: int


class AnswerMessage(BaseModel):
  """`content` is a text, or parts where the model draws: {type: text} and {type: image_url}."""

  role: Literal["assistant"] = "assistant"
  content: str | list[TextPart | ImagePart]
  refusal: None = None


class Choice(BaseModel):
  index: int = 0
  message: AnswerMessage
  finish_reason: Literal["stop", "length"]
  logprobs: None = None


class ChatAnswer(BaseModel):
  id: str
  object: Literal["chat.completion"] = "chat.completion"
  created: int
  model: str
  choices: list[Choice]
  usage: Usage
  system_fingerprint: str
