"""What the routes share: the model by its facts, the worker, and what a request may be."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import time
from typing import Any
from typing import TypeVar

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from blip3o_jax.serve import following
from blip3o_jax.serve.faults import Refused
from blip3o_jax.serve.interface import Model
from blip3o_jax.serve.jobs import Job
from blip3o_jax.serve.jobs import Verb
from blip3o_jax.serve.metrics import Metrics
from blip3o_jax.serve.schema import ModelEntry
from blip3o_jax.serve.schema import ServedModel
from blip3o_jax.serve.settings import Settings
from blip3o_jax.serve.warming import Facts
from blip3o_jax.serve.worker import Worker

Out = TypeVar("Out")
IGNORED = "X-Ignored-Fields"
UNKNOWN = "X-Unknown-Words"
NAMED = 20  # of them, at most


@dataclasses.dataclass
class Service:
  """A model that is served.

  Attributes:
    born: when, in seconds of the clock. draining: whether the server has been told to end.
  """

  model: Model
  settings: Settings
  metrics: Metrics
  worker: Worker
  born: int = dataclasses.field(default_factory=lambda: int(time.time()))
  draining: bool = False

  @property
  def facts(self) -> Facts:
    """About the model's pictures; raises Refused 503 until it is warm."""
    if self.worker.facts is None:
      raise Refused(503, "the model is warming up", code="warming_up", retry=5)
    return self.worker.facts

  @property
  def ready(self) -> bool:
    """Whether requests are taken."""
    return self.worker.facts is not None and not self.draining

  def check_model(self, name: str | None) -> None:
    """Raises Refused for the name of another model."""
    if name is not None and name != self.settings.name:
      raise Refused(
        404,
        f"model: {name!r} is not served here, {self.settings.name!r} is",
        param="model",
        code="model_not_found",
      )

  def check_verb(self, verb: Verb) -> None:
    """Raises Refused for what the model cannot do."""
    if verb not in self.model.verbs:
      able = ", ".join(self.model.verbs)
      raise Refused(400, f"a model of the system {self.model.system} cannot {verb}; it can {able}")

  def check_text(self, text: str, param: str, *, empty: bool = False) -> None:
    """Raises Refused for a text that is too long or, unless it may be, empty."""
    most = self.settings.limits.prompt
    if len(text) > most:
      raise Refused(
        400, f"{param}: {len(text)} characters, at most {most}", param=param, code="too_long"
      )
    if not (empty or text.strip()):
      raise Refused(400, f"{param}: empty, say what is wanted", param=param)
    if "\x00" in text:
      raise Refused(400, f"{param}: a text with a character NUL", param=param)

  def options(
    self, verb: Verb, given: Mapping[str, Any], fields: Mapping[str, str]
  ) -> dict[str, Any]:
    """Options of a verb that a request gives.

    Args:
      given: by the names of the model. fields: the request's name of those that have another.

    Raises:
      Refused: one that the model has not, by its name in the request.
    """
    takes = self.model.options(verb)
    found = {name: value for name, value in given.items() if value is not None}
    for name in found:
      if name not in takes:
        field = fields.get(name, name)
        raise Refused(
          400, f"{field}: this model has no such option", param=field, code="unsupported"
        )
    return found

  def job(
    self, verb: Verb, options: Mapping[str, Any], **more: Any
  ) -> tuple[Job, following.Mailbox]:
    """A job without items, and where its events will be."""
    mailbox = following.Mailbox()
    return Job(verb, options, mailbox.post, **more), mailbox

  def follow(self, job: Job, mailbox: following.Mailbox, request: Request) -> following.Followed:
    """Hands a job to the worker; see `following.follow`."""
    return following.follow(self.worker, job, mailbox, request, self.settings.timeout)

  def noted(self, fields: Sequence[str], texts: Sequence[str]) -> dict[str, str]:
    """Headers that name fields without effect, and words of texts that the model does not know."""
    named = {IGNORED: fields, UNKNOWN: self.model.unknown_words(*texts)}
    return {header: ", ".join(_plain(names)) for header, names in named.items() if names}

  def entry(self) -> ModelEntry:
    """The model as /v1/models lists it."""
    model, limits, facts = self.model, self.settings.limits, self.facts
    options = {verb: dict(model.options(verb)) for verb in model.verbs}
    draws = options.get("generate", {})
    side = facts.side
    return ModelEntry(
      id=self.settings.name,
      created=self.born,
      blip3o=ServedModel(
        system=model.system,
        verbs=list(model.verbs),
        options=options,
        side=None if side is None else list(side),
        size=None if side is None else f"{side[1]}x{side[0]}",
        steps=draws.get("steps"),
        guidance=draws.get("guidance"),
        words=list(model.words),
        picture_tokens=facts.tokens,
        prompts=list(self.settings.prompts),
        questions=list(self.settings.questions),
        max_images=limits.images,
        max_image_bytes=limits.image_bytes,
        max_image_pixels=limits.image_pixels,
        max_prompt=limits.prompt,
        max_tokens=limits.tokens,
      ),
    )


def of(request: Request) -> Service:
  """The service of the application that was asked."""
  found: Service = request.app.state.service
  return found


def _plain(names: Sequence[str]) -> list[str]:
  """The first of some names, as a header may hold them."""
  words = [name.encode("ascii", "replace").decode()[:50] for name in names[:NAMED]]
  return ["".join(c if c.isalnum() or c in "_-.[]" else "?" for c in word) or "?" for word in words]


async def aside(call: Callable[..., Out], *args: Any) -> Out:
  """Runs what takes long beside the loop."""
  return await run_in_threadpool(call, *args)
