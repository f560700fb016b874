import dataclasses

from flax import nnx
import jax
import numpy as np
import pytest

from blip3o_jax import sharding
from blip3o_jax.models import qwen_vision

CFG = qwen_vision.Config(
  dim=16, depth=3, heads=2, mlp_dim=24, out_dim=12, patch_size=2, window_size=8, full_layers=(1,)
)
GRIDS = ((4, 6), (6, 10), (2, 2))


@pytest.fixture(scope="module")
def model() -> qwen_vision.QwenVision:
  return build(CFG)


def build(cfg: qwen_vision.Config) -> qwen_vision.QwenVision:
  model = qwen_vision.QwenVision(cfg, rngs=nnx.Rngs(0))
  keys = iter(jax.random.split(jax.random.key(1), 64))
  state = nnx.state(model, nnx.Param)
  nnx.update(model, jax.tree.map(lambda p: p + 0.3 * jax.random.normal(next(keys), p.shape), state))
  return model


def images(n: int) -> np.ndarray:
  patches = np.random.default_rng(3).normal(size=(len(GRIDS), 60, CFG.patch_dim))
  return np.pad(patches.astype(np.float32), ((0, 0), (0, n - 60), (0, 0)), constant_values=5.0)


def test_layout_of_one_image():
  """A 4 x 6 grid in blocks of 2 x 2, windows of 4 x 4 patches."""
  out = qwen_vision.layout([(4, 6)], 28, CFG)
  expected = [(r + i, c + j) for r in (0, 2) for c in (0, 2, 4) for i in (0, 1) for j in (0, 1)]
  assert [tuple(p) for p in out.positions[0, :24]] == expected
  assert out.windows[0].tolist() == [1] * 8 + [2] * 4 + [1] * 8 + [2] * 4 + [0] * 4
  assert out.segments[0].tolist() == [1] * 24 + [0] * 4


def test_released_448_pixels_are_16_windows_of_64():
  out = qwen_vision.layout([(32, 32)], 1024, qwen_vision.VARIANTS["qwen2_5_vl_7b"])
  ids, counts = np.unique(out.windows, return_counts=True)
  assert ids.tolist() == list(range(1, 17))
  assert set(counts) == {64}


def test_images_do_not_see_each_other_nor_padding(model):
  together = jax.jit(lambda m, p, at: m(p, at))(
    model, images(64), qwen_vision.layout(GRIDS, 64, CFG)
  )
  assert together.shape == (3, 16, 12)
  for i, (h, w) in enumerate(GRIDS):
    alone = model(images(64)[i : i + 1, : h * w], qwen_vision.layout([(h, w)], h * w, CFG))
    scale = float(abs(alone).max())
    np.testing.assert_allclose(together[i, : h * w // 4], alone[0], rtol=0, atol=2e-6 * scale)


def test_other_sizes_are_the_same_program(model):
  run = jax.jit(lambda m, p, at: m(p, at))
  for grids in (GRIDS, ((8, 8), (2, 30), (6, 4))):
    run(model, images(64), qwen_vision.layout(grids, 64, CFG))
  assert run._cache_size() == 1


def test_window_layers_see_their_window_and_full_layers_the_image():
  grid, changed = [(4, 8)], images(60)[:1, :32].copy()
  changed[0, 0] += 1.0  # of the left window

  def moved(full: tuple[int, ...]) -> np.ndarray:
    model = build(dataclasses.replace(CFG, full_layers=full))
    at = qwen_vision.layout(grid, 32, CFG)
    run = jax.jit(lambda m, p: m(p, at))
    return np.abs(run(model, images(60)[:1, :32]) - run(model, changed)).max(-1)[0] > 1e-7

  left = np.array([1, 1, 0, 0, 1, 1, 0, 0], bool)
  np.testing.assert_array_equal(moved(()), left)
  assert moved((2,)).all()


@pytest.mark.parametrize(
  ("grids", "n", "message"),
  [([(4, 5)], 28, "4 x 5"), ([(8, 8)], 60, "8 x 8"), ([(2, 2)], 7, "not a multiple of 4")],
)
def test_layout_faults(grids, n, message):
  with pytest.raises(ValueError, match=message):
    qwen_vision.layout(grids, n, CFG)


@pytest.mark.parametrize(
  ("change", "message"),
  [(dict(heads=3), "heads"), (dict(window_size=10), "window_size"), (dict(depth=1), "beyond")],
)
def test_config_faults(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(CFG, **change)


def test_parameters_carry_axes():
  cfg = qwen_vision.VARIANTS["qwen2_5_vl_3b"]
  model = nnx.eval_shape(lambda: qwen_vision.QwenVision(cfg, rngs=nnx.Rngs(0)))
  axes = sharding.param_axes(model)
  assert axes["patch_embed/kernel"] == ("rest", "rest", "rest", "rest", "embed")
  assert axes["blocks/attn/proj/kernel"] == ("layers", "heads", "embed")
