"""What unit tests share: random parameters without compiling an initialiser; warnings as a list."""

from collections.abc import Callable
from typing import Any

from absl import logging as absl_logging
from flax import nnx
import jax.numpy as jnp
import numpy as np
import pytest

from blip3o_jax import trees


def _fill(make: Callable[[], nnx.Module], seed: int = 0) -> Any:
  graphdef, state = nnx.split(nnx.eval_shape(make))
  rng = np.random.default_rng(seed)
  flat = {}
  for path, leaf in trees.flatten(nnx.to_pure_dict(state)).items():
    fan_in = np.prod(leaf.shape[:-1]) if path.endswith("kernel") else 25
    value = rng.standard_normal(leaf.shape) / np.sqrt(fan_in) + path.endswith("scale")
    flat[path] = jnp.asarray(value, leaf.dtype)
  return nnx.merge(graphdef, trees.unflatten(flat))


@pytest.fixture(scope="session")
def fill() -> Callable[..., Any]:
  """fill(make, seed=0): the module of `make()` with random parameters, norms near 1."""
  return _fill


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
  """The lines that are logged as warnings."""
  lines: list[str] = []
  monkeypatch.setattr(absl_logging, "warning", lambda text, *args: lines.append(text % args))
  return lines
