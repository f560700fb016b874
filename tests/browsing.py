"""What the tests of the page share: pictures and files as a person has them, and waiting."""

import io
from typing import Any

from PIL import Image

PHONE = {"viewport": {"width": 375, "height": 812}, "has_touch": True, "is_mobile": True}


def png(width: int = 30, height: int = 20, color: tuple[int, int, int] = (255, 0, 0)) -> bytes:
  """A picture of one colour."""
  out = io.BytesIO()
  Image.new("RGB", (width, height), color).save(out, "PNG")
  return out.getvalue()


def file(name: str = "red.png", data: bytes | None = None, kind: str = "image/png") -> Any:
  """A file as a person chooses it."""
  return {"name": name, "mimeType": kind, "buffer": png() if data is None else data}


def draw(page: Any, prompt: str, **fields: Any) -> None:
  """Fills the form and draws; `n` of pictures."""
  page.fill("#prompt", prompt)
  for name, value in fields.items():
    if name == "n":
      page.check(f"#counts input[value='{value}']", force=True)
    else:
      page.fill(f"#{name}", str(value))
  page.click("#draw-go")


def wait_for(page: Any, selector: str, count: int) -> None:
  """Until so many elements are there."""
  page.wait_for_function(
    "([s, n]) => document.querySelectorAll(s).length === n", arg=[selector, count]
  )


def sideways(page: Any) -> int:
  """Pixels by which the page is wider than its window."""
  return page.evaluate("document.documentElement.scrollWidth - innerWidth")
