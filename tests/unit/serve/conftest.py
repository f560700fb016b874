"""A server of the stand-in for the tests that only ask it."""

from collections.abc import Iterator
import io

import httpx
from PIL import Image
import pytest
from standin import Running
from standin import StandIn
from standin import server


@pytest.fixture(scope="session")
def shared() -> Iterator[tuple[StandIn, Running]]:
  """A model that cannot edit, and its server."""
  model = StandIn()
  with server(model).running() as running:
    yield model, running


@pytest.fixture
def model(shared: tuple[StandIn, Running]) -> StandIn:
  """The stand-in behind `client`, without calls so far."""
  shared[0].calls.clear()
  return shared[0]


@pytest.fixture
def client(shared: tuple[StandIn, Running]) -> Iterator[httpx.Client]:
  """A client of the shared server, whose model knows any word until a test says otherwise."""
  shared[0].words = ()
  with httpx.Client(base_url=shared[1].url, timeout=20) as found:
    yield found


@pytest.fixture(scope="session")
def png() -> bytes:
  """A red picture of 30 x 20."""
  out = io.BytesIO()
  Image.new("RGB", (30, 20), (255, 0, 0)).save(out, "PNG")
  return out.getvalue()
