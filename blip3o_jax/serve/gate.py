"""What every request passes before the application sees it: who asks, how much, and how long."""

import asyncio
from collections.abc import Mapping
import hmac
import time
from typing import Any
from urllib.parse import SplitResult
from urllib.parse import urlsplit

from starlette.types import ASGIApp
from starlette.types import Message
from starlette.types import Receive
from starlette.types import Scope
from starlette.types import Send

from blip3o_jax.serve import faults
from blip3o_jax.serve.faults import Refused
from blip3o_jax.serve.service import Service

FREE = ("/healthz", "/readyz")  # without a key, as the page and its files
SAFE = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]


class Gate:
  """Refuses by host, origin, key and size, counts what is in hand, and measures.

  Args:
    paths: of the API; others count together.
    free: whose pages need no key.
  """

  def __init__(self, app: ASGIApp, service: Service, paths: frozenset[str], free: frozenset[str]):
    self._app, self._service, self._paths = app, service, paths
    self._free, self._hands = free | set(FREE), 0

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
      await self._app(scope, receive, send)
      return
    begun, status, works = time.monotonic(), 500, scope["method"] == "POST"
    path = scope["path"] if scope["path"] in self._paths else "other"

    async def sent(message: Message) -> None:
      nonlocal status
      if message["type"] == "http.response.start":
        status = message["status"]
        message["headers"] = [*message.get("headers", []), *SAFE]
      await send(message)

    self._hands += works
    try:
      headers = {name.decode("latin-1"): value for name, value in scope["headers"]}
      self._check(scope["path"], headers, works)
      await self._app(scope, self._bounded(receive), sent)
    except Refused as error:
      known = faults.response(
        error.status_code,
        str(error.detail),
        param=error.param,
        code=error.code,
        headers=error.headers,
      )
      await known(scope, receive, sent)
    finally:
      self._hands -= works
      self._service.metrics.answered(path, status, time.monotonic() - begun)

  def _check(self, path: str, headers: Mapping[str, bytes], works: bool) -> None:
    """Refuses by what the head of a request says."""
    settings = self._service.settings
    host = headers.get("host", b"").decode("latin-1")
    name = _split(f"//{host}").hostname if "@" not in host else None
    if settings.hosts and name not in settings.hosts:
      # A page elsewhere may make its own name mean this machine.
      raise Refused(403, "this host name is not served", code="host_refused")
    origin = headers.get("origin", b"").decode("latin-1")
    if origin and works and _split(origin).netloc != host:
      raise Refused(403, "requests of other pages are not served", code="origin_refused")
    if settings.key and path not in self._free:
      kind, _, key = headers.get("authorization", b"").partition(b" ")
      right = hmac.compare_digest(key.strip(), settings.key.encode())
      if kind.lower() != b"bearer" or not right:
        what = "this key is not the server's" if key else "a key is needed"
        raise Refused(401, f"{what}: Authorization: Bearer KEY", code="invalid_api_key")
    if not works:
      return
    if self._service.draining:
      raise Refused(503, "the server is shutting down", code="shutting_down", retry=5)
    if self._hands > settings.limits.requests:
      raise Refused(429, "too many requests are in hand", code="too_many_requests", retry=1)
    length = headers.get("content-length", b"0")
    if not length.isdigit() or int(length[:20]) > settings.limits.body:
      raise _too_large(settings.limits.body)

  def _bounded(self, receive: Receive) -> Receive:
    """`receive` of a body that is neither too long nor too slow."""
    limits, taken, whole = self._service.settings.limits, 0, False
    until = asyncio.get_running_loop().time() + limits.body_seconds

    async def bounded() -> Message:
      nonlocal taken, whole
      if whole:  # what comes now is only that the client leaves
        return await receive()
      try:
        async with asyncio.timeout_at(until):
          message: dict[str, Any] = dict(await receive())
      except TimeoutError:
        raise Refused(408, "the body did not come in time", code="timeout") from None
      if message["type"] == "http.request":
        taken += len(message.get("body", b""))
        whole = not message.get("more_body", False)
        if taken > limits.body:
          raise _too_large(limits.body)
      return message

    return bounded


def _split(address: str) -> SplitResult:
  """The parts of an address, none of what is no address."""
  try:
    return urlsplit(address)
  except ValueError:
    return urlsplit("")


def _too_large(most: int) -> Refused:
  return Refused(413, f"the body has more than {most} bytes", code="too_large")
