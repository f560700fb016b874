"""A request for an answer becomes a job, and its events a completion."""

from collections.abc import AsyncIterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import secrets
import time
from typing import Any

from fastapi import Request
from starlette.responses import JSONResponse
from starlette.responses import Response
from starlette.responses import StreamingResponse

from blip3o_jax.data.text import chat
from blip3o_jax.serve import pictures
from blip3o_jax.serve import remote
from blip3o_jax.serve import service
from blip3o_jax.serve import settings
from blip3o_jax.serve import sse
from blip3o_jax.serve.faults import Refused
from blip3o_jax.serve.following import Followed
from blip3o_jax.serve.interface import Answer
from blip3o_jax.serve.interface import Conversation
from blip3o_jax.serve.interface import Picture
from blip3o_jax.serve.jobs import Answered
from blip3o_jax.serve.jobs import Event
from blip3o_jax.serve.jobs import Said
from blip3o_jax.serve.service import Service
from blip3o_jax.serve.talk_schema import ChatRequest
from blip3o_jax.serve.talk_schema import ImagePart
from blip3o_jax.serve.talk_schema import Message
from blip3o_jax.serve.talk_schema import TextPart

IDLE = ("user",)
_ROLES = {"developer": "system"}
# Fields and what they may say without asking for anything.
_NOTHING: dict[str, tuple[Any, ...]] = {
  "frequency_penalty": (0,),
  "presence_penalty": (0,),
  "logit_bias": ({},),
  "logprobs": (False,),
  "tools": ([],),
  "functions": ([],),
  "response_format": ({"type": "text"},),
}


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a request asks for, checked; `counted`: whether a stream ends with the usage."""

  service: Service
  stream: bool
  counted: bool
  followed: Followed
  headers: dict[str, str]
  name: str = dataclasses.field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
  created: int = dataclasses.field(default_factory=lambda: int(time.time()))


async def start(request: Request, body: ChatRequest) -> Plan:
  """Checks what is asked for, and hands it to the worker.

  Raises:
    Refused: what the model cannot do, by field; a picture that is refused; a full queue.
  """
  own = service.of(request)
  own.check_verb("chat")
  own.check_model(body.model)
  for field, nothing in _NOTHING.items():
    value = getattr(body, field)
    if value is not None and value not in nothing:
      raise Refused(400, f"{field}: this model cannot", param=field, code="unsupported")
  if body.stream_options is not None and not body.stream:
    raise Refused(400, "stream_options: only with stream", param="stream_options")
  options = _options(own, body)
  talk, pixels = await _conversation(own, body.messages)
  job, mailbox = own.job("stream" if body.stream else "chat", options, pixels=pixels)
  job.add(messages=talk, seed=secrets.randbelow(2**32) if body.seed is None else body.seed)
  idle = [*body.unknown, *(name for name in IDLE if getattr(body, name) is not None)]
  return Plan(
    own,
    bool(body.stream),
    bool(body.stream_options and body.stream_options.include_usage),
    own.follow(job, mailbox, request),
    own.noted(idle, _texts([m for m in body.messages if m.role == "user"])),
  )


def _options(own: Service, body: ChatRequest) -> dict[str, Any]:
  """The model's options of a request."""
  most, lengths = own.settings.limits.tokens, (body.max_tokens, body.max_completion_tokens)
  asked = {length for length in lengths if length is not None}
  if len(asked) > 1:
    field = "max_completion_tokens"
    raise Refused(400, f"{field}: another number than max_tokens", param=field)
  length = min(settings.LENGTH, most) if not asked else asked.pop()
  if length > most:
    field = "max_tokens" if body.max_tokens is not None else "max_completion_tokens"
    raise Refused(400, f"{field}: at most {most}", param=field)
  stop = [body.stop] if isinstance(body.stop, str) else list(body.stop or ())
  if not all(stop):
    raise Refused(400, "stop: an empty text", param="stop")
  for text in stop:
    own.check_text(text, "stop", empty=True)
  options = {
    "length": length,
    "temperature": body.temperature,
    "top_p": body.top_p,
    "top_k": max(0, body.top_k) if body.top_k is not None else None,
    "repetition_penalty": body.repetition_penalty,
    "stop": stop or None,
    "max_pixels": body.max_pixels,
  }
  return own.options("chat", options, {"length": "max_tokens"})


async def _conversation(own: Service, messages: Sequence[Message]) -> tuple[Conversation, int]:
  """The conversation with its pictures decoded, and how many pixels they have."""
  own.check_text("".join(_texts(messages)), "messages", empty=True)
  cut = [part for m in messages if not isinstance(m.content, str) for part in m.content]
  shown = [part for part in cut if isinstance(part, ImagePart)]
  if len(shown) > own.settings.limits.images:
    raise Refused(
      400,
      f"messages: {len(shown)} pictures, at most {own.settings.limits.images}",
      param="messages",
      code="too_many",
    )
  pixels = 0
  talk: Conversation = []
  for i, message in enumerate(messages):
    role = _ROLES.get(message.role, message.role)
    if isinstance(message.content, str):
      talk.append({"role": role, "content": message.content})
      continue
    parts: list[dict[str, Any]] = []
    for j, part in enumerate(message.content):
      if isinstance(part, ImagePart):
        image = await _picture(own, part.image_url.url, f"messages.{i}.content.{j}.image_url.url")
        pixels += image.width * image.height
        parts.append({"type": "image", "image": image})
      else:
        parts.append({"type": "text", "text": part.text})
    talk.append({"role": role, "content": parts})
  return talk, pixels


