"""The page of `blip3o compare` in a browser: keys, progress, what it keeps, what it downloads."""

import json
from pathlib import Path
import shutil

from painted import pixels
import pytest

from blip3o_jax import cli
from blip3o_jax.evaluate import compare
from blip3o_jax.use import picture

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture
def context(tmp_path):
  """A browser's context that keeps what pages store, with a page that shows three pairs."""
  playwright = pytest.importorskip("playwright.sync_api")
  if CHROMIUM is None:
    pytest.skip("no chromium")
  for side, first in (("a", 0), ("b", 50)):
    for i in range(3):
      about = {"prompt": f"a <b>wall</b> {i}", "seed": first + i}
      data = picture.encode(pixels(f"{i}", first + i), about)
      picture.write(tmp_path / side / f"{i}.png", data)
  folders = [str(tmp_path / side) for side in "ab"]
  assert cli.main(["compare", *folders, "--output", str(tmp_path / "out")]) == 0
  with playwright.sync_playwright() as running:
    made = running.chromium.launch_persistent_context(
      str(tmp_path / "profile"),
      executable_path=CHROMIUM,
      args=["--no-sandbox"],
      viewport={"width": 400, "height": 800},
      accept_downloads=True,
    )
    made.set_default_timeout(20_000)
    yield made
    made.close()


def opened(context, tmp_path: Path):
  page = context.new_page()
  errors: list[str] = []
  page.on("pageerror", lambda error: errors.append(str(error)))
  page.on("request", lambda r: errors.append(r.url) if r.url.startswith("http") else None)
  page.goto((tmp_path / "out" / "compare.html").as_uri())
  return page, errors


def test_a_rater_answers_by_keys_and_downloads(context, tmp_path):
  page, errors = opened(context, tmp_path)
  status, prompt = page.locator("#done-of"), page.locator("#prompt")
  first = prompt.inner_text()
  assert first.startswith("a <b>wall</b> ")  # as text
  assert status.inner_text() == "0 of 3 pairs"
  assert "Visual quality" in page.locator("#question").inner_text()
  assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # of a phone
  page.locator("#rater").fill("Ada B.")  # where letters are no keys
  page.locator("#rater").press("ArrowLeft")
  assert "Visual quality" in page.locator("#question").inner_text()
  page.locator("#rater").blur()
  page.keyboard.press("ArrowLeft")
  assert "Prompt alignment" in page.locator("#question").inner_text()
  page.keyboard.press("Backspace")
  assert "Visual quality" in page.locator("#question").inner_text()
  page.keyboard.press("ArrowRight")
  page.keyboard.press("ArrowDown")
  assert status.inner_text() == "1 of 3 pairs"
  page.keyboard.press("Backspace")  # takes back the second question of the first pair
  assert (status.inner_text(), prompt.inner_text()) == ("0 of 3 pairs", first)
  page.get_by_role("button", name="the same").click()
  second = prompt.inner_text()
  assert second != first
  page.close()

  # Opened again, it goes on.
  page, more = opened(context, tmp_path)
  assert page.locator("#done-of").inner_text() == "1 of 3 pairs"
  assert page.locator("#prompt").inner_text() == second
  assert page.locator("#rater").input_value() == "Ada B."
  for key in ("ArrowLeft", "ArrowLeft", "ArrowRight", "ArrowRight"):
    page.keyboard.press(key)
  assert page.locator("#end").is_visible()
  assert not page.locator("#rating").is_visible()
  page.keyboard.press("ArrowLeft")  # nothing is left to answer
  with page.expect_download() as waiting:
    page.locator("#download").click()
  assert waiting.value.suggested_filename == "answers-Ada-B-.json"
  path = tmp_path / "answers.json"
  waiting.value.save_as(path)
  assert errors == more == []

  rows = json.loads(path.read_text())["answers"]
  assert [(row["quality"], row["alignment"]) for row in rows] == [
    ("right", "tie"),
    ("left", "left"),
    ("right", "right"),
  ]
  assert all(row["seconds"] >= 0 for row in rows)
  found = compare.score([path])
  assert found["raters"] == ["Ada B."]
  left = compare.sides(0, [row["id"] for row in rows]).left
  of_a = sum((row["quality"] == "left") == left[row["id"]] for row in rows)
  assert found["questions"]["quality"]["judgements"]["a"] == of_a
  assert found["questions"]["alignment"]["judgements"]["ties"] == 1
