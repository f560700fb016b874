"""What waits is batched, bounded and given up; nothing of it stays behind."""

from collections.abc import Callable
from concurrent import futures
import contextlib
import signal
import socket
import time
from typing import Any

import httpx
import pytest
from standin import Running
from standin import StandIn
from standin import server

URL = "/v1/images/generations"


def until(ready: Callable[[], Any], seconds: float = 15) -> None:
  end = time.monotonic() + seconds
  while not ready():
    assert time.monotonic() < end, "it did not come to be"
    time.sleep(0.005)


@contextlib.contextmanager
def held(**settings: Any) -> Any:
  """A server whose model draws nothing yet, a client, and a pool that asks."""
  model = StandIn()
  with (
    server(model, **settings).running() as running,
    httpx.Client(base_url=running.url, timeout=30) as client,
    futures.ThreadPoolExecutor(32) as pool,
  ):
    model.calls.clear()
    model.go.clear()
    try:
      yield model, running, client, pool
    finally:
      model.go.set()


def draw(client: httpx.Client, prompt: str = "a", **fields: Any) -> httpx.Response:
  return client.post(URL, json={"prompt": prompt, **fields})


def counts(running: Running) -> tuple[int, int]:
  return running._service.worker.counts()


def test_pictures_of_several_requests_are_drawn_together():
  with held() as (model, running, client, pool):
    first = pool.submit(draw, client, "first", seed=0)
    until(lambda: counts(running) == (0, 1))
    # Two other prompts and four pictures of a third join; other steps do not.
    joined = [pool.submit(draw, client, f"p{i}", seed=10 * i) for i in (1, 2)]
    until(lambda: counts(running)[0] == 2)
    other = pool.submit(draw, client, "other", seed=50, num_inference_steps=3)
    until(lambda: counts(running)[0] == 3)
    many = pool.submit(draw, client, "many", seed=100, n=8)
    until(lambda: counts(running)[0] == 11)
    model.go.set()
    seeds = [[each["seed"] for each in f.result().json()["data"]] for f in (first, *joined, many)]
    assert seeds == [[0], [10], [20], list(range(100, 108))]
    assert other.result().status_code == 200
  drawn = [(call[1], call[2]) for call in model.calls]
  batches = [sorted(seeds) for seeds, options in drawn if not options]
  assert batches == [[0], [10, 20, *range(100, 106)], [106, 107]]
  assert ([50], {"steps": 3}) in drawn


def test_one_that_the_model_refuses_does_not_spoil_the_others():
  with held() as (model, running, client, pool):
    first = pool.submit(draw, client, "first")
    until(lambda: counts(running) == (0, 1))
    asked = [pool.submit(draw, client, p) for p in ("good", "refuse me", "better")]
    until(lambda: counts(running)[0] == 3)
    model.go.set()
    assert [f.result().status_code for f in (first, *asked)] == [200, 200, 400, 200]


def test_a_full_queue_says_when_to_come_back():
  with held(queue=10) as (model, running, client, pool):
    asked = [pool.submit(draw, client, n=8)]
    until(lambda: counts(running) == (0, 8))
    asked.append(pool.submit(draw, client, n=7))
    until(lambda: counts(running) == (7, 8))
    full = draw(client, n=4)
    assert full.status_code == 429
    assert int(full.headers["retry-after"]) >= 1
    assert full.json()["error"]["code"] == "queue_full"
    assert full.json()["error"]["type"] == "rate_limit_error"
    asked.append(pool.submit(draw, client, n=3))  # which still fit
    model.go.set()
    assert [f.result().status_code for f in asked] == [200] * 3
    until(lambda: running._service.worker._pixels == 0)


def test_what_would_never_fit_is_not_told_to_come_back(png):
  from blip3o_jax.serve.settings import Limits

  with held(queue=10, limits=Limits(waiting_pixels=1000)) as (model, _, client, _):
    model.go.set()

    def rebuild(count: int) -> httpx.Response:
      files = [("image[]", png)] * count
      return client.post("/v1/images/edits", data={"prompt": "reconstruct"}, files=files)

    assert rebuild(1).status_code == 200
    for count in (2, 11):
      found = rebuild(count)
      assert (found.status_code, found.json()["error"]["code"]) == (400, "too_many")