def _texts(messages: Sequence[Message]) -> list[str]:
  """All that messages say."""
  out: list[str] = []
  for message in messages:
    if isinstance(message.content, str):
      out.append(message.content)
    else:
      out += [part.text for part in message.content if isinstance(part, TextPart)]
  return out


async def _picture(own: Service, url: str, param: str) -> Any:
  """A picture of a data URL, or fetched where that is allowed; nothing else is ever opened."""
  limits = own.settings.limits
  if url[:5].lower() == "data:":
    data = pictures.of_data_url(url, param, limits)
  elif not own.settings.remote:
    raise Refused(
      400,
      f"{param}: expected a data URL; this server fetches no pictures",
      param=param,
      code="remote_images_off",
    )
  else:
    data = await service.aside(remote.fetch, url, param, limits.image_bytes)
  return await service.aside(pictures.decode, data, param, limits)


async def respond(plan: Plan) -> Response:
  """The answer, or the stream of events, whose headers wait for the first."""
  events = plan.followed.events()
  if plan.stream:
    first = await anext(events)
    headers = {**sse.HEADERS, **plan.headers}
    return StreamingResponse(_stream(plan, first, events), media_type=sse.MEDIA, headers=headers)
  (event,) = [event async for event in events]
  assert isinstance(event, Answered)
  answer = event.answer
  choice: dict[str, Any] = {
    "index": 0,
    "message": {"role": "assistant", "content": await _content(plan, answer), "refusal": None},
    "finish_reason": answer.finish,
    "logprobs": None,
  }
  return JSONResponse(
    {**_head(plan, "chat.completion"), "choices": [choice], "usage": _usage(answer)},
    headers=plan.headers,
  )


async def _content(plan: Plan, answer: Answer) -> str | list[dict[str, Any]]:
  """A text, or parts where there are pictures."""
  if not answer.pictures:
    return answer.text
  parts: list[dict[str, Any]] = []
  for i, text in enumerate(answer.text.split(chat.MARK)):
    parts += [{"type": "text", "text": text}] if text.strip() else []
    if i < len(answer.pictures):
      parts.append(await _part(plan, answer.pictures[i]))
  return parts


async def _part(plan: Plan, picture: Picture) -> dict[str, Any]:
  known = pictures.known(picture, plan.service.settings.name)
  text = await service.aside(pictures.encode, picture.pixels, "png", None, known)
  return {"type": "image_url", "image_url": {"url": pictures.data_url(text, "png")}}


async def _stream(plan: Plan, first: Event, rest: AsyncIterator[Event]) -> AsyncIterator[bytes]:
  pieces = _Pieces()
  event: Event | None = first
  try:
    yield _chunk(plan, {"role": "assistant", "content": ""})
    while event is not None:
      for part in pieces.add(event):
        yield await _delta(plan, part)
      if isinstance(event, Answered):
        yield _end(plan, event.answer)
      event = await anext(rest, None)
    yield sse.DONE
  except Refused as error:
    yield sse.event(error.body())
  finally:
    await rest.aclose()  # type: ignore[attr-defined]


class _Pieces:
  """What a client is told of an answer: its pictures come last, and stand where the marks are."""

  def __init__(self) -> None:
    self._held = ""  # from a mark on, or what may become one

  def add(self, event: Event) -> list[str | Picture]:
    """What may be told now."""
    if isinstance(event, Said) and isinstance(event.piece, str):
      self._held += event.piece
      return self._text()
    if isinstance(event, Said):
      self._held = self._held.removeprefix(chat.MARK)
      return [event.piece, *self._text()]
    left, self._held = self._held, ""  # of a mark that the model said in words
    return [left] if left else []

  def _text(self) -> list[str | Picture]:
    """What is held, up to the next mark."""
    size = len(chat.MARK)
    ends = [n for n in range(1, size) if self._held.endswith(chat.MARK[:n])]
    place = self._held.find(chat.MARK)
    place = len(self._held) - max(ends, default=0) if place < 0 else place
    text, self._held = self._held[:place], self._held[place:]
    return [text] if text else []


async def _delta(plan: Plan, part: str | Picture) -> bytes:
  if isinstance(part, str):
    return _chunk(plan, {"content": part})
  return _chunk(plan, {"content": [await _part(plan, part)]})


def _end(plan: Plan, answer: Answer) -> bytes:
  """The reason why an answer ended, and what it took."""
  out = _chunk(plan, {}, answer.finish)
  if plan.counted:
    head = _head(plan, "chat.completion.chunk")
    out += sse.event({**head, "choices": [], "usage": _usage(answer)})
  return out


def _chunk(plan: Plan, delta: Mapping[str, Any], finish: str | None = None) -> bytes:
  choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
  return sse.event({**_head(plan, "chat.completion.chunk"), "choices": [choice]})


def _head(plan: Plan, kind: str) -> dict[str, Any]:
  own = plan.service
  return {
    "id": plan.name,
    "object": kind,
    "created": plan.created,
    "model": own.settings.name,
    "system_fingerprint": own.facts.fingerprint,
  }


def _usage(answer: Answer) -> dict[str, int]:
  return {
    "prompt_tokens": answer.prompt_tokens,
    "completion_tokens": answer.tokens,
    "total_tokens": answer.prompt_tokens + answer.tokens,
  }
