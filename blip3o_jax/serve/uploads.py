"""The multipart body of an edit: its fields as a checked request, its pictures decoded."""

import json
from typing import Any

from fastapi import Request
from PIL.Image import Image
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from blip3o_jax.serve import faults
from blip3o_jax.serve import pictures
from blip3o_jax.serve import service
from blip3o_jax.serve.faults import Refused
from blip3o_jax.serve.schema import EditRequest
from blip3o_jax.serve.settings import Limits

IMAGES = ("image", "image[]")
FIELDS = 100


async def read(request: Request, limits: Limits) -> tuple[EditRequest, list[Image]]:
  """The request and its pictures.

  Raises:
    Refused: no multipart body, a field of a wrong value, no picture, too many or wrong ones.
  """
  kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
  if kind != "multipart/form-data":
    raise Refused(415, "expected a body of multipart/form-data", code="invalid_content_type")
  form = await request.form(
    max_files=limits.images + 1, max_fields=FIELDS, max_part_size=4 * limits.prompt + 1024
  )
  try:
    files: list[tuple[str, UploadFile]] = []
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
      if name == "mask":
        raise Refused(400, "mask: this model takes none", param="mask", code="unsupported")
      if isinstance(value, UploadFile):
        if name not in IMAGES:
          raise Refused(400, "a file in a field that takes none", param=_plain(name))
        files.append((name, value))
      elif name in IMAGES:
        raise Refused(400, f"{name}: expected a file", param=name)
      elif name in fields:
        raise Refused(400, "a field is there twice", param=_plain(name))
      else:
        fields[name] = value
    body = _checked(fields)
    if not files:
      raise Refused(400, "image: expected a picture", param="image", code="missing")
    if len(files) > limits.images:
      raise Refused(400, f"image: {len(files)} pictures, at most {limits.images}", param="image")
    found = []
    for name, file in files:
      data = await file.read(limits.image_bytes + 1)
      found.append(await service.aside(pictures.decode, data, name, limits))
    return body, found
  finally:
    await form.close()


def _checked(fields: dict[str, Any]) -> EditRequest:
  """The fields, which are all texts here; `extra_body` is one of JSON."""
  try:
    if "extra_body" in fields:
      fields["extra_body"] = json.loads(fields["extra_body"])
    return EditRequest.model_validate(fields, strict=False)
  except ValidationError as error:
    raise faults.invalid(error.errors(include_url=False, include_input=False)) from None
  except (ValueError, RecursionError):
    raise Refused(400, "extra_body: not JSON", param="extra_body", code="invalid_json") from None


def _plain(name: str) -> str:
  return name[:50].encode("ascii", "replace").decode()
