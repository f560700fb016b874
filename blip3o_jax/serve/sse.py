"""Server-sent events, as clients of the OpenAI API read them."""

from collections.abc import Mapping
import json
from typing import Any

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
MEDIA = "text/event-stream"
DONE = b"data: [DONE]\n\n"


def event(data: Mapping[str, Any], name: str = "") -> bytes:
  """One event; with a name its line stands first."""
  line = f"event: {name}\n" if name else ""
  return f"{line}data: {json.dumps(data, ensure_ascii=True)}\n\n".encode()
