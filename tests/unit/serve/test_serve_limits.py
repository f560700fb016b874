"""What is refused before any work: strangers, keys, sizes, bombs, paths, private addresses."""

import base64
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from http.server import HTTPServer
import io
import ipaddress
import socket
import struct
import threading
import time
from typing import Any
import zlib

import httpx
from PIL import Image
import pytest
from standin import StandIn
from standin import server

from blip3o_jax.commands import serve
from blip3o_jax.serve import faults
from blip3o_jax.serve import pictures
from blip3o_jax.serve import remote
from blip3o_jax.serve.settings import Limits

URL, CHAT = "/v1/images/generations", "/v1/chat/completions"
DATA = "data:image/png;base64,"


def asked(url: str) -> dict[str, Any]:
  """A chat with a picture."""
  return {
    "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
  }


def bomb(width: int, height: int) -> bytes:
  """A small PNG that says it is large."""

  def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

  head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
  rows = zlib.compress(b"\0" * 2**20)
  return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def small() -> Iterator[tuple[StandIn, httpx.Client]]:
  """A server with a key and low limits."""
  limits = Limits(
    prompt=50,
    body=5000,
    body_seconds=0.5,
    image_bytes=2000,
    image_pixels=5000,
    images=2,
    tokens=100,
  )
  model = StandIn()
  running = server(model, key="schlüssel", hosts=("127.0.0.1",), limits=limits)
  key = "Bearer schlüssel".encode()
  with (
    running.running(),
    httpx.Client(base_url=running.url, headers={"Authorization": key}, timeout=10) as client,
  ):
    yield model, client


def code(response: httpx.Response, status: int) -> str | None:
  assert response.status_code == status, response.text
  found: str | None = response.json()["error"]["code"]
  return found


