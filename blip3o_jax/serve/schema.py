"""Requests and answers of the images API: OpenAI's fields, and vLLM-omni's names for ours."""

from collections.abc import Mapping
from typing import Annotated
from typing import Any
from typing import Literal

from pydantic import BaseModel
from pydantic import ConfigDict
from pydantic import Field
from pydantic import model_validator

Count = Annotated[int, Field(ge=1, le=10)]
Steps = Annotated[int, Field(ge=1, le=1000)]
Scale = Annotated[float, Field(gt=0, le=100)]
Seed = Annotated[int, Field(ge=0, le=2**64 - 1)]
Size = Annotated[str, Field(pattern=r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$")]
Word = Annotated[str, Field(max_length=200)]


class Open(BaseModel):
  """A request, whose unknown fields are ignored; those of `extra_body` count as its own.

  Values of another type are refused, not converted.
  """

  model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

  extra_body: dict[str, Any] | None = None

  @model_validator(mode="before")
  @classmethod
  def _joined(cls, values: Any) -> Any:
    more = values.get("extra_body") if isinstance(values, Mapping) else None
    if not isinstance(more, dict):
      return values
    own = {name: value for name, value in values.items() if name != "extra_body"}
    for name in more:
      if name in own and own[name] != more[name]:
        raise ValueError("a field has one value in extra_body and another beside it")
    return {**own, **{name: value for name, value in more.items() if name != "extra_body"}}

  @property
  def unknown(self) -> list[str]:
    """Fields that nobody knows."""
    return list(self.model_extra or {})


class Drawing(Open):
  """What pictures are asked for."""

  prompt: Annotated[str, Field(min_length=1)]
  model: Word | None = None
  n: Count | None = None
  size: Size | None = None
  quality: Word | None = None
  background: Literal["auto", "opaque", "transparent"] | None = None
  moderation: Literal["auto", "low"] | None = None
  output_format: Literal["png", "jpeg", "webp"] | None = None
  output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
  response_format: Literal["b64_json", "url"] | None = None
  stream: bool | None = None
  partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
  user: Word | None = None
  seed: Seed | None = Field(None, description="of the first picture; the next has seed + 1")
  num_inference_steps: Steps | None = None
  guidance_scale: Scale | None = None
  negative_prompt: str | None = Field(None, description="no model here can; only empty")
  true_cfg_scale: Scale | None = Field(None, description="no model here can")
  pixel_steps: Steps | None = Field(None, description="of the pixel decoder, if it is another one")
  sampler: Literal["euler", "heun"] | None = None
  language: Word | None = None
  max_pixels: Annotated[int, Field(ge=1, le=2**31)] | None = None


class GenerationRequest(Drawing):
  """POST /v1/images/generations."""


class EditRequest(Drawing):
  """POST /v1/images/edits, but for the pictures."""

  input_fidelity: Literal["low", "high"] | None = None
  decoder: Word | None = None


class InputTokens(BaseModel):
  text_tokens: int
  image_tokens: int


class ImagesUsage(BaseModel):
  input_tokens: int
  input_tokens_details: InputTokens
  output_tokens: int
  total_tokens: int


class Image(BaseModel):
  """A picture: base64, or a data URL where `url` was asked for."""

  model_config = ConfigDict(extra="forbid")

  seed: Seed
  b64_json: str | None = None
  url: str | None = None


class ImagesAnswer(BaseModel):
  created: int
  data: list[Image]
  background: Literal["opaque"] = "opaque"
  output_format: Literal["png", "jpeg", "webp"]
  size: str
  usage: ImagesUsage


class ServedModel(BaseModel):
  """What the model can do, for the page and for others that ask."""

  system: str
  verbs: list[str]
  options: dict[str, dict[str, Any]] = Field(description="of each verb, with the defaults")
  side: list[int] | None = Field(description="height and width of its pictures")
  size: str | None = Field(description="the same, as requests write it")
  steps: int | None = Field(description="num_inference_steps, unless given")
  guidance: float | None = Field(description="guidance_scale, unless given")
  words: list[str] = Field(description="all that it knows, in small letters; empty for any")
  picture_tokens: int
  prompts: list[str]
  questions: list[str]
  max_images: int
  max_image_bytes: int
  max_image_pixels: int
  max_prompt: int
  max_tokens: int


class ModelEntry(BaseModel):
  id: str
  object: Literal["model"] = "model"
  created: int
  owned_by: str = "blip3o-jax"
  blip3o: ServedModel


class ModelList(BaseModel):
  object: Literal["list"] = "list"
  data: list[ModelEntry]


class Health(BaseModel):
  status: str
