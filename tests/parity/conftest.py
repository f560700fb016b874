"""What the parity tests share: the recorded tensors, one comparison, one table of errors."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import pytest

from blip3o_jax.systems.parts.recorded import SLACK
from blip3o_jax.verify.compare import relative_error
from blip3o_jax.weights.safetensors import Tensors

TINY = Path(__file__).parents[1] / "data" / "tiny-blip3o"


class Recorded(Mapping[str, np.ndarray]):
  """Recorded inputs and outputs by name, read on demand; "decoder." prefixes the second file."""

  def __init__(self) -> None:
    self._main = Tensors(TINY / "io.safetensors")
    self._decoder = Tensors(TINY / "diffusion-decoder" / "io.safetensors")

  def __getitem__(self, name: str) -> np.ndarray:
    if name.startswith("decoder."):
      return self._decoder.read(name.removeprefix("decoder."))
    return self._main.read(name)

  def __iter__(self) -> Iterator[str]:
    yield from self._main
    yield from (f"decoder.{name}" for name in self._decoder)

  def __len__(self) -> int:
    return len(self._main) + len(self._decoder)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
  """The table; rows travel in the reports, so it also works over several processes."""
  reports = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, [])]
  found = [p for r in reports if r.when == "call" for p in r.user_properties]
  rows = [value for name, value in found if name == "parity"]
  if not rows:
    return
  terminalreporter.section("parity: relative errors")
  width = max(len(name) for name, *_ in rows)
  for name, shape, error, bar in rows:
    verdict = "" if error <= SLACK * bar else "  FAILED"
    terminalreporter.write_line(
      f"{name:<{width}}  {shape:<20}  {error:.2e}  bar {bar:.1e}{verdict}"
    )


@pytest.fixture(autouse=True)
def _highest_precision() -> Iterator[None]:
  """Float32 matmuls in float32 on every platform."""
  with jax.default_matmul_precision("highest"):
    yield


@pytest.fixture(scope="session")
def recorded() -> Recorded:
  """recorded[name] -> numpy array of an io.safetensors file."""
  return Recorded()


@pytest.fixture
def check(recorded: Recorded, request: pytest.FixtureRequest) -> Callable[..., None]:
  """check(name, value, bar, expected=None): relative error <= 1.5 bar, and a row of the table.

  `expected` defaults to `recorded[name]`. A bar of 0 asks for equality.
  """

  def run(name: str, value: object, bar: float, expected: object | None = None) -> None:
    found = np.asarray(value)
    wanted = recorded[name] if expected is None else np.asarray(expected)
    error = relative_error(found, wanted)
    request.node.user_properties.append(("parity", (name, str(found.shape), error, bar)))
    assert error <= SLACK * bar, f"{name}: relative error {error:.2e}, bar {bar:.1e} x {SLACK}"

  return run


@pytest.fixture
def one_table(monkeypatch):
  """PyTorch with our frequencies: the last bit of its own is of the processor it runs on."""
  from diffusers.models import embeddings
  import torch

  from blip3o_jax import layers
  from blip3o_jax.verify.torch import nexus_decoders

  def ours(dim):
    return torch.from_numpy(layers.sinusoid_frequencies(dim, 10_000.0))

  def embedded(t, dim, flip_sin_to_cos=False, **_):
    assert flip_sin_to_cos
    angles = t[:, None].float() * ours(dim)
    return torch.cat([angles.cos(), angles.sin()], -1)

  monkeypatch.setattr(embeddings, "get_timestep_embedding", embedded)
  monkeypatch.setattr(nexus_decoders, "frequencies", lambda half=128: ours(2 * half))