def test_the_key(small):
  _, client = small
  with httpx.Client(base_url=client.base_url) as stranger:
    for wrong in (
      {},
      {"Authorization": "Bearer x"},
      {"Authorization": "Basic schl"},
      {"Authorization": b"Bearer schl\xfcssel"},
    ):
      for method, path in (
        ("POST", URL),
        ("POST", CHAT),
        ("GET", "/v1/models"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
        ("GET", "/nothing"),
      ):
        assert code(stranger.request(method, path, headers=wrong), 401) == "invalid_api_key"
    for path in ("/healthz", "/readyz"):
      assert stranger.get(path).status_code == 200
  assert client.post(URL, json={"prompt": "a"}).status_code == 200


def test_other_names_and_other_pages_are_refused(small):
  _, client = small
  ok = {"prompt": "a"}
  assert code(client.post(URL, json=ok, headers={"Host": "evil.example"}), 403) == "host_refused"
  assert code(client.get("/v1/models", headers={"Host": "a@127.0.0.1"}), 403) == "host_refused"
  assert code(client.get("/v1/models", headers={"Host": "["}), 403) == "host_refused"
  assert code(client.post(URL, json=ok, headers={"Origin": "//["}), 403) == "origin_refused"
  assert serve._hosts("127.0.0.1", ["Box.local"]) == serve._hosts("127.0.0.1", ["box.local"])
  page = {"Origin": "https://evil.example"}
  assert code(client.post(URL, json=ok, headers=page), 403) == "origin_refused"
  assert code(client.post(URL, json=ok, headers={"Origin": "null"}), 403) == "origin_refused"
  own = {"Origin": str(client.base_url).rstrip("/")}
  assert client.post(URL, json=ok, headers=own).status_code == 200


def test_bodies_that_are_too_long_or_too_slow(small):
  _, client = small
  assert code(client.post(URL, content=b"x" * 6000), 413) == "too_large"

  def pieces(pause: float, first: bytes = b"") -> Iterator[bytes]:
    yield first
    for _ in range(6):
      time.sleep(pause)
      yield b" " * 1000

  json = {"Content-Type": "application/json"}
  assert code(client.post(URL, content=pieces(0), headers=json), 413) == "too_large"
  assert code(client.post(URL, content=pieces(0.3), headers=json), 408) == "timeout"
  form = {"Content-Type": "multipart/form-data; boundary=x"}
  head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
  assert (
    code(client.post("/v1/images/edits", content=pieces(0, head), headers=form), 413) == "too_large"
  )


def test_a_broken_length_is_refused(small):
  _, client = small
  host, port = client.base_url.host, client.base_url.port
  for value in ("-1", "1e3", "9" * 30):
    with socket.create_connection((host, port), timeout=10) as sock:
      head = f"POST {URL} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {value}\r\n"
      sock.sendall(f"{head}Connection: close\r\n\r\n".encode())
      assert sock.recv(100).split()[1] in (b"400", b"401", b"413")


def test_texts_and_numbers_of_a_chat(small):
  _, client = small
  long = {
    "messages": [{"role": "user", "content": "a" * 30}, {"role": "user", "content": "b" * 30}]
  }
  assert code(client.post(CHAT, json=long), 400) == "too_long"
  said = {"messages": [{"role": "user", "content": "a"}]}
  assert code(client.post(CHAT, json={**said, "max_tokens": 101}), 400) is None
  assert client.post(CHAT, json={**said, "max_tokens": 100}).status_code == 200


def test_bombs_are_refused_by_their_header(small):
  model, client = small
  model.calls.clear()
  for data, status, said in (
    (bomb(100_000, 100_000), 400, "too_large"),
    (bomb(80, 80), 400, "too_large"),
    (b"x" * 2100, 413, "too_large"),
    (b"GIF89a", 400, "invalid_image"),
    (b"<svg/>", 400, "invalid_image"),
  ):
    upload = client.post("/v1/images/edits", data={"prompt": "reconstruct"}, files={"image": data})
    assert code(upload, status) == said
    shown = client.post(CHAT, json=asked(DATA + base64.b64encode(data).decode()))
    assert code(shown, status) == said
  assert not model.calls


def test_a_bomb_is_not_decoded():
  begun = time.process_time()
  with pytest.raises(faults.Refused, match="pixels"):
    pictures.decode(bomb(100_000, 100_000), "image", Limits())
  assert time.process_time() - begun < 0.5


def test_formats_that_nobody_needs_are_not_tried():
  out = io.BytesIO()
  Image.new("RGB", (4, 4)).save(out, "TIFF")
  with pytest.raises(faults.Refused, match="no picture that can be read"):
    pictures.decode(out.getvalue(), "image", Limits())


def test_too_many_pictures(small, png):
  _, client = small
  body = asked(DATA + base64.b64encode(png).decode())
  body["messages"] = body["messages"] * 3
  assert code(client.post(CHAT, json=body), 400) == "too_many"


@pytest.mark.parametrize(
  "url",
  [
    "file:///etc/passwd",
    "/etc/passwd",
    "http://127.0.0.1/x.png",
    "https://example.org/x.png",
    "data:image/png,abc",
    "data:image/png;base64,@@@",
    "",
  ],
)
def test_nothing_but_data_urls_is_opened(small, url, monkeypatch):
  _, client = small
  opened: list[Any] = []
  monkeypatch.setattr(remote, "fetch", lambda *args: opened.append(args))
  code(client.post(CHAT, json=asked(url)), 400)
  assert not opened


def test_too_many_requests_in_hand():
  model = StandIn()
  with server(model, limits=Limits(requests=1)).running() as running:
    model.go.clear()
    with httpx.Client(base_url=running.url) as client:
      thread = threading.Thread(target=lambda: client.post(URL, json={"prompt": "a"}, timeout=20))
      thread.start()
      while running._service.worker.counts() != (0, 1):
        time.sleep(0.005)
      assert code(client.post(URL, json={"prompt": "a"}), 429) == "too_many_requests"
      model.go.set()
      thread.join()


# Pictures of other servers ------------------------------------------------------------------------


class Pages(BaseHTTPRequestHandler):
  """Pictures, redirects, and what is too much or too slow."""

  def do_GET(self) -> None:
    status, where, body = 200, None, self.server.png  # type: ignore[attr-defined]
    if self.path == "/moved":
      status, where = 302, "/x.png"
    elif self.path == "/private":
      status, where = 302, f"http://127.0.0.2:{self.server.server_port}/x.png"
    elif self.path == "/for-ever":
      status, where = 301, "/for-ever"
    elif self.path == "/file":
      status, where = 302, "file:///etc/passwd"
    elif self.path == "/nowhere":
      status, where = 302, "//["
    elif self.path == "/absent":
      status = 404
    elif self.path == "/long":
      body = b"x" * 100_000
    self.send_response(status)
    if where:
      self.send_header("Location", where)
    self.end_headers()
    if self.path == "/slow":
      for _ in range(100):
        self.wfile.write(b"x")
        time.sleep(0.05)
    self.wfile.write(body)

  def log_message(self, *args: Any) -> None:
    pass


@pytest.fixture(scope="module")
def pages(png: bytes) -> Iterator[str]:
  class Quiet(HTTPServer):
    def handle_error(self, *args: Any) -> None:
      pass

  found = Quiet(("127.0.0.1", 0), Pages)
  found.png = png  # type: ignore[attr-defined]
  threading.Thread(target=found.serve_forever, daemon=True).start()
  yield f"http://127.0.0.1:{found.server_port}"
  found.shutdown()
  found.server_close()


def loopback(address: remote.Address) -> bool:
  """For tests only: this address, and no other of this machine."""
  return str(address) == "127.0.0.1"


def test_a_picture_is_fetched(pages, png):
  for path in ("/x.png", "/moved", "/x.png?a=b"):
    assert remote.fetch(pages + path, "url", 10_000, loopback) == png


@pytest.mark.parametrize(
  ("path", "said"),
  [
    ("/private", "may not be asked"),
    ("/for-ever", "redirects"),
    ("/file", "http or https"),
    ("/nowhere", "could not be fetched"),
    ("/absent", "could not be fetched"),
    ("/long", "could not be fetched"),
  ],
)
def test_what_is_not_fetched(pages, path, said):
  with pytest.raises(faults.Refused, match=said):
    remote.fetch(pages + path, "url", 10_000, loopback)


def test_what_is_slow_is_given_up(pages, monkeypatch):
  monkeypatch.setattr(remote, "SECONDS", 0.5)
  begun = time.monotonic()
  with pytest.raises(faults.Refused, match="could not be fetched"):
    remote.fetch(f"{pages}/slow", "url", 10_000, loopback)
  assert time.monotonic() - begun < 2


@pytest.mark.parametrize(
  "url", ["http://", "http://a:b@127.0.0.1/", "http://127.0.0.1:x/", "http://[::1", "ftp://a/b"]
)
def test_what_is_no_url(url):
  with pytest.raises(faults.Refused):
    remote.fetch(url, "url", 10_000, loopback)


def test_private_addresses_are_never_asked(pages):
  for host in ("127.0.0.1", "localhost", "0.0.0.0", "[::1]"):
    with pytest.raises(faults.Refused, match="may not be asked"):
      remote.fetch(pages.replace("127.0.0.1", host), "url", 10_000)


@pytest.mark.parametrize(
  ("address", "public"),
  [
    ("8.8.8.8", True),
    ("2606:4700::1", True),
    ("127.0.0.1", False),
    ("10.1.2.3", False),
    ("172.16.0.1", False),
    ("192.168.1.1", False),
    ("169.254.169.254", False),
    ("100.64.0.1", False),
    ("0.0.0.0", False),
    ("224.0.0.1", False),
    ("240.0.0.1", False),
    ("255.255.255.255", False),
    ("::1", False),
    ("::", False),
    ("fe80::1", False),
    ("fd00::1", False),
    ("::ffff:10.0.0.1", False),
    ("::ffff:8.8.8.8", True),
    ("64:ff9b::a00:1", False),
    ("2002:a00:1::", False),
    ("2001:0:a00:1::", False),
    ("ff02::1", False),
  ],
)
def test_which_addresses_are_public(address, public):
  assert remote.is_public(ipaddress.ip_address(address)) is public


def test_one_private_address_refuses_a_host(monkeypatch):
  found = [(2, 1, 6, "", ("8.8.8.8", 80)), (2, 1, 6, "", ("10.0.0.1", 80))]
  monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **more: found)
  with pytest.raises(faults.Refused, match="may not be asked"):
    remote.fetch("http://rebound.example/x.png", "url", 10_000)


def test_the_connection_goes_to_the_address_that_was_checked(pages, png, monkeypatch):
  port = int(pages.rpartition(":")[2])
  answers = iter([[(2, 1, 6, "", ("127.0.0.1", port))]])  # a second look-up would fail
  monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **more: next(answers))
  got = remote.fetch(f"http://picture.example:{port}/x.png", "url", 10_000, loopback)
  assert got == png


def test_a_server_that_fetches(pages, png, monkeypatch):
  monkeypatch.setattr(remote.fetch, "__defaults__", (loopback,))
  model = StandIn()
  with (
    server(model, remote=True).running() as running,
    httpx.Client(base_url=running.url) as client,
  ):
    answer = client.post(CHAT, json=asked(f"{pages}/x.png")).json()
    assert answer["choices"][0]["message"]["content"] == "you said  30x20"
    assert code(client.post(CHAT, json=asked(f"{pages}/private")), 400) == "host_refused"
    code(client.post(CHAT, json=asked("file:///etc/passwd")), 400)
