"""Conversations in the form that users of transformers and of OpenAI's API know.

    [{"role": "system", "content": "Answer in one word."},
     {"role": "user", "content": [{"type": "image", "image": "cat.png"},
                                  {"type": "text", "text": "what is this?"}]}]

A picture is one of PIL, an array uint8[h, w, 3], a `Picture`, a path or a data URL. Nothing is
fetched from the web. What is null is absent. An error names the message, by its index, and the
field.
"""

import base64
import binascii
from collections.abc import Mapping
from collections.abc import Sequence
import io
from pathlib import Path
import re
from typing import Any
import warnings

from PIL import Image

from blip3o_jax.data import images
from blip3o_jax.systems.parts import talking
from blip3o_jax.use.picture import Picture

PIXELS = 2**26  # of the picture of a data URL, at most
BYTES = 2**25  # of its file
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
DATA = re.compile(r"data:([^;,]*)((?:;[^;,]*)*),", re.IGNORECASE)
PLACES = ("image", "path", "url")  # fields of a part of type "image" that may hold its picture

Messages = Sequence[Mapping[str, Any]]


def are_several(messages: Any) -> bool:
  """Whether these are conversations, rather than the messages of one."""
  return (
    isinstance(messages, Sequence)
    and not isinstance(messages, str | bytes)
    and len(messages) > 0
    and all(isinstance(each, Sequence) for each in messages)
    and not any(isinstance(each, str | bytes | talking.Message) for each in messages)
  )


def read(
  messages: Messages | talking.Conversation,
  *,
  paths: bool = True,
  pixels: int = PIXELS,
  size: int = BYTES,
  name: str = "messages",
) -> list[talking.Message]:
  """One conversation, as `talk` of a system takes it.

  Args:
    paths: whether files are opened; without, a path is refused. pixels, size: of the picture of a
      data URL, and of its file in bytes, at most. name: how errors call the messages.

  Returns:
    Its messages. The pictures of one in which no text comes before them stand where the model's
    training had them, else where they are.

  Raises:
    ValueError: no messages; a field that is absent, of the wrong kind or unknown; a system message
      that is not the first, or shows a picture; a user's message in which nothing is said or shown;
      a last message that is not the user's; a picture that cannot be read, is too large, or lies in
      the web. FileNotFoundError: no such file.
  """
  if isinstance(messages, str | bytes) or not isinstance(messages, Sequence):
    kind = type(messages).__name__
    raise ValueError(f"{name}: expected a list of messages with role and content, got {kind}")
  if not messages:
    raise ValueError(f"{name}: expected at least one message")
  before = [each for each in messages if isinstance(each, talking.Message)]
  if len(before) == len(messages):
    return before
  reader = _Reader(paths, pixels, size)
  found = [reader.message(message, f"{name}[{i}]") for i, message in enumerate(messages)]
  for i, (role, texts, pictures) in enumerate(found):
    if role == "system" and i:
      raise ValueError(f"{name}[{i}].role: a system message stands first")
    if role == "user" and not pictures and not texts[0].strip():
      raise ValueError(f"{name}[{i}].content is empty; say what is wanted")
  if (last := found[-1].role) != "user":
    raise ValueError(
      f"{name}[{len(found) - 1}].role: ends with {last!r}; expected a user's message"
    )
  return found


