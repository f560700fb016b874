"""Requests that schemathesis makes up from the schema: good ones, and ones that break it.

Each is answered as the schema says, and none by a fault of the server.
"""

import time

from hypothesis import HealthCheck
from hypothesis import Phase
from hypothesis import given
from hypothesis import settings
import pytest
import requests
import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks
from standin import StandIn
from standin import server

load_all_checks()
from schemathesis.specs.openapi.checks import positive_data_acceptance  # noqa: E402

EXAMPLES = 25  # of each route and kind
GOOD, BAD = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
WORK = [("POST", f"/v1/{p}") for p in ("images/generations", "images/edits", "chat/completions")]
READ = [("GET", p) for p in ("/v1/models", "/v1/models/{name}", "/healthz", "/readyz", "/metrics")]


@pytest.fixture(scope="module")
def described():
  """The schema of a server, which says itself where it is."""
  with server(StandIn(("generate", "edit", "chat", "reconstruct"))).running() as running:
    yield schemathesis.openapi.from_url(f"{running.url}/openapi.json")
    # It serves as before.
    drawn = requests.post(f"{running.url}/v1/images/generations", json={"prompt": "a"}, timeout=20)
    assert drawn.status_code == 200
    worker, end = running._service.worker, time.monotonic() + 10
    while worker.counts() != (0, 0) or worker._keys:  # nothing stays behind
      assert time.monotonic() < end
      time.sleep(0.01)


def test_the_schema_has_no_other_routes(described):
  found = {(each.ok().method.upper(), each.ok().path) for each in described.get_all_operations()}
  assert found == {*WORK, *READ}


@pytest.mark.parametrize(
  ("method", "path", "mode"),
  [*((*each, GOOD) for each in (*WORK, *READ)), *((*each, BAD) for each in WORK)],
)
def test_made_up_requests_are_answered_as_the_schema_says(described, method, path, mode):
  statuses = set()

  @settings(
    max_examples=EXAMPLES if method == "POST" else 5,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
  )
  @given(case=described[path][method].as_strategy(generation_mode=mode))
  def ask(case):
    # No schema says what a model can, such as the sizes that it draws: some good ones are 400.
    answer = case.call_and_validate(excluded_checks=[positive_data_acceptance])
    statuses.add(answer.status_code)

  ask()
  assert (200 in statuses) == (mode == GOOD) or path == "/v1/models/{name}", statuses
