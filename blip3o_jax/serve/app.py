"""The application: its routes and their schema."""

from collections.abc import AsyncIterator
from collections.abc import Callable
import contextlib
import functools
import mimetypes
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi import Request
from starlette.responses import JSONResponse
from starlette.responses import PlainTextResponse
from starlette.responses import Response

import blip3o_jax
from blip3o_jax.serve import drawing
from blip3o_jax.serve import faults
from blip3o_jax.serve import service
from blip3o_jax.serve import talking
from blip3o_jax.serve import uploads
from blip3o_jax.serve.faults import ErrorAnswer
from blip3o_jax.serve.faults import Refused
from blip3o_jax.serve.gate import Gate
from blip3o_jax.serve.interface import Model
from blip3o_jax.serve.metrics import Metrics
from blip3o_jax.serve.schema import EditRequest
from blip3o_jax.serve.schema import GenerationRequest
from blip3o_jax.serve.schema import Health
from blip3o_jax.serve.schema import ImagesAnswer
from blip3o_jax.serve.schema import ModelEntry
from blip3o_jax.serve.schema import ModelList
from blip3o_jax.serve.service import Service
from blip3o_jax.serve.settings import Settings
from blip3o_jax.serve.talk_schema import ChatAnswer
from blip3o_jax.serve.talk_schema import ChatRequest
from blip3o_jax.serve.worker import Worker

PAGE = Path(__file__).parent / "page"
# Whatever a picture or an answer holds, the page runs no script but its own.
POLICY = (
  "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
  "frame-ancestors 'none'; form-action 'self'"
)
_EVENT = {
  "type": "object",
  "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
  "required": ["data"],
}
_EVENTS = {"content": {"text/event-stream": {"schema": _EVENT}}}
_WORK: dict[int | str, dict[str, Any]] = {
  status: {"model": ErrorAnswer, "description": what}
  for status, what in (
    (400, "What is asked for is wrong, or the model cannot"),
    (401, "No key, or a wrong one"),
    (403, "Of another page, or by another host name"),
    (404, "Another model"),
    (408, "The body did not come in time"),
    (413, "Too many bytes"),
    (415, "A body of another type"),
    (429, "The queue is full; see Retry-After"),
    (500, "A fault of the server"),
    (503, "The model is not ready"),
    (504, "Not done in time"),
  )
}
_READ: dict[int | str, dict[str, Any]] = {
  status: _WORK[status] for status in (401, 403, 404, 500, 503)
}


class Application(FastAPI):
  """FastAPI, which would say of bodies that are wrong what faults.py changes."""

  def openapi(self) -> dict[str, Any]:
    """The schema of the routes."""
    if self.openapi_schema is None:
      found = super().openapi()
      for path in found["paths"].values():
        for way in path.values():
          way["responses"].pop("422", None)
      for name in ("HTTPValidationError", "ValidationError"):
        found["components"]["schemas"].pop(name, None)
    return super().openapi()


def create(model: Model, settings: Settings, page: Path = PAGE) -> FastAPI:
  """The application that serves a model; its worker starts and ends with it.

  Args:
    page: the folder of the page, whose files are read now.
  """
  metrics = Metrics()
  own = Service(model, settings, metrics, Worker(model, settings, metrics))

  @contextlib.asynccontextmanager
  async def life(app: FastAPI) -> AsyncIterator[None]:
    own.worker.start()
    yield
    await service.aside(own.worker.stop)

  app = Application(
    title="blip3o",
    version=blip3o_jax.__version__,
    lifespan=life,
    docs_url=None,
    redoc_url=None,
    redirect_slashes=False,
  )
  app.state.service = own
  faults.install(app)
  _add_images(app)
  _add_chat(app)
  _add_about(app)
  shown = _add_page(app, page)
  paths = frozenset(app.openapi()["paths"])
  app.add_middleware(Gate, service=own, paths=paths, free=shown)
  return app


