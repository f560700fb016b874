"""A request for pictures becomes a job, and its events an answer."""

from collections.abc import AsyncIterator
from collections.abc import Sequence
import dataclasses
import re
import secrets
import time
from typing import Any

from fastapi import Request
from PIL.Image import Image as PilImage
from starlette.responses import JSONResponse
from starlette.responses import Response
from starlette.responses import StreamingResponse

from blip3o_jax.serve import pictures
from blip3o_jax.serve import service
from blip3o_jax.serve import sse
from blip3o_jax.serve.faults import Refused
from blip3o_jax.serve.following import Followed
from blip3o_jax.serve.jobs import Drawn
from blip3o_jax.serve.jobs import Event
from blip3o_jax.serve.jobs import Preview
from blip3o_jax.serve.jobs import Verb
from blip3o_jax.serve.schema import Drawing
from blip3o_jax.serve.schema import EditRequest
from blip3o_jax.serve.schema import Image
from blip3o_jax.serve.schema import ImagesAnswer
from blip3o_jax.serve.schema import ImagesUsage
from blip3o_jax.serve.schema import InputTokens
from blip3o_jax.serve.service import Service

MOST_SEED = 2**64 - 1
NAMES = {"steps": "num_inference_steps", "guidance": "guidance_scale"}
IDLE = ("quality", "moderation", "user", "input_fidelity")  # fields that change nothing


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a request asks for, checked.

  Attributes:
    kind: of its events, such as "image_generation". form: of the pictures. quality: of those that
      lose. asked: the request's word for quality. usage: of all its pictures.
  """

  service: Service
  kind: str
  form: pictures.Format
  quality: int | None
  asked: str
  stream: bool
  url: bool
  usage: ImagesUsage
  followed: Followed
  headers: dict[str, str]


def start(request: Request, body: Drawing, verb: Verb, images: Sequence[PilImage] = ()) -> Plan:
  """Checks what is asked for, and hands it to the worker.

  Args:
    images: that are changed or rebuilt, each by itself.

  Raises:
    Refused: what the model cannot do, by field; a full queue.
  """
  own = service.of(request)
  _check(own, body)
  each, count = body.n or 1, (body.n or 1) * max(1, len(images))
  if len(images) and count > own.settings.limits.images:
    most = own.settings.limits.images
    raise Refused(400, f"n: {count} pictures in all, at most {most}", param="n", code="too_many")
  seed = secrets.randbelow(2**32) if body.seed is None else body.seed
  if seed + count - 1 > MOST_SEED:
    raise Refused(400, f"seed: the last picture's is above {MOST_SEED}", param="seed")
  previews = (body.partial_images or 0) if body.stream else 0
  job, mailbox = own.job(
    verb,
    _options(own, body, verb),
    previews=previews,
    pixels=sum(image.width * image.height for image in images),
  )
  text = "" if verb == "reconstruct" else body.prompt
  for i in range(count):
    job.add(text=text, image=images[i // each] if images else None, seed=seed + i)
  idle = [name for name in IDLE if getattr(body, name, None) not in (None, "auto")]
  return Plan(
    own,
    "image_generation" if verb == "generate" else "image_edit",
    body.output_format or "png",
    body.output_compression,
    body.quality if body.quality in ("low", "medium", "high") else "auto",
    bool(body.stream),
    body.response_format == "url",
    _usage(own, text, len(images), count),
    own.follow(job, mailbox, request),
    own.noted([*body.unknown, *idle], [text]),
  )


async def respond(plan: Plan) -> Response:
  """The answer, or the stream of events, whose headers wait for the first."""
  events = plan.followed.events()
  if not plan.stream:
    answer = await _answer(plan, [event async for event in events])
    return JSONResponse(answer.model_dump(exclude_none=True), headers=plan.headers)
  first = await anext(events)
  headers = {**sse.HEADERS, **plan.headers}
  return StreamingResponse(_stream(plan, first, events), media_type=sse.MEDIA, headers=headers)


async def _answer(plan: Plan, events: Sequence[Event]) -> ImagesAnswer:
  drawn = sorted((e for e in events if isinstance(e, Drawn)), key=lambda e: e.place)
  data = []
  for event in drawn:
    text = await _encoded(plan, event)
    shown = {"url": pictures.data_url(text, plan.form)} if plan.url else {"b64_json": text}
    data.append(Image(seed=event.picture.seed, **shown))
  return ImagesAnswer(
    created=int(time.time()),
    data=data,
    output_format=plan.form,
    size=pictures.size(drawn[0].picture.pixels.shape),
    usage=plan.usage,
  )


async def _stream(plan: Plan, first: Event, rest: AsyncIterator[Event]) -> AsyncIterator[bytes]:
  try:
    yield await _event(plan, first)
    async for event in rest:
      yield await _event(plan, event)
  except Refused as error:
    yield sse.event(error.body(), "error")
  finally:
    await rest.aclose()  # type: ignore[attr-defined]


async def _event(plan: Plan, event: Event) -> bytes:
  """One event of the stream."""
  assert isinstance(event, Preview | Drawn)
  done = isinstance(event, Drawn)
  pixels = event.picture.pixels if isinstance(event, Drawn) else event.pixels
  items = plan.followed.job.items
  name = f"{plan.kind}.{'completed' if done else 'partial_image'}"
  data: dict[str, Any] = {
    "type": name,
    "b64_json": await _encoded(plan, event),
    "created_at": int(time.time()),
    "size": pictures.size(pixels.shape),
    "quality": plan.asked,
    "background": "opaque",
    "output_format": plan.form,
    "index": event.place,
    "seed": items[event.place].seed,
  }
  if isinstance(event, Preview):
    data["partial_image_index"] = event.index
  else:
    data["usage"] = _share(plan.usage, len(items)).model_dump()
  return sse.event(data, name)


async def _encoded(plan: Plan, event: Preview | Drawn) -> str:
  if isinstance(event, Preview):
    return await service.aside(pictures.encode, event.pixels, plan.form, plan.quality)
  known = pictures.known(event.picture, plan.service.settings.name)
  pixels = event.picture.pixels
  return await service.aside(pictures.encode, pixels, plan.form, plan.quality, known)


def _check(own: Service, body: Drawing) -> None:
  """Refuses what no model here can."""
  own.check_model(body.model)
  own.check_text(body.prompt, "prompt")
  if body.background == "transparent":
    raise _unable("background", "pictures are opaque")
  if body.negative_prompt:
    raise _unable("negative_prompt", "this model takes none")
  if body.true_cfg_scale is not None:
    raise _unable("true_cfg_scale", "this model takes guidance_scale")
  if body.output_compression not in (None, 100) and body.output_format in (None, "png"):
    raise _unable("output_compression", "a PNG loses nothing; for jpeg and webp")
  if body.partial_images and not body.stream:
    raise _unable("partial_images", "only with stream")


def _options(own: Service, body: Drawing, verb: Verb) -> dict[str, Any]:
  """The model's options of a request."""
  given = {
    "steps": body.num_inference_steps,
    "guidance": body.guidance_scale,
    "size": _size(own, body, verb),
    "pixel_steps": body.pixel_steps,
    "sampler": body.sampler,
    "language": body.language,
    "max_pixels": body.max_pixels,
  }
  if isinstance(body, EditRequest):
    given["decoder"] = body.decoder
  return own.options(verb, given, NAMES)


