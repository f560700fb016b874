"""Files, local and behind addresses: ranges, the cache, attempts, and errors that name the object.

The web server runs here in a thread; it can fail, cut answers and ignore ranges.
"""

from concurrent import futures
import http.server
import os
import re
import sys
import tarfile
import threading
import time

from fakes import write_tar
import fsspec
import layouts
import numpy as np
import pytest

from blip3o_jax import cli
from blip3o_jax import files
from blip3o_jax.data import remote
from blip3o_jax.data import sources
from blip3o_jax.data import storage
from blip3o_jax.data.sources.reading import Reading

DATA = np.random.default_rng(0).integers(0, 256, 10_000, np.uint8).tobytes()
QUICK = storage.Limits(block_bytes=1000, cache_bytes=4000, retries=3, first_wait=0.001, trust=60)


class Server(http.server.ThreadingHTTPServer):
  """Serves DATA as /a.bin and a page of links as /; `faults` are spent one a request for ranges."""

  def __init__(self):
    super().__init__(("127.0.0.1", 0), Handler)
    self.asked, self.faults, self.tag = [], [], '"1"'

  @property
  def address(self):
    return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"

  def log_message(self, *args):
    pass

  def do_HEAD(self):
    self.do_GET()

  def do_GET(self):
    name, bounds, fault = self.path.lstrip("/"), self.headers.get("Range"), None
    if self.command == "GET" and bounds:
      self.server.asked.append(bounds)
      fault = self.server.faults.pop(0) if self.server.faults else None
    status, kind, data = 200, "application/octet-stream", DATA
    if name == "":
      kind, data = "text/html", b'<a href="a.bin">a</a> <a href="b.tar">b</a>'
    elif name in ("404", "403"):
      status, data = int(name), b"no"
    elif isinstance(fault, int):
      status, data = fault, b"later"
    elif bounds and fault != "whole":
      first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", bounds).groups())
      status, data = 206, DATA[first : last + 1]
      if fault == "short":
        data = data[:-1]
    self.send_response(status)
    self.send_header("Content-Type", kind)
    self.send_header("Content-Length", str(len(data)))
    self.send_header("ETag", self.server.tag)
    self.end_headers()
    if self.command == "GET":
      self.wfile.write(data)


@pytest.fixture
def server():
  server = Server()
  thread = threading.Thread(target=server.serve_forever, args=(0.01,))
  thread.start()
  storage.limit(QUICK)
  yield server
  storage.limit(storage.Limits())
  server.shutdown()
  thread.join()
  server.server_close()


@pytest.fixture
def memory(request):
  files = fsspec.filesystem("memory")
  home = "/" + re.sub(r"\W", "-", request.node.name)
  for name in ("b.TAR", "a.tar", ".c.tar", "d.txt", "in/e.tar"):
    files.pipe(f"{home}/{name}", DATA)
  storage.limit(QUICK)
  yield f"memory:/{home}"
  storage.limit(storage.Limits())
  files.rm(home, recursive=True)