def test_pictures_that_wait_are_bounded_by_their_pixels(png):
  from blip3o_jax.serve.settings import Limits

  with held(limits=Limits(waiting_pixels=1000)) as (model, running, client, pool):

    def rebuild() -> httpx.Response:
      return client.post("/v1/images/edits", data={"prompt": "reconstruct"}, files={"image": png})

    first = pool.submit(rebuild)
    until(lambda: counts(running) == (0, 1))
    assert rebuild().status_code == 429
    model.go.set()
    assert first.result().status_code == 200
    assert rebuild().status_code == 200


def test_a_request_that_takes_too_long_is_given_up_and_ends_its_batch():
  with held(timeout=0.4) as (model, running, client, pool):
    model.pause = 0.02
    waited = [pool.submit(draw, client, num_inference_steps=900), pool.submit(draw, client)]
    for future in waited:
      response = future.result()
      assert response.status_code == 504
      assert response.json()["error"]["code"] == "timeout"
    until(lambda: counts(running)[0] == 0)
    model.go.set()
    until(lambda: counts(running) == (0, 0))
    assert model.steps < 50
    model.pause = 0
    assert draw(client).status_code == 200


def test_a_client_that_leaves_ends_what_is_drawn_for_it_alone():
  with held() as (model, running, client, _pool):
    model.pause = 0.01
    model.go.set()
    with pytest.raises(httpx.ReadTimeout):
      client.post(URL, json={"prompt": "a", "num_inference_steps": 1000}, timeout=0.3)
    until(lambda: counts(running) == (0, 0), 5)
    assert model.steps < 200
    text = client.get("/metrics").text
    assert 'status="499"} 1' in text


def test_a_client_that_leaves_a_stream():
  with held() as (model, running, client, _pool):
    model.pause = 0.01
    model.go.set()
    asked = {"prompt": "a", "num_inference_steps": 1000, "stream": True, "partial_images": 3}
    said = {"messages": [{"role": "user", "content": "a " * 1000}], "stream": True}
    for url, body in ((URL, asked), ("/v1/chat/completions", said)):
      model.steps = 0
      with client.stream("POST", url, json=body) as response:
        next(response.iter_lines())
      until(lambda: counts(running) == (0, 0), 5)
      assert model.steps < 500
    until(lambda: running._service.worker._keys == {})


def test_others_of_a_batch_stay_when_one_leaves():
  with held() as (model, running, client, pool):
    first = pool.submit(draw, client)
    until(lambda: counts(running) == (0, 1))
    short = pool.submit(client.post, URL, json={"prompt": "short"}, timeout=0.5)
    stays = pool.submit(draw, client, "stays", seed=8)
    until(lambda: counts(running)[0] == 2)
    model.pause = 0.3
    model.go.set()
    with pytest.raises(httpx.ReadTimeout):
      short.result()
    assert first.result().status_code == 200
    assert stays.result().json()["data"][0]["seed"] == 8


def test_conversations_are_answered_together():
  def ask(client: httpx.Client, text: str, **more: Any) -> str:
    body = {"messages": [{"role": "user", "content": text}], **more}
    found = client.post("/v1/chat/completions", json=body).json()
    return str(found["choices"][0]["message"]["content"])

  with held() as (model, running, client, pool):
    first = pool.submit(ask, client, "one")
    until(lambda: counts(running) == (0, 1))
    others = []
    for text in ("two", "three"):  # one after the other, for threads come in any order
      others.append(pool.submit(ask, client, text))
      until(lambda: counts(running)[0] == len(others))
    warm = pool.submit(ask, client, "four", temperature=1.0, seed=3)
    until(lambda: counts(running)[0] == 3)
    model.go.set()
    said = [f.result() for f in (first, *others, warm)]
  assert said == ["you said one", "you said two", "you said three", "you said four"]
  together = [talks for verb, talks, _ in model.calls if verb == "chat"]
  assert [[talk[0]["content"] for talk in talks] for talks in together] == [["two", "three"]]


def test_conversations_that_nobody_waits_for_end():
  def ask(client: httpx.Client, text: str) -> int:
    body = {"messages": [{"role": "user", "content": text}]}
    return client.post("/v1/chat/completions", json=body).status_code

  with held(timeout=0.5) as (model, running, client, pool):
    first = pool.submit(ask, client, "one")
    until(lambda: counts(running) == (0, 1))
    others = [pool.submit(ask, client, "word " * 400) for _ in range(2)]
    until(lambda: counts(running)[0] == 2)
    model.pause = 0.02
    model.go.set()
    first.result()
    assert [future.result() for future in others] == [504, 504]
    until(lambda: counts(running) == (0, 0), 5)  # all words would take 16 s
    assert [verb for verb, _, _ in model.calls] == ["stream", "chat"]
    assert model.steps < 100