def _size(own: Service, body: Drawing, verb: Verb) -> tuple[int, int] | None:
  """Height and width that are asked for; None for the model's own.

  Raises:
    Refused: others than those that the model draws.
  """
  found = re.fullmatch(r"(\d+)x(\d+)", body.size or "auto")
  side = own.facts.side
  if found is None or (wanted := (int(found[2]), int(found[1]))) == side:
    return None
  if "size" not in own.model.options(verb):
    draws = "of a size of its own" if side is None else f"{side[1]}x{side[0]}"
    raise _unable("size", f"this model draws {draws}; expected that or auto")
  if wanted[0] * wanted[1] > own.settings.limits.drawn_pixels:
    raise _unable("size", f"at most {own.settings.limits.drawn_pixels} pixels in all")
  return wanted


def _unable(field: str, why: str) -> Refused:
  return Refused(400, f"{field}: {why}", param=field, code="unsupported")


def _usage(own: Service, text: str, images: int, count: int) -> ImagesUsage:
  """Of a request: the prompt once, each picture as many as the model has vectors for it."""
  one = own.facts.tokens
  details = InputTokens(
    text_tokens=own.model.tokens(text) if text else 0, image_tokens=images * one
  )
  given = details.text_tokens + details.image_tokens
  return ImagesUsage(
    input_tokens=given,
    input_tokens_details=details,
    output_tokens=count * one,
    total_tokens=given + count * one,
  )


def _share(usage: ImagesUsage, count: int) -> ImagesUsage:
  """Of one of `count` pictures, which are streamed one by one."""
  out = usage.output_tokens // count
  return usage.model_copy(update={"output_tokens": out, "total_tokens": usage.input_tokens + out})
