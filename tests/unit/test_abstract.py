"""A module that was built for its shapes alone is the one that random numbers would fill."""

from pathlib import Path

from flax import nnx
import pytest

from blip3o_jax import layers
from blip3o_jax.miniature import sizes
from blip3o_jax.systems import SYSTEMS
from blip3o_jax.systems.nexus_gen import released

TINY = Path(__file__).parents[1] / "data" / "tiny-nexus-gen"


@pytest.mark.parametrize("name", list(SYSTEMS))
def test_equals_the_traced_module(name: str) -> None:
  configs = {
    "blip3o": lambda: sizes.blip3o_shapes(3),
    "nexus_gen": lambda: released.read(TINY, "float32")[0],
    "contrast": sizes.contrast_shapes,
    "pixels": sizes.pixels_shapes,
  }
  cfg, system = configs[name](), SYSTEMS[name]
  traced = nnx.split(nnx.eval_shape(lambda: system.build(cfg, nnx.Rngs(0))))
  found = nnx.split(layers.abstract(lambda rngs: system.build(cfg, rngs)))
  assert found[0] == traced[0]
  before, after = (nnx.to_flat_state(state) for _, state in (traced, found))
  assert [path for path, _ in before] == [path for path, _ in after]
  for (path, a), (_, b) in zip(before, after, strict=True):
    assert (a.shape, a.dtype, a.get_metadata()) == (b.shape, b.dtype, b.get_metadata()), path