@pytest.mark.parametrize("texts", [["not a number"], ["not a number", "fine"]])
def test_a_result_that_is_no_number_is_the_server_s_fault(texts):
  """Also of an answer, and before the first piece of it."""

  def ask(client: httpx.Client, text: str) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": text}]}
    return client.post("/v1/chat/completions", json=body)

  with held() as (model, running, client, pool):
    first = pool.submit(ask, client, "one")
    until(lambda: counts(running) == (0, 1))
    asked = [pool.submit(ask, client, text) for text in texts]
    until(lambda: counts(running)[0] == len(texts))
    model.go.set()
    assert first.result().status_code == 200
    found = [future.result() for future in asked]
    assert [r.status_code for r in found] == [500, 200][: len(texts)]
    assert "backbone" not in found[0].text


def test_a_server_that_is_told_to_end_finishes_what_it_has():
  with held() as (model, running, client, pool):
    asked = [pool.submit(draw, client, n=8) for _ in range(2)]
    until(lambda: counts(running) == (8, 8))
    running.handle_exit(signal.SIGTERM, None)
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (503, "draining")
    assert client.get("/healthz").status_code == 200
    late = draw(client)
    assert (late.status_code, late.json()["error"]["code"]) == (503, "shutting_down")
    model.go.set()
    assert [f.result().status_code for f in asked] == [200, 200]
    until(lambda: running.should_exit)


def test_the_end_is_bounded():
  with held(drain=0.3) as (model, running, client, pool):
    model.pause = 0.01
    model.go.set()
    asked = [pool.submit(draw, client, n=8, num_inference_steps=1000) for _ in range(2)]
    until(lambda: counts(running) == (8, 8))
    begun = time.monotonic()
    running.drain()
    for future in asked:
      assert future.result().status_code == 503
      assert time.monotonic() - begun < 5
    until(lambda: running.should_exit)


def test_until_it_is_warm_it_says_so():
  model = StandIn()
  model.go.clear()
  running = server(model)
  client = httpx.Client
  with futures.ThreadPoolExecutor(1) as pool:
    from blip3o_jax.serve import serving

    listening = serving.listen("127.0.0.1", 0)
    base = f"http://127.0.0.1:{listening.getsockname()[1]}"
    done = pool.submit(running.run, [listening])
    try:
      with client(base_url=base, timeout=10) as asking:
        until(lambda: running.started)
        ready = asking.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "warming up")
        early = draw(asking)
        assert (early.status_code, early.json()["error"]["code"]) == (503, "warming_up")
        assert early.headers["retry-after"]
        assert asking.get("/v1/models").status_code == 503
        model.go.set()
        until(lambda: asking.get("/readyz").status_code == 200)
        assert draw(asking).status_code == 200
    finally:
      model.go.set()
      running.should_exit = True
      done.result(20)


def test_whoever_started_it_is_told():
  from blip3o_jax.serve import serving

  lines: list[str] = []
  app = server(StandIn()).config.app
  running = serving.Server(app, tell=lines.append)
  with futures.ThreadPoolExecutor(1) as pool:
    done = pool.submit(running.run, [serving.listen("127.0.0.1", 0)])
    until(lambda: lines)
    assert lines == [f"{app.state.service.settings.name}: ready"]
    running.drain()
    done.result(20)
  assert lines[1:] == ["ending: what was taken is finished; a second signal ends at once"]


def test_a_model_that_cannot_draw_ends_the_server():
  from blip3o_jax.serve import serving

  class Broken(StandIn):
    def features(self, images: Any) -> Any:
      raise ValueError("the output of the encoder is not finite")

  running = server(Broken())
  with pytest.raises(ValueError, match="first picture: the output of the encoder"):
    serving.run(running.config.app, serving.listen("127.0.0.1", 0))


def test_an_address_that_is_taken_is_an_error_with_its_name():
  from blip3o_jax.serve import serving

  with socket.create_server(("127.0.0.1", 0)) as taken:
    port = taken.getsockname()[1]
    with pytest.raises(OSError, match=f"127.0.0.1, port {port}: "):
      serving.listen("127.0.0.1", port)


def test_a_host_that_there_is_not_is_named():
  from blip3o_jax.serve import serving

  with pytest.raises(OSError, match=r"host 127\.0\.0\.1\.1\.1: "):
    serving.listen("127.0.0.1.1.1", 0)
