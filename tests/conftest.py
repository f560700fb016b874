"""What every test gets: the CPU, the same random seeds, and no network."""

from collections.abc import Iterator
import os
from pathlib import Path
import random
import secrets
import shutil
import socket
import sys
import tempfile
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before the first import of jax
# No test reads or writes the user's compiled programs. What one process of a run of the tests
# compiles, its others read: many train the same few steps, and go on with them.
os.environ["BLIP3O_TEST_PROGRAMS"] = os.environ.get("BLIP3O_TEST_PROGRAMS") or tempfile.mkdtemp(
  prefix="blip3o-programs-"
)
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "true"
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["BLIP3O_TEST_PROGRAMS"]
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
# Most of a test's time goes to compiling programs that run once, on a few rows. Without LLVM's
# optimizer they compile in two thirds of the time, within the same bars, and the older emitters of
# fusions, which JAX 0.10 still has, take a quarter less of that. The processes that a test starts
# inherit both.
os.environ["XLA_FLAGS"] = " ".join(
  [
    "--xla_backend_optimization_level=0",
    *(["--xla_cpu_use_fusion_emitters=false"] if sys.version_info < (3, 12) else []),
    os.environ.get("XLA_FLAGS", ""),
  ]
).strip()
# Sizes of random networks differ from run to run; the processes of one run inherit its seed.
os.environ.setdefault("BLIP3O_SIZES_SEED", str(secrets.randbelow(10**6)))

from absl import logging
import jax
import numpy as np
import pytest

# Of this process, not left to whether a test asks for a model before another starts JAX.
jax.config.update("jax_num_cpu_devices", 1)

SIZES_SEED = os.environ["BLIP3O_SIZES_SEED"]
MAPS = 16_000  # of a process of the tests; one module adds up to 5000
LOCAL = ("127.", "::1", "localhost", "0.0.0.0", "::")


class NetworkBlocked(OSError):
  """A test reached for the network."""


def is_local(host: Any) -> bool:
  """Whether a host stays on this machine; None and "" stand for it."""
  text = host.decode() if isinstance(host, bytes) else host
  return not text or text in LOCAL[1:] or text.startswith(LOCAL[0])


class _Guard:
  """Stands before the functions of `socket` that reach out; remembers what it refused."""

  def __init__(self) -> None:
    self.refused: list[str] = []

  def check(self, what: str, host: Any) -> None:
    if not is_local(host):
      self.refused.append(f"{what} {host!r}")
      raise NetworkBlocked(f"tests touch no network: {what} {host!r}")

  def install(self) -> None:
    """Wraps connect, connect_ex, sendto and the look-ups, for the life of the process."""
    for name in ("connect", "connect_ex", "sendto"):
      setattr(socket.socket, name, self._method(name))
    for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
      setattr(socket, name, self._function(name))

  def _method(self, name: str) -> Any:
    original = getattr(socket.socket, name)

    def wrapped(sock: socket.socket, *args: Any) -> Any:
      address = args[-1]
      if sock.family in (socket.AF_INET, socket.AF_INET6) and isinstance(address, tuple):
        self.check(name, address[0])
      return original(sock, *args)

    return wrapped

  def _function(self, name: str) -> Any:
    original = getattr(socket, name)

    def wrapped(host: Any, *args: Any, **kwargs: Any) -> Any:
      if host != socket.gethostname():  # the name of this machine: a server asks for it at start
        self.check(name, host)
      return original(host, *args, **kwargs)

    return wrapped


GUARD = _Guard()
GUARD.install()


def pytest_addoption(parser: pytest.Parser) -> None:
  parser.addoption(
    "--update-golden", action="store_true", help="rewrite the golden files instead of comparing"
  )


def pytest_unconfigure(config: pytest.Config) -> None:
  if not hasattr(config, "workerinput"):  # not in a process that pytest-xdist started
    shutil.rmtree(os.environ["BLIP3O_TEST_PROGRAMS"], ignore_errors=True)


def pytest_report_header() -> str:
  return f"random sizes: BLIP3O_SIZES_SEED={SIZES_SEED}"


@pytest.fixture
def sizes(request: pytest.FixtureRequest) -> np.random.Generator:
  """Draws sizes, different in every run; the seed is printed with a failure and repeats them."""
  print(f"BLIP3O_SIZES_SEED={SIZES_SEED}")
  return np.random.default_rng([int(SIZES_SEED), *request.node.name.encode()])


@pytest.fixture(autouse=True)
def _no_network() -> Iterator[None]:
  """Fails the test that reached out, even where the library swallowed the error."""
  GUARD.refused.clear()
  yield
  if GUARD.refused:
    pytest.fail(f"reached for the network: {', '.join(GUARD.refused)}")


@pytest.fixture(autouse=True, scope="module")
def _few_maps() -> Iterator[None]:
  """Lets compiled programs go before the process has as many memory maps as Linux allows.

  A program that is compiled for the CPU takes three to twelve of them, and jax keeps the last 4096
  that ran, and their memory; the limit is 65,530 by default, and a process that meets it is ended.
  """
  yield
  maps = Path("/proc/self/maps")
  if "jax" in sys.modules and maps.exists() and maps.read_bytes().count(b"\n") > MAPS:
    sys.modules["jax"].clear_caches()


@pytest.fixture
def refused() -> list[str]:
  """What the guard refused in this test so far; a test that provokes it clears the list."""
  return GUARD.refused


@pytest.fixture(autouse=True)
def _same_seeds() -> None:
  """The global generators start equal in every test; jax has none."""
  random.seed(0)
  np.random.seed(0)
  if "torch" in sys.modules:
    sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True)
def _usual_verbosity() -> None:
  """Commands that ran in this process before set how much is logged."""
  logging.set_verbosity(logging.WARNING)


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
  """Whether `--update-golden` was given."""
  return bool(request.config.getoption("--update-golden"))
