"""What a client is told when it gets no answer: the error object of the OpenAI API.

No message holds a traceback or a path of this machine; what it would say of them goes to the log.
"""

from collections.abc import Mapping
import logging
import re
from typing import Any

from fastapi import FastAPI
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.responses import Response

LOG = logging.getLogger("blip3o.serve")
INTERNAL = "the server failed at this; its log says why"
_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_PATH = re.compile(r"(?:^|[\s'\"(=])(?:~|[A-Za-z]:)?[/\\]\S")


class Error(BaseModel):
  """`param` is the field that is wrong, `code` a word for programs."""

  message: str
  type: str
  param: str | None
  code: str | None


class ErrorAnswer(BaseModel):
  error: Error


class Refused(HTTPException):
  """An answer without a result.

  Attributes:
    param, code: see `Error`.
  """

  def __init__(
    self,
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    retry: int | None = None,
  ):
    super().__init__(status, message, None if retry is None else {"Retry-After": str(retry)})
    self.param, self.code = param, code

  def body(self) -> dict[str, Any]:
    """The error object."""
    return body(self.status_code, str(self.detail), self.param, self.code)


class ClientLeft(Exception):
  """Nobody waits for the answer any more."""


def body(
  status: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
  """The error object of the OpenAI API."""
  kind = _KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
  return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def of_model(error: Exception, *, begun: bool) -> Refused:
  """What a client is told of an exception of the model, which goes to the log.

  Args:
    begun: whether the model was at work. A ValueError before that is about the request, unless it
      is about a result that is no number.
  """
  if isinstance(error, ValueError) and not isinstance(error, ArithmeticError) and not begun:
    message = str(error)
    if not _PATH.search(message):
      return Refused(400, message, code="refused_by_model")
    LOG.warning("a request was refused: %s", message)
    return Refused(400, "the model refuses this request; the server's log says why")
  LOG.error("a request failed", exc_info=error)
  return Refused(500, INTERNAL)


def install(app: FastAPI) -> None:
  """Every error of the application becomes an error object."""
  app.add_exception_handler(HTTPException, _refused)
  app.add_exception_handler(RequestValidationError, _invalid)
  app.add_exception_handler(ClientLeft, _nobody)
  app.add_exception_handler(Exception, _failed)


def response(
  status: int,
  message: str,
  *,
  param: str | None = None,
  code: str | None = None,
  headers: Mapping[str, str] | None = None,
) -> JSONResponse:
  """An error as a response."""
  return JSONResponse(body(status, message, param, code), status, dict(headers or {}))


def invalid(errors: Any) -> Refused:
  """Of what pydantic says, the first thing, with the field; no value of the request is repeated."""
  first = errors[0]
  where = [str(part) for part in first["loc"] if part != "body"]
  message = str(first["msg"]).removeprefix("Value error, ")
  if first["type"] == "json_invalid":
    return Refused(400, f"the body is not JSON: {first['ctx']['error']}", code="invalid_json")
  if first["type"] == "model_attributes_type" and not where:
    what = "expected an object of JSON, sent with Content-Type: application/json"
    return Refused(400, what, code="invalid_json")
  param = ".".join(where)[:200].encode("ascii", "replace").decode() or None
  named = f"{param}: {message}" if param else message
  return Refused(400, named, param=param, code="invalid_value")


async def _refused(request: Request, error: Exception) -> Response:
  assert isinstance(error, HTTPException)
  own = error if isinstance(error, Refused) else None
  return response(
    error.status_code,
    str(error.detail),
    param=own.param if own else None,
    code=own.code if own else None,
    headers=error.headers,
  )


async def _invalid(request: Request, error: Exception) -> Response:
  assert isinstance(error, RequestValidationError)
  return await _refused(request, invalid(error.errors()))


async def _nobody(request: Request, error: Exception) -> Response:
  return Response(status_code=499)  # nobody reads it; it counts in the metrics


async def _failed(request: Request, error: Exception) -> Response:
  return response(500, INTERNAL)
