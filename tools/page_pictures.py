"""Takes the pictures of the page that the docs show, with the shipped miniature behind it.

    python tools/page_pictures.py [--output DIR] [--browser FILE]

Starts `blip3o serve` on a free port, uses the page in chromium as a person would, and writes
page-generate.png, page-ask.png and page-phone.png. Needs the extra `test` (playwright) and a
chromium.
"""

import argparse
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import io
from pathlib import Path
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import Any
import urllib.error
import urllib.request

from PIL import Image

from blip3o_jax import cli
from blip3o_jax import files

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
WARM = 600  # seconds
PATIENCE = 120_000  # milliseconds
DESKTOP = {"viewport": {"width": 1280, "height": 800}, "color_scheme": "light"}
PHONE = {
  "viewport": {"width": 375, "height": 760},
  "device_scale_factor": 2,
  "color_scheme": "dark",
  "has_touch": True,
  "is_mobile": True,
}
FIRST, SECOND = "two blue circles", "a red circle left of a blue square"


def main(argv: Sequence[str] | None = None) -> int:
  """Writes the pictures; returns the exit status."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--output", type=Path, default=IMAGES, help="default docs/images")
  parser.add_argument("--browser", default="chromium", help="the program (default chromium)")
  options = parser.parse_args(argv)
  return cli.guarded("page_pictures", lambda: _take(options.output, options.browser))


def _take(output: Path, name: str) -> int:
  from playwright import sync_api

  browser = shutil.which(name)
  if browser is None:
    raise FileNotFoundError(f"--browser {name}: no such program")
  with serving() as url, sync_api.sync_playwright() as driver:
    run = driver.chromium.launch(executable_path=browser, args=FLAGS)
    desk = opened(run, url, DESKTOP)
    draw(desk, FIRST, 4, 11)
    draw(desk, SECOND, 4, 297233)
    keep(desk, output / "page-generate.png")
    desk.set_viewport_size({"width": 1280, "height": 660})
    ask(desk)
    keep(desk, output / "page-ask.png")
    phone = opened(run, url, PHONE)
    draw(phone, SECOND, 4, 297233)
    keep(phone, output / "page-phone.png")
    run.close()
  return 0


@contextlib.contextmanager
def serving() -> Iterator[str]:
  """The address of a server of the miniature that is warm.

  Raises:
    RuntimeError: it ended, or was not warm in time.
  """
  command = (sys.executable, "-m", "blip3o_jax", "serve", "--port", "0")
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
    try:
      assert process.stdout is not None
      lines = (re.search(r"http://\S+", line) for line in process.stdout)
      found = next((line[0] for line in lines if line), None)
      until = time.monotonic() + WARM
      while found is None or not is_ready(found):
        if process.poll() is not None or time.monotonic() > until:
          raise RuntimeError("blip3o serve: ended, or not warm in time; its lines say why")
        time.sleep(0.5)
      yield found
    finally:
      process.send_signal(signal.SIGTERM)


def is_ready(url: str) -> bool:
  """Whether a server takes requests."""
  try:
    with urllib.request.urlopen(f"{url}/readyz", timeout=10) as answer:
      return bool(answer.status == 200)
  except (urllib.error.URLError, TimeoutError):
    return False


def opened(run: Any, url: str, how: dict[str, Any]) -> Any:
  """The page in a window of its own."""
  page = run.new_context(**how).new_page()
  page.set_default_timeout(PATIENCE)
  page.goto(url)
  page.wait_for_selector("#state[data-state=ready]")
  return page


def draw(page: Any, prompt: str, count: int, seed: int) -> None:
  """Draws pictures, and waits for them."""
  page.evaluate("document.querySelector('#settings').open = true")
  page.fill("#prompt", prompt)
  page.check(f"#counts input[value='{count}']", force=True)
  page.fill("#seed", str(seed))
  if page.viewport_size["width"] < 800:
    page.click("#settings summary")
  page.click("#draw-go")
  page.wait_for_selector(f".run:first-child .tile:nth-child({count}) .open")


def ask(page: Any) -> None:
  """Asks two questions about the first picture."""
  page.click("[aria-label='Ask about this picture'] >> nth=0")
  for i, question in enumerate(("how many circles are there?", "what color is the square?")):
    page.fill("#question", question)
    page.click("#say-go")
    page.wait_for_selector(f".assistant >> nth={i} >> .words")
    page.wait_for_selector("#say-go[aria-label=Send]")


def keep(page: Any, target: Path) -> None:
  """Writes what the window shows, without loss."""
  page.mouse.move(0, 0)
  page.evaluate("document.activeElement.blur()")
  page.wait_for_timeout(500)
  shown = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
  target.parent.mkdir(parents=True, exist_ok=True)
  with files.replacing(target, shared=True) as partial:
    shown.save(partial, "PNG", optimize=True)
  print(f"{target}: {target.stat().st_size} bytes")


if __name__ == "__main__":
  sys.exit(main())