class _Reader:
  """Reads messages; see `read`."""

  def __init__(self, paths: bool, pixels: int, size: int):
    self._paths, self._pixels, self._size = paths, pixels, size

  def message(self, message: Any, name: str) -> talking.Message:
    fields = _fields(message, name, ("role", "content", "name"), ("role", "content"))
    role, content = fields["role"], fields["content"]
    if role not in talking.ROLES:
      told = ", ".join(talking.ROLES)
      raise ValueError(f"{name}.role: expected one of {told}, got {role!r:.60}")
    if isinstance(content, str):
      return talking.Message(role, [_text(content, f"{name}.content")])
    if not isinstance(content, Sequence) or isinstance(content, bytes) or not content:
      raise ValueError(f"{name}.content: expected a text or a list of parts, got {_said(content)}")
    parts = [self._part(part, f"{name}.content[{i}]") for i, part in enumerate(content)]
    texts, pictures = [""], []
    for i, part in enumerate(parts):
      if isinstance(part, str):
        texts[-1] += part
      elif role == "system":
        raise ValueError(f"{name}.content[{i}]: a system message shows no picture")
      else:
        pictures.append(part)
        texts.append("")
    if texts[-1] and not any(texts[:-1]):
      texts = texts[-1:]
    return talking.Message(role, texts, pictures)

  def _part(self, part: Any, name: str) -> str | Image.Image:
    """A text, or a picture as RGB."""
    kind = _fields(part, name, None, ("type",))["type"]
    if kind == "text":
      return _text(_fields(part, name, ("type", "text"), ("text",))["text"], f"{name}.text")
    if kind == "image":
      fields = _fields(part, name, ("type", *PLACES), ())
      given = [place for place in PLACES if place in fields]
      if len(given) != 1:
        raise ValueError(
          f"{name}: expected one of the fields {', '.join(PLACES)}, "
          f"found {' and '.join(given) or 'none'}"
        )
      return self._picture(fields[given[0]], f"{name}.{given[0]}")
    if kind == "image_url":
      link = _fields(part, name, ("type", "image_url"), ("image_url",))["image_url"]
      name = f"{name}.image_url"
      if not isinstance(link, str):
        link, name = _fields(link, name, ("url", "detail"), ("url",))["url"], f"{name}.url"
      if not isinstance(link, str):
        raise ValueError(f"{name}: expected a data URL, got {_said(link)}")
      return self._linked(link, name)
    raise ValueError(f"{name}.type: expected text, image or image_url, got {_said(kind)}")

  def _picture(self, value: Any, name: str) -> Image.Image:
    if isinstance(value, Picture):
      return value.image
    if isinstance(value, Path) or (isinstance(value, str) and not _scheme(value)):
      return self._file(value, name)
    if isinstance(value, str):
      return self._linked(value, name)
    return images.rgb(value, name)

  def _file(self, value: str | Path, name: str) -> Image.Image:
    if not self._paths:
      raise ValueError(f"{name}: no file is opened here; expected a data URL")
    path = Path(value)
    if path.is_dir():
      raise IsADirectoryError(f"{name}: {str(value)[:200]!r}: a folder; expected a picture's file")
    if not path.is_file():
      raise FileNotFoundError(f"{name}: {str(value)[:200]!r}: no such image file")
    with warnings.catch_warnings(action="ignore"):  # Pillow's, of damaged EXIF and of large photos
      return images.decode(path.read_bytes(), f"{name}: {path}")

  def _linked(self, link: str, name: str) -> Image.Image:
    """The picture of a data URL."""
    if (scheme := _scheme(link)) != "data":
      found = f"got one of {scheme}" if scheme else f"got {link[:60]!r}"
      raise ValueError(f"{name}: nothing is fetched from the web; expected a data URL, {found}")
    head = DATA.match(link)
    if head is None or not head[1].lower().startswith("image/"):
      raise ValueError(f"{name}: expected data:image/...;base64,..., got {link[:40]!r}")
    if "base64" not in head[2].lower().split(";"):
      raise ValueError(f"{name}: a data URL of a picture is in base64, got {head[0][:60]!r}")
    # Four characters are three bytes.
    if len(link) - head.end() > self._size // 3 * 4 + 4:
      raise ValueError(f"{name}: the picture's file has more than {self._size} bytes")
    try:
      data = base64.b64decode(link[head.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
      raise ValueError(f"{name}: no base64: {error}") from None
    with warnings.catch_warnings(action="ignore"):
      self._check(data, name)
      return images.decode(data, name)

  def _check(self, data: bytes, name: str) -> None:
    """Raises ValueError for a picture of another format, or of too many pixels, by its header."""
    try:
      with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        width, height = image.size
    except Image.DecompressionBombError as error:
      raise ValueError(f"{name}: {error}") from None
    except Exception:  # Pillow's readers raise many kinds on damaged bytes
      raise ValueError(
        f"{name}: no picture that can be read; expected one of {', '.join(FORMATS)}"
      ) from None
    if width * height > self._pixels:
      raise ValueError(
        f"{name}: a picture of {width} x {height} has more than {self._pixels} pixels"
      )


def _fields(
  value: Any, name: str, known: Sequence[str] | None, needed: Sequence[str]
) -> Mapping[str, Any]:
  """The fields of an object that are there.

  Raises:
    ValueError: no object, a field that is needed and absent, or that is not `known`; one that says
      nothing (null, or empty) may have any name.
  """
  if not isinstance(value, Mapping):
    raise ValueError(f"{name}: expected an object, got {_said(value)}")
  found = {key: each for key, each in value.items() if each is not None}
  for key in needed:
    if key not in found:
      raise ValueError(f"{name}.{key} is absent")
  for key, each in found.items():
    empty = isinstance(each, str | Sequence | Mapping) and not len(each)
    if known is not None and key not in known and not empty:
      raise ValueError(f"{name}.{key}: unknown; known are {', '.join(known)}")
  return found


def _text(value: Any, name: str) -> str:
  if not isinstance(value, str):
    raise ValueError(f"{name}: expected a text, got {_said(value)}")
  try:
    value.encode()
  except UnicodeEncodeError as error:
    raise ValueError(f"{name}: no text of Unicode: {error}") from None
  return value


def _scheme(text: str) -> str:
  """Of a link, in small letters; "" for what is none, such as a path."""
  found = re.match(r"(data(?=:)|[a-z][a-z0-9+.-]+(?=://))", text, re.IGNORECASE)
  return found[1].lower() if found else ""


def _said(value: Any) -> str:
  """A value in an error: short, and no picture's bytes."""
  if value is None or isinstance(value, str | int | float | bool):
    return repr(value)[:60]
  return type(value).__name__
