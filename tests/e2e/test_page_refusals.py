"""What the page says when something is refused."""

from collections.abc import Callable
import io
from typing import Any

from browsing import draw
from browsing import file
from browsing import png
from browsing import wait_for
import numpy as np
from PIL import Image
import pytest
from unit.serve.standin import StandIn

from blip3o_jax.serve.settings import Limits

Open = Callable[..., Any]


@pytest.mark.parametrize("tab", ["ask", "rework"])
def test_refused_uploads_are_refused_in_words(opened: Open, tab: str) -> None:
  page = opened(StandIn(), limits=Limits(image_bytes=20 * 1024, image_pixels=5000))
  page.click(f"#tab-{tab}")
  fault = page.locator("#say-fault" if tab == "ask" else "#work-fault")
  noise = np.random.default_rng(0).integers(0, 256, (69, 69, 3), np.uint8)
  out = io.BytesIO()
  Image.fromarray(np.repeat(noise, 3, 1)).save(out, "PNG", compress_level=0)
  for wrong, words in (
    (file("notes.txt", b"no picture", "text/plain"), "notes.txt is not a picture. Choose a PNG"),
    (file("notes.png", b"no picture"), "notes.png is not a picture that can be read."),
    (file("large.png", out.getvalue()), "large.png has 42 kB; the server takes at most 20 kB."),
    (
      file("wide.png", png(100, 100)),
      "wide.png has 100 × 100 pixels; the server takes at most 5,000 in all.",
    ),
  ):
    page.set_input_files("#ask-file" if tab == "ask" else "#work-file", wrong)
    fault.locator(f"text={words}").wait_for()
  assert page.locator("#shown img, .slot.filled").count() == 0


def test_what_the_server_refuses_is_said_in_its_words(opened: Open) -> None:
  page = opened(StandIn())
  draw(page, "refuse me")
  page.wait_for_selector("#draw-fault >> text=Prompt 'refuse me': a prompt of 99 tokens is longer")
  assert page.locator(".run").count() == 0
  draw(page, "a circle", seed="-1")
  page.wait_for_selector("#draw-fault >> text=The seed is a whole number from 0")
  draw(page, "a circle", seed=1, steps=0)
  page.wait_for_selector("#draw-fault >> text=Steps: expected a whole number from 1 to 1000.")
  draw(page, "break", steps=4, n=1)
  page.wait_for_selector("#draw-fault >> text=The server failed at this; its log says why.")
  assert page.is_visible("#draw-fault >> text=Try again")


def test_a_busy_server_asks_to_wait(opened: Open) -> None:
  page = opened(StandIn(), limits=Limits(requests=0))
  draw(page, "a circle")
  page.wait_for_selector("#draw-fault >> text=The server is busy. Please wait a second")
  page.click("#tab-ask")
  page.set_input_files("#ask-file", file())
  page.fill("#question", "what?")
  page.click("#say-go")
  page.wait_for_selector("#say-fault >> text=The server is busy. Please wait a second")
  assert page.is_visible("#say-fault >> text=Try again")


def test_a_key_is_asked_for_and_not_kept(opened: Open) -> None:
  page = opened(StandIn(), ready=False, key="sesame")
  page.fill("#key", "wrong")
  page.keyboard.press("Enter")
  page.wait_for_selector("text=The server does not accept this key.")
  page.keyboard.press("Escape")
  page.click("#state >> text=Enter it")
  page.fill("#key", "sesame")
  page.keyboard.press("Enter")
  page.wait_for_selector("#state[data-state=ready]")
  draw(page, "a circle", n=1)
  wait_for(page, ".tile .open", 1)
  kept = "[localStorage.length, sessionStorage.length, document.cookie, location.search]"
  assert page.evaluate(kept) == [0, 0, "", ""]