@pytest.fixture
def local(tmp_path):
  for name in ("b.TAR", "a.tar", ".c.tar", "d.txt", "in/e.tar"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(DATA)
  return str(tmp_path)


@pytest.fixture(params=["local", "memory"])
def home(request):
  return request.getfixturevalue(request.param)


def test_a_folder(home):
  assert storage.listed(home, ".tar") == ["a.tar", "b.TAR"]
  assert storage.listed(home, ".tar", ".txt") == ["a.tar", "b.TAR", "d.txt"]
  assert storage.listed(home, ".tar", recursive=True) == ["a.tar", "b.TAR", "in/e.tar"]
  assert storage.listed(home + "/") == ["a.tar", "b.TAR", "d.txt"]
  with pytest.raises(FileNotFoundError, match="absent: no such"):
    storage.listed(storage.join(home, "absent"), ".tar")
  with pytest.raises(FileNotFoundError, match=r"a\.tar: a file; expected the folder"):
    storage.listed(storage.join(home, "a.tar"))
  assert storage.isdir(home)
  assert storage.isdir(storage.join(home, "in"))
  assert not storage.isdir(storage.join(home, "a.tar"))
  assert storage.isfile(storage.join(home, "in/e.tar"))
  assert not storage.isfile(storage.join(home, "in"))
  assert not storage.isfile(storage.join(home, "absent"))


def test_ranges(home):
  path = storage.join(home, "a.tar")
  assert storage.stat(path).size == len(DATA)
  for offset, size in ((0, 10), (990, 20), (999, 1), (1000, 1000), (0, 10_000), (9_990, 50)):
    assert storage.read(path, offset, size) == DATA[offset : offset + size]
  assert storage.read(path, 10_000, 5) == storage.read(path, 20_000, 5) == b""
  buffers = [bytearray(7), memoryview(bytearray(3000)), bytearray(100)]
  assert storage.read_into(path, 500, buffers) == 3107
  assert b"".join(buffers) == DATA[500:3607]
  assert storage.read_into(path, 9_000, buffers) == 1000
  assert b"".join(buffers)[:1000] == DATA[9_000:]
  for absent in (storage.join(home, "absent"), storage.join(home, "in")):
    with pytest.raises(OSError, match=re.escape(absent)):
      storage.read(absent, 0, 1)
    with pytest.raises(FileNotFoundError, match=re.escape(absent)):
      storage.stat(absent)


def test_as_a_stream(home, tmp_path):
  path = storage.join(home, "a.tar")
  with storage.opened(path) as stream:
    assert stream.read() == DATA
    stream.seek(-10, os.SEEK_END)
    assert stream.read(20) == DATA[-10:]
    assert stream.seek(5) == stream.tell() == 5
    stream.seek(100, os.SEEK_CUR)
    assert stream.read(3) == DATA[105:108]


def test_a_tar_is_read_through_a_stream(memory, tmp_path):
  members = {f"{i}.bin": DATA[i : i + 2000] for i in range(4)}
  write_tar(tmp_path / "x.tar", members)
  fsspec.filesystem("memory").pipe(f"{memory}/x.tar", (tmp_path / "x.tar").read_bytes())
  with storage.opened(f"{memory}/x.tar") as stream, tarfile.open(fileobj=stream) as tar:
    assert {m.name: tar.extractfile(m).read() for m in tar} == members


def test_names(tmp_path):
  assert storage.join("a", "b") == storage.join("a/", "b") == "a/b"
  assert storage.join("gs://x/", "b") == storage.join("gs://x", "b") == "gs://x/b"
  assert storage.join("a", "/b") == "/b"
  assert storage.join("/", "b") == "/b"
  assert storage.join("a", "hf://datasets/b/c") == "hf://datasets/b/c"
  assert storage.is_remote("s3://bucket/x.tar")
  assert not storage.is_remote("/data/a:b//c")
  assert not storage.is_remote("/data/x://y")


def test_links_are_followed_once(local):
  os.symlink(local, os.path.join(local, "in", "again"))
  assert storage.listed(local, ".tar", recursive=True) == ["a.tar", "b.TAR", "in/e.tar"]


def test_descriptors_are_bounded_and_shared(tmp_path):
  few = storage._Descriptors(3)
  paths = [tmp_path / f"{i}" for i in range(6)]
  for i, path in enumerate(paths):
    path.write_bytes(bytes([i]) * 50_000)
  before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0

  def work(i):
    return few.read(str(paths[i % 6]), i, 40_000) == bytes([i % 6]) * 40_000

  with futures.ThreadPoolExecutor(8) as pool:
    assert all(pool.map(work, range(600)))
  assert len(few._open) == 3
  if sys.platform == "linux":
    assert len(os.listdir("/proc/self/fd")) <= before + 3


def test_an_error_of_the_system_names_the_file(tmp_path, monkeypatch):
  (tmp_path / "a").write_bytes(b"abc")

  def broken(*args):
    raise OSError(5, "Input/output error")

  monkeypatch.setattr(os, "pread", broken)
  monkeypatch.setattr(os, "preadv", broken)
  for read in (lambda p: storage.read(p, 0, 3), lambda p: storage.read_into(p, 0, [bytearray(3)])):
    with pytest.raises(OSError, match=rf"Input/output error: '{tmp_path}/a'"):
      read(str(tmp_path / "a"))


def test_a_file_in_place_of_another_is_read(tmp_path, monkeypatch):
  path = tmp_path / "a"
  path.write_bytes(b"old")
  assert storage.read(str(path), 0, 3) == b"old"
  stamp = storage.stat(str(path))
  (tmp_path / "b").write_bytes(b"new")
  os.replace(tmp_path / "b", path)
  os.utime(path, ns=(1, 1))
  assert storage.stat(str(path)) != stamp  # which is never kept
  monkeypatch.setattr(storage, "_TRUST", 0)
  assert storage.read(str(path), 0, 3) == b"new"
  path.unlink()
  with pytest.raises(FileNotFoundError, match=re.escape(str(path))):
    storage.read(str(path), 0, 3)


def test_blocks_are_fetched_once_and_kept_within_bounds(server):
  path = f"{server.address}/a.bin"
  assert storage.read(path, 1500, 100) == DATA[1500:1600]
  assert storage.read(path, 1000, 1000) == DATA[1000:2000]
  assert server.asked == ["bytes=1000-1999"]
  assert storage.read(path, 500, 3000) == DATA[500:3500]
  assert server.asked[1:] == ["bytes=0-999", "bytes=2000-3999"]  # what lies together, at once
  assert storage.read(path, 0, 10_000) == DATA
  held = storage._objects._blocks
  assert held._bytes == sum(len(block.result()) for block in held._held.values()) <= 4000
  asked = len(server.asked)
  assert storage.read(path, 9_500, 500) == DATA[9_500:]
  assert len(server.asked) == asked  # the latest are those that are kept
  storage.read(path, 0, 1)
  assert len(server.asked) == asked + 1


def test_threads_that_want_a_block_fetch_it_once(server):
  path = f"{server.address}/a.bin"
  with futures.ThreadPoolExecutor(8) as pool:
    got = list(pool.map(lambda i: storage.read(path, i, 2000), range(100)))
  assert got == [DATA[i : i + 2000] for i in range(100)]
  assert len(server.asked) <= 3


@pytest.mark.parametrize("fault", [503, 429, "short"])
def test_errors_that_pass(server, fault, caplog):
  server.faults = [fault] * 3
  assert storage.read(f"{server.address}/a.bin", 0, 10) == DATA[:10]
  assert len(server.asked) == 4
  assert "bytes 0 to 1000 of 10000: " in caplog.text


def test_errors_that_do_not_pass_end(server):
  path = f"{server.address}/a.bin"
  server.faults = [503] * 99
  start = time.monotonic()
  with pytest.raises(
    files.Unreachable, match=rf"{path}: bytes 2000 to 3000 of 10000 .* 4 attempts.*503"
  ):
    storage.read(path, 2500, 10)
  assert len(server.asked) == 4
  assert time.monotonic() - start < 5
  server.faults = []
  assert storage.read(path, 2500, 10) == DATA[2500:2510]  # nothing is kept of the error


@pytest.mark.parametrize(
  ("name", "error", "match"),
  [("404", FileNotFoundError, "no such file"), ("403", PermissionError, "refused")],
)
def test_what_is_not_tried_again(server, name, error, match, caplog):
  with pytest.raises(error, match=f"{server.address}/{name}: {match}"):
    storage.read(f"{server.address}/{name}", 0, 10)
  assert not caplog.text


def test_a_server_without_ranges_is_named(server):
  server.faults = ["whole"]
  with pytest.raises(OSError, match="10000 bytes came for 1000: the server does not serve ranges"):
    storage.read(f"{server.address}/a.bin", 0, 10)
  assert len(server.asked) == 1


def test_a_server_that_is_not_there(server):
  address = "http://127.0.0.1:9/a.bin"  # the port that discards
  said = r"127.0.0.1:9/a.bin: its size could not be read in 4 attempts"
  with pytest.raises(files.Unreachable, match=said):
    storage.read(address, 0, 1)
  # No record is damaged by that, nothing stands in, and the same command may be given again.
  assert not issubclass(files.Unreachable, OSError | ValueError)
  assert cli.guarded("train", lambda: storage.read(address, 0, 1)) == os.EX_TEMPFAIL


@pytest.mark.parametrize("kind", ["tar", "parquet", "jsonl", "arrayrecord"])
def test_an_outage_is_no_damage_of_a_record(kind, tmp_path, monkeypatch):
  """Of a set behind an address that goes away after it was opened."""
  home = tmp_path / "set"
  members = {"a.png": layouts.picture(1), "a.txt": b"a cat"}
  if kind == "parquet":
    pytest.importorskip("pyarrow")
    layouts.table(home / "a.parquet", [{"text": "a cat", "image": members["a.png"]}])
  elif kind == "jsonl":
    layouts.put(home, "a.png", members["a.png"])
    layouts.put(home, "a.jsonl", layouts.lines([{"caption": "a cat", "image": "a.png"}]))
  else:
    home.mkdir()
    write_tar(home / "a.tar", members)
  if kind == "arrayrecord":
    assert cli.main(["pack", str(home), "--output", str(tmp_path / "packed")]) == 0
    home = tmp_path / "packed"
  place = f"/{tmp_path.name}-{kind}"
  memory = fsspec.filesystem("memory")
  memory.put(str(home), place, recursive=True)
  storage.limit(remote.Limits(retries=1, first_wait=0.001, trust=0, cache_bytes=0))
  try:
    source = sources.opened(f"memory:/{place}", Reading())
    assert source[0].prompt == "a cat"

    def gone(*args, **options):
      raise ConnectionError("the network is unreachable")

    for name in ("cat_file", "info"):
      monkeypatch.setattr(type(memory), name, gone)
    with pytest.raises(files.Unreachable, match="could not be read in 2 attempts"):
      source[0]
  finally:
    monkeypatch.undo()
    memory.rm(place, recursive=True)
    storage.limit(storage.Limits())


def test_a_page_of_links_is_a_folder(server):
  assert storage.listed(server.address) == ["a.bin", "b.tar"]
  assert storage.isdir(server.address + "/")
  assert not storage.isdir(f"{server.address}/a.bin")
  assert storage.isfile(f"{server.address}/a.bin")


def test_a_changed_object_is_asked_for_again(server):
  path = f"{server.address}/a.bin"
  storage.limit(storage.Limits(block_bytes=1000, trust=0))
  before = storage.stat(path)
  storage.read(path, 0, 10)
  server.tag = '"2"'
  assert storage.stat(path) != before
  storage.read(path, 0, 10)
  assert len(server.asked) == 2


def test_what_is_missing_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "s3fs", None)
  with pytest.raises(ValueError, match=r"s3://b/x: .*pip install blip3o-jax\[remote\] s3fs"):
    storage.read("s3://b/x", 0, 1)
  with pytest.raises(ValueError, match="nosuch://b/x: Protocol not known"):
    storage.read("nosuch://b/x", 0, 1)
  monkeypatch.setitem(sys.modules, "fsspec", None)
  with pytest.raises(ValueError, match=r"memory://x: reading it needs fsspec: pip install"):
    storage.read("memory://x", 0, 1)


def test_limits():
  with pytest.raises(ValueError, match=r"limits\.block_bytes: 0; expected 1 or more"):
    remote.Limits(block_bytes=0)
