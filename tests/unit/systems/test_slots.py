"""Reading slots: from embeddings, on one or three axes of positions, at a slot or one before it."""

from collections.abc import Callable
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip3o_jax.models import decoder_lm
from blip3o_jax.systems.parts import slots

CFG = decoder_lm.Config(
  vocab_size=32, dim=16, depth=2, heads=2, kv_heads=1, head_dim=8, mlp_dim=24,
  mrope_section=(1, 1, 2),
)  # fmt: skip
LENGTHS, LONGEST, COUNT = (7, 4), 7, 3


@pytest.fixture(scope="module")
def language(fill: Callable[..., Any]) -> decoder_lm.DecoderLM:
  return fill(lambda: decoder_lm.DecoderLM(CFG, rngs=nnx.Rngs(0)))


@pytest.fixture
def prompts() -> dict[str, jax.Array]:
  """Left-padded prompts, and positions of three axes as after a picture of 2 x 2 places."""
  rng = np.random.default_rng(0)
  segments = np.array([[0] * (LONGEST - n) + [1] * n for n in LENGTHS], np.int32)
  three = np.ones((3, 2, LONGEST), np.int32)
  three[:, 0] = [[0, 1, 1, 1, 1, 3, 4], [0, 1, 1, 2, 2, 3, 4], [0, 1, 2, 1, 2, 3, 4]]
  three[:, 1, 3:] = np.arange(4)
  return {
    "inputs": jnp.asarray(rng.standard_normal((2, LONGEST, 16)), jnp.float32),
    "segments": jnp.asarray(segments),
    "slots": jnp.asarray(rng.standard_normal((2, COUNT, 16)), jnp.float32),
    "three": jnp.asarray(three),
  }


def alone(language: Any, prompts: Any, row: int, positions: np.ndarray) -> np.ndarray:
  """Hidden vectors of one prompt and its slots, without padding, in one forward pass."""
  n = LENGTHS[row]
  x = jnp.concatenate([prompts["inputs"][row, -n:], prompts["slots"][row]])[None]
  return np.asarray(language(x, jnp.asarray(positions), jnp.ones((1, n + COUNT), jnp.int32))[0])


@pytest.mark.parametrize("offset", [0, -1])
@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("kind", ["stop", "full"])
def test_equals_a_full_pass(
  language: Any, prompts: dict[str, jax.Array], offset: Any, axes: int, kind: Any
) -> None:
  one = decoder_lm.plain_positions(prompts["segments"])
  positions = prompts["three"] if axes == 3 else one
  found = slots.read(
    language,
    prompts["inputs"],
    positions,
    prompts["segments"],
    prompts["slots"],
    offset,
    prompt_gradient=kind,
  )
  assert found.shape == (2, COUNT, 16)
  for row, n in enumerate(LENGTHS):
    where = np.arange(n + COUNT)[None]
    if axes == 3:
      own = np.asarray(prompts["three"])[:, row : row + 1, LONGEST - n :]
      after = np.broadcast_to(own.max() + 1 + np.arange(COUNT), (3, 1, COUNT))
      where = np.concatenate([own, after], -1)
    wanted = alone(language, prompts, row, where)[n + offset : n + offset + COUNT]
    np.testing.assert_allclose(found[row], wanted, rtol=2e-4, atol=2e-5)
