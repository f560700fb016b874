"""The page of a server in Debian's chromium, headless.

Where there is no chromium or no playwright the tests are skipped, and the reason says which.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import shutil
from typing import Any

import pytest
from unit.serve.standin import server

FLAGS = (
  *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
  *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PATIENCE = 20_000  # milliseconds
WARM = 300  # seconds, of a real model
# What the console says of a response that is an error, which is no fault of the page.
REFUSED = "Failed to load resource: the server responded with a status of "
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
  """A chromium with an empty profile of its own."""
  driver = pytest.importorskip(
    "playwright.sync_api", reason="no playwright: pip install playwright"
  )
  chromium = shutil.which("chromium")
  if chromium is None:
    pytest.skip("no chromium: apt-get install chromium")
  with driver.sync_playwright() as run:
    found = run.chromium.launch(executable_path=chromium, args=FLAGS)
    yield found
    found.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Open]:
  """opened(model, context={}, **settings): the page of a server of the model, ready.

  What the page says on its console, a refused script or style among it, fails the test.
  """
  with contextlib.ExitStack() as stack:
    said: list[str] = []

    def open_page(
      model: Any, context: dict[str, Any] | None = None, *, ready: bool = True, **settings: Any
    ) -> Any:
      running = stack.enter_context(server(model, **settings).running(WARM))
      own = browser.new_context(accept_downloads=True, **(context or {}))
      stack.callback(own.close)
      own.set_default_timeout(PATIENCE)
      page = own.new_page()
      page.on("console", lambda message: said.append(message.text))
      page.on("pageerror", lambda error: said.append(str(error)))
      page.goto(running.url)
      if ready:
        page.wait_for_selector("#state[data-state=ready]")
        getattr(model, "calls", []).clear()  # those that warmed it
      return page

    yield open_page
  assert [text for text in said if not text.startswith(REFUSED)] == []