def _add_images(app: FastAPI) -> None:
  @app.post(
    "/v1/images/generations", response_model=ImagesAnswer, responses={**_WORK, 200: _EVENTS}
  )
  async def generate(request: Request, body: GenerationRequest) -> Response:
    """Draws pictures of a prompt."""
    service.of(request).check_verb("generate")
    return await drawing.respond(drawing.start(request, body, "generate"))

  @app.post(
    "/v1/images/edits",
    response_model=ImagesAnswer,
    responses={**_WORK, 200: _EVENTS},
    openapi_extra={"requestBody": {"required": True, "content": _form()}},
  )
  async def edit(request: Request) -> Response:
    """Changes pictures, each by itself; of a model that cannot, rebuilds them."""
    own = service.of(request)
    own.facts  # noqa: B018 raises before the body is read
    body, images = await uploads.read(request, own.settings.limits)
    if "edit" in own.model.verbs:
      return await drawing.respond(drawing.start(request, body, "edit", images))
    if body.prompt.strip().lower() != "reconstruct":
      raise Refused(
        400,
        f"prompt: a model of the system {own.model.system} cannot edit; with the prompt "
        "`reconstruct` it draws the picture again from what it sees",
        param="prompt",
        code="unsupported",
      )
    own.check_verb("reconstruct")
    return await drawing.respond(drawing.start(request, body, "reconstruct", images))


def _add_chat(app: FastAPI) -> None:
  @app.post("/v1/chat/completions", response_model=ChatAnswer, responses={**_WORK, 200: _EVENTS})
  async def complete(request: Request, body: ChatRequest) -> Response:
    """Answers a conversation."""
    service.of(request).facts  # noqa: B018 raises until the model is warm
    return await talking.respond(await talking.start(request, body))


def _add_about(app: FastAPI) -> None:
  @app.get("/v1/models", responses=_READ)
  async def models(request: Request) -> ModelList:
    """The model that is served."""
    return ModelList(data=[service.of(request).entry()])

  @app.get("/v1/models/{name:path}", responses=_READ)
  async def one(request: Request, name: str) -> ModelEntry:
    """The model by its name."""
    service.of(request).check_model(name)
    return service.of(request).entry()

  @app.get("/healthz")
  async def alive() -> Health:
    """Whether the process answers."""
    return Health(status="ok")

  @app.get("/readyz", responses={503: {"model": Health}})
  async def ready(request: Request) -> Response:
    """Whether requests are taken."""
    own = service.of(request)
    words = "ready" if own.ready else "draining" if own.draining else "warming up"
    return JSONResponse({"status": words}, 200 if own.ready else 503)

  @app.get("/metrics", response_class=PlainTextResponse, responses=_READ)
  async def measured(request: Request) -> str:
    """Counters, for Prometheus."""
    own = service.of(request)
    waiting, running = own.worker.counts()
    gauges = {"waiting": waiting, "running": running, "ready": int(own.ready)}
    return own.metrics.text(gauges)


def _add_page(app: FastAPI, folder: Path) -> frozenset[str]:
  """The page and its files by their names; no other name opens anything. Returns their paths."""
  headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
  out = set()
  for file in sorted(p for p in folder.rglob("*") if p.is_file()):
    name = file.relative_to(folder).as_posix()
    path = "/" if name == "index.html" else f"/{name}"
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    show = functools.partial(Response, file.read_bytes(), media_type=kind, headers=headers)
    app.add_api_route(path, _shower(show), methods=["GET"], include_in_schema=False)
    out.add(path)
  return frozenset(out)


def _shower(show: Callable[[], Response]) -> Callable[[], Any]:
  async def shown() -> Response:
    return show()

  return shown


def _form() -> dict[str, Any]:
  """The body of an edit, for the schema."""
  schema = EditRequest.model_json_schema(ref_template="#/components/schemas/{model}")
  file = {"type": "string", "format": "binary"}
  pictures = {"image": file, "image[]": {"type": "array", "items": file}}
  schema["properties"] = {**schema["properties"], **pictures}
  schema["required"] = [*schema["required"], "image"]
  return {"multipart/form-data": {"schema": schema}}
