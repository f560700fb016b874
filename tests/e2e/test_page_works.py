"""The page, against the real server of a model that is none: what it is for."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

from browsing import draw
from browsing import file
from browsing import png
from browsing import wait_for
import pytest
from unit.serve.standin import StandIn

import blip3o_jax
from blip3o_jax.use import picture

DROP = """([place, kind, name, text]) => {
  const data = new DataTransfer();
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  data.items.add(new File([bytes], name, { type: "image/png" }));
  const how = { bubbles: true, cancelable: true };
  const event = kind === "paste"
    ? new ClipboardEvent(kind, { ...how, clipboardData: data })
    : new DragEvent(kind, { ...how, dataTransfer: data });
  document.querySelector(place).dispatchEvent(event);
}"""
Open = Callable[..., Any]


def seeds(page: Any) -> list[str]:
  """Of the pictures that are done, in their order."""
  return page.locator(".tile:has(.open) .seed").all_inner_texts()


def test_generate_draws_shows_varies_and_saves(opened: Open, tmp_path: Path) -> None:
  model = StandIn()
  page = opened(model)
  model.pause = 0.1
  draw(page, "a red circle", n=2, seed=7, steps=6, guidance=4.5)
  page.wait_for_selector(".tile .preview")
  wait_for(page, ".tile .open", 2)
  assert model.calls == [("generate", [7, 8], {"steps": 6, "guidance": 4.5})]
  assert seeds(page) == ["Seed 7", "Seed 8"]
  with page.expect_download() as saved:
    page.click(".tile a[download] >> nth=1")
  assert saved.value.suggested_filename == "a-red-circle-8.png"
  saved.value.save_as(tmp_path / "saved.png")
  known = picture.read(tmp_path / "saved.png")
  assert (known["prompt"], known["seed"], known["steps"]) == ("a red circle", 8, 6)

  page.click("[aria-label='Variations of seed 7']")
  wait_for(page, ".tile .open", 4)
  assert model.calls[-1] == ("generate", [9, 10], {"steps": 6, "guidance": 4.5})
  assert seeds(page) == ["Seed 9", "Seed 10", "Seed 7", "Seed 8"]

  page.click(".tile .open >> nth=0")
  page.keyboard.press("ArrowRight")
  assert "Seed 10" in page.inner_text("#viewer-details")
  page.keyboard.press("Escape")
  assert not page.is_visible("#viewer")


def test_cancel_leaves_what_is_done(opened: Open) -> None:
  model = StandIn()
  page = opened(model)
  model.go.clear()
  draw(page, "a red circle", n=1)
  page.wait_for_selector("#draw-go.running")
  page.wait_for_timeout(600)  # a double click cancels nothing
  page.click("#draw-go")
  page.wait_for_selector("text=Cancelled")
  assert page.inner_text("#draw-go") == "Draw"
  assert page.locator(".tile").count() == 0
  model.go.set()
  draw(page, "a blue circle", n=1)
  wait_for(page, ".tile .open", 1)


def test_ask_remembers_streams_and_shows_pictures(opened: Open) -> None:
  model = StandIn()
  page = opened(model)
  page.click("#tab-ask")
  page.set_input_files("#ask-file", file())
  wait_for(page, "#shown img", 1)
  page.click("#questions button")
  page.wait_for_selector("text=you said what is it? 30x20")
  page.wait_for_selector("#say-go[aria-label=Send]")
  page.fill("#question", "draw")
  page.keyboard.press("Enter")
  page.wait_for_selector(".assistant img")
  page.wait_for_selector(".assistant >> text=it is")
  page.wait_for_selector("#say-go[aria-label=Send]")
  page.fill("#question", "<img src=x onerror=alert(1)> <b>bold</b>")
  page.keyboard.press("Enter")
  page.wait_for_selector("#say-go[aria-label=Send]")
  page.wait_for_selector(".assistant >> text=you said <img src=x onerror=alert(1)> <b>bold</b>")
  assert page.locator("#talk .words *").count() == 0

  verb, talk, _ = model.calls[-1]
  assert verb == "stream"
  assert [m["role"] for m in talk] == ["user", "assistant"] * 2 + ["user"]
  assert talk[0]["content"][0]["image"].size == (30, 20)
  assert [part["type"] for part in talk[3]["content"]] == ["text", "image", "text"]
  assert talk[1]["content"].strip() == "you said what is it? 30x20"

  model.go.clear()
  page.fill("#question", "and now?")
  page.keyboard.press("Enter")
  page.click("#say-go[aria-label=Stop]")
  page.wait_for_selector("text=Stopped")
  model.go.set()
  page.click("#talk-new")
  assert page.locator("#talk li").count() == 0


def test_pictures_go_from_the_gallery_to_ask_and_reconstruct(opened: Open) -> None:
  model = StandIn()
  page = opened(model)
  draw(page, "a red circle", n=1, seed=3)
  page.click("[aria-label='Ask about this picture']")
  wait_for(page, "#shown img", 1)
  page.fill("#question", "what?")
  page.click("#say-go")
  page.wait_for_selector("text=you said what? 24x24")
  page.click("#tab-generate")
  page.click("[aria-label='Reconstruct this picture']")
  page.click("#work-go")
  wait_for(page, "#pairs .open", 2)
  assert model.calls[-1][0] == "reconstruct"


def test_reconstruct_stands_beside_what_was_given(opened: Open) -> None:
  model = StandIn()
  page = opened(model)
  page.click("#tab-rework")
  assert page.inner_text("#tab-rework") == "Reconstruct"
  page.set_input_files("#work-file", file("mine.png", png(40, 40)))
  page.click("#work-settings summary")
  page.fill("#work-seed", "11")
  page.fill("#work-pixel_steps", "3")
  page.click("#work-go")
  wait_for(page, "#pairs .open", 2)
  assert model.calls == [("reconstruct", [11], {"pixel_steps": 3})]
  given, made = (page.locator("#pairs .frame").nth(i).bounding_box() for i in (0, 1))
  assert given["y"] == made["y"]
  assert (given["width"], given["height"]) == (made["width"], made["height"])


def test_a_model_that_edits_is_told_what_to_change(opened: Open) -> None:
  model = StandIn(("generate", "edit"))
  page = opened(model)
  assert not page.is_visible("#tab-ask")
  assert page.inner_text("#tab-rework") == "Edit"
  page.click("#tab-rework")
  page.click("#work-go")
  page.wait_for_selector("#work-fault >> text=Choose a picture first.")
  page.set_input_files("#work-file", file())
  page.fill("#told", "make it green")
  page.click("#work-go")
  wait_for(page, "#pairs .open", 2)
  verb, _, options = model.calls[-1]
  assert verb == "edit"
  assert options["steps"] == 4
  assert page.inner_text("#pairs h2") == "make it green"


def test_files_are_dropped_and_pasted(opened: Open) -> None:
  page = opened(StandIn())
  text = base64.b64encode(png()).decode()
  page.click("#tab-ask")
  page.evaluate(DROP, ["#ask-drop", "drop", "a.png", text])
  wait_for(page, "#shown img", 1)
  page.evaluate(DROP, ["body", "paste", "b.png", text])
  wait_for(page, "#shown img", 2)
  page.click("[aria-label='Remove b.png']")
  wait_for(page, "#shown img", 1)
  page.click("#tab-rework")
  page.evaluate(DROP, ["#work-drop", "drop", "c.png", text])
  page.wait_for_selector(".slot.filled")


@pytest.mark.slow
def test_the_shipped_miniature(opened: Open) -> None:
  words = {"prompts": ("two blue circles",), "questions": ("how many circles are there?",)}
  page = opened(blip3o_jax.load(), batch=2, **words)
  page.set_default_timeout(120_000)
  draw(page, "a red circle left of a blue square", n=2, seed=1)
  page.wait_for_selector(".tile .preview")
  wait_for(page, ".tile .open", 2)
  page.click("[aria-label='Ask about this picture'] >> nth=0")
  page.click("#questions button")
  page.wait_for_selector(".assistant .words >> text=one")
  page.click("#tab-generate")
  page.click("[aria-label='Reconstruct this picture'] >> nth=0")
  page.click("#work-go")
  wait_for(page, "#pairs .open", 2)


def test_words_that_the_model_does_not_know_are_said_while_they_are_typed(opened: Open) -> None:
  model = StandIn(("generate", "chat", "edit"))
  model.words = ("a", "red", "circle", "what", "is", "it")
  page = opened(model)
  note = page.locator("#prompt-words")
  page.fill("#prompt", "A red circle, a crimson CIRCLE: круг")
  assert note.inner_text() == "Not among the 6 words of this model: crimson, круг"
  assert note.get_attribute("title") == "It knows a, red, circle, what, is, it."
  page.fill("#prompt", "a red circle")
  assert note.is_hidden()
  page.click("#tab-ask")
  page.fill("#question", "what is <image> the?")
  assert page.locator("#question-words").inner_text().endswith(": image, the")
  page.keyboard.press("Enter")
  page.wait_for_selector(".assistant >> text=you said")
  assert page.locator("#question-words").is_hidden()  # the field is empty again
  page.click("#tab-rework")
  page.fill("#told", "paint it red")
  assert page.locator("#told-words").inner_text().endswith(": paint")
