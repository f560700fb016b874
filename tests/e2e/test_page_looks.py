"""How the page looks and is used: phones, keys, names, colours, nothing that jumps."""

from collections.abc import Callable
import re
from typing import Any

from browsing import PHONE
from browsing import draw
from browsing import sideways
from browsing import wait_for
import numpy as np
import pytest
from unit.serve.standin import StandIn

from blip3o_jax.serve import app

# Pictures whose buttons do not fit under them.
BEYOND = """[...document.querySelectorAll(".tile")].filter((tile) =>
  tile.querySelector("a").getBoundingClientRect().right > tile.getBoundingClientRect().right + 10
).length"""
# What a person who does not see it could not name.
UNNAMED = """[...document.querySelectorAll("button, a, input:not([aria-hidden]), textarea")].filter(
  (e) => !(e.textContent.trim() || e.ariaLabel ||
           [...(e.labels ?? [])].some((label) => label.textContent.trim()))
).map((e) => e.outerHTML)"""
Open = Callable[..., Any]


def test_examples_new_seeds_and_nothing_moves(opened: Open) -> None:
  model = StandIn()
  page = opened(model, prompts=("two blue circles",))
  model.pause = 0.1
  page.evaluate(
    "window.moved = 0; new PerformanceObserver((list) => list.getEntries().forEach((entry) => "
    "{ if (!entry.hadRecentInput) moved += entry.value; })).observe({ type: 'layout-shift' })"
  )
  first = page.input_value("#seed")
  page.click("#prompts button")
  wait_for(page, ".tile .open", 4)
  assert model.calls[0][1][0] == int(first)
  page.wait_for_timeout(600)  # until what moves would no longer be the click's
  page.keyboard.press("Tab")
  assert page.evaluate("moved") < 0.01
  page.click("#new-seed")
  page.click("#new-seed")
  assert page.input_value("#seed") != first


def test_a_phone_never_scrolls_sideways(opened: Open) -> None:
  page = opened(StandIn(), PHONE, name="a-model-with-a-name-that-is-longer-than-a-phone-is-wide")
  assert sideways(page) == 0
  page.click("#settings summary")
  draw(page, "x" * 200, n=4)
  wait_for(page, ".tile .open", 4)
  assert sideways(page) == 0
  small = "[...document.querySelectorAll('.tile .icon')].filter((b) => b.offsetWidth < 40).length"
  assert page.evaluate(small) == 0
  page.click("[aria-label='Reconstruct this picture'] >> nth=0")
  page.click("#work-go")
  wait_for(page, "#pairs .open", 2)
  assert sideways(page) == 0
  page.click("#pairs .open >> nth=1")
  assert sideways(page) == 0
  page.click("#viewer-actions [aria-label='Ask about this picture']")
  page.fill("#question", "y" * 200)
  page.click("#say-go")
  page.wait_for_selector(".assistant .words")
  assert sideways(page) == 0


@pytest.mark.parametrize("width", [320, 800, 1000])
def test_other_windows_do_not_either(opened: Open, width: int) -> None:
  page = opened(StandIn(), {"viewport": {"width": width, "height": 700}})
  draw(page, "a circle")
  wait_for(page, ".tile .open", 4)
  assert sideways(page) == 0
  assert page.evaluate(BEYOND) == 0


def test_keys_and_labels(opened: Open) -> None:
  page = opened(StandIn())
  page.focus("#tab-generate")
  page.keyboard.press("ArrowRight")
  assert page.is_visible("#ask")
  page.keyboard.press("End")
  assert page.is_visible("#rework")
  page.keyboard.press("Home")
  page.fill("#prompt", "a circle")
  page.keyboard.press("Enter")
  wait_for(page, ".tile .open", 4)
  assert page.evaluate(UNNAMED) == []


def test_colours_can_be_read() -> None:
  """Text has a contrast of 4.5 on what it stands on, in light and dark; edges of fields 3."""
  sheet = (app.PAGE / "page.css").read_text()
  light, dark = (dict(re.findall(r"--([\w-]+): #(\w{6})", part)) for part in _schemes(sheet))
  assert len(light) >= 12
  for scheme in (light, {**light, **dark}):
    for ground in ("ground", "card"):
      for text in ("ink", "quiet", "accent", "fault"):
        assert _contrast(scheme[text], scheme[ground]) >= 4.5, (text, ground)
      assert _contrast(scheme["edge"], scheme[ground]) >= 2.8, ground
    assert _contrast(scheme["on-accent"], scheme["accent"]) >= 4.5
    assert _contrast(scheme["ink"], scheme["tint"]) >= 4.5
    assert _contrast(scheme["quiet"], scheme["well"]) >= 4.5


def _schemes(sheet: str) -> tuple[str, str]:
  light, _, dark = sheet.partition("@media (prefers-color-scheme: dark)")
  return light, dark


def _contrast(one: str, other: str) -> float:
  """As the WCAG define it, of two colours in hexadecimals."""

  def luminance(text: str) -> float:
    value = np.array([int(text[i : i + 2], 16) for i in (0, 2, 4)]) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])

  low, high = sorted((luminance(one), luminance(other)))
  return (high + 0.05) / (low + 0.05)
