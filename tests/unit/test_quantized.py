"""Int8 layers: what is rounded, by how much, and what does not change."""

from pathlib import Path
import re
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from blip3o_jax import chips
from blip3o_jax import layers
from blip3o_jax import quantized
from blip3o_jax.models import decoder_lm


def cosine(a: Any, b: Any) -> float:
  a, b = (np.asarray(x, np.float64).ravel() for x in (a, b))
  return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def error(found: Any, exact: Any) -> float:
  """Relative, by norms."""
  found, exact = np.asarray(found, np.float64), np.asarray(exact, np.float64)
  return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def layer(kernel: np.ndarray, bias: np.ndarray, *, backward: bool) -> quantized.Int8Linear:
  d_in, d_out = kernel.shape
  rngs: Any = layers.Shapes()
  kind: quantized.Quantize = "int8_backward" if backward else "int8"
  out: Any = quantized.linear(kind, d_in, d_out, ("embed", "mlp"), rngs=rngs)
  values, scale = quantized.quantize(kernel)
  out.kernel.set_value(jnp.asarray(values))
  out.scale.set_value(jnp.asarray(scale))
  out.bias.set_value(jnp.asarray(bias))
  return out


@pytest.fixture
def numbers() -> dict[str, np.ndarray]:
  """A kernel whose columns, and activations whose rows, differ a hundredfold in size."""
  rng = np.random.default_rng(0)

  def draw(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)

  sizes = np.geomspace(0.1, 10, 96, dtype=np.float32)
  return {
    "kernel": draw(256, 96) * sizes,
    "bias": draw(96),
    "x": draw(2, 20, 256) * np.geomspace(0.1, 10, 20, dtype=np.float32)[:, None],
    "g": draw(2, 20, 96),
  }


def test_a_kernel_comes_back_within_half_a_step_of_its_column(numbers):
  kernel = numbers["kernel"]
  kernel[:, 3] = 0
  values, scale = quantized.quantize(kernel)
  assert values.dtype == np.int8
  assert np.abs(values.astype(int)).max() <= 127
  assert np.all(np.abs(values).max(0)[scale > 0] >= 126), "the range is used"
  assert np.all(np.abs(values * scale - kernel) <= scale / 2 * 1.001)
  assert not values[:, 3].any()
  assert scale[3] == 0
  np.testing.assert_array_equal(scale.astype(ml_dtypes.bfloat16).astype(np.float32), scale)
  ours = jax.jit(quantized.quantize)(kernel)
  np.testing.assert_array_equal(scale, ours[1])
  assert np.mean(ours[0] != values) < 1e-3  # a division may round elsewhere
  rows = quantized.divide(kernel[10:20], quantized.scales(kernel))
  np.testing.assert_array_equal(rows, values[10:20])


@pytest.mark.parametrize("backward", [False, True])
def test_a_layer_and_its_gradient_are_near_those_in_float(numbers, backward):
  kernel, bias, x, g = (numbers[name] for name in ("kernel", "bias", "x", "g"))
  y, pull = jax.vjp(layer(kernel, bias, backward=backward), jnp.asarray(x))
  exact = x @ kernel + bias
  assert y.shape == exact.shape
  assert y.dtype == jnp.float32
  each = np.linalg.norm(y - exact, axis=-1) / np.linalg.norm(exact, axis=-1)
  assert each.min() > 1e-4
  assert each.max() < 0.02, "every row, small or large"
  columns = np.linalg.norm(y - exact, axis=(0, 1)) / np.linalg.norm(exact, axis=(0, 1))
  assert columns.max() < 0.04, "every column"
  found, plain = pull(jnp.asarray(g))[0], g @ kernel.T
  assert error(found, plain) < (0.02 if backward else 0.01)
  values, scale = quantized.quantize(kernel)
  stored = g @ (values * scale).T
  assert (error(found, stored) < 1e-5) == (not backward), "the gradient of what is stored"


def test_what_is_not_finite_stays_so(numbers):
  x = numbers["x"][0]
  x[1, 7], x[2, 5], x[3] = np.nan, np.inf, 0
  made = layer(numbers["kernel"], numbers["bias"], backward=False)
  y = np.asarray(made(jnp.asarray(x)))
  assert not np.isfinite(y[1:3]).any()
  assert np.isfinite(y[[0, *range(4, 20)]]).all()
  np.testing.assert_array_equal(y[3], numbers["bias"])
  broken = numbers["kernel"]
  broken[9, 2] = np.nan
  y = np.asarray(layer(broken, numbers["bias"], backward=False)(jnp.asarray(x[:1])))
  assert np.flatnonzero(np.isnan(y[0])).tolist() == [2]


def test_a_norm_is_rounded_as_what_it_gives(numbers):
  """To within half a step, from float32: a bfloat16 between them would add its own rounding."""
  norm = layers.RMSNorm(256)
  norm.scale.set_value(jnp.asarray(np.geomspace(0.01, 4, 256), jnp.float32))
  x = jnp.asarray(numbers["x"])
  exact, values, row = quantized.normed(norm, x)
  np.testing.assert_array_equal(exact, norm(x))
  assert np.abs(values.astype(int)).max(-1).tolist() == [[127] * 20] * 2
  assert np.all(np.abs(values * row - exact) <= row * 0.501)
  broken = numbers["x"][0]
  broken[1, 7], broken[2, 5], broken[3] = np.nan, np.inf, 0
  made = layer(numbers["kernel"], numbers["bias"], backward=False)
  y = np.asarray(made(quantized.normed(norm, jnp.asarray(broken))))
  assert not np.isfinite(y[1:3]).any()
  assert np.isfinite(y[[0, *range(4, 20)]]).all()


@pytest.mark.parametrize("backward", [False, True])
def test_the_gradient_through_a_rounded_norm_is_that_of_the_norm(numbers, backward):
  norm, x = layers.RMSNorm(256), jnp.asarray(numbers["x"])
  made = layer(numbers["kernel"], numbers["bias"], backward=backward)
  g = jnp.asarray(numbers["g"])
  found, plain = (
    jax.vjp(way, x)[1](g)[0]
    for way in (lambda x: made(quantized.normed(norm, x)), lambda x: made(norm(x)))
  )
  assert error(found, plain) < 1e-6


MIDDLE = dict(
  vocab_size=64,
  dim=512,
  depth=8,
  heads=8,
  kv_heads=2,
  head_dim=64,
  mlp_dim=1536,
  mrope_section=(8, 12, 12),
)


def quantised(model: decoder_lm.DecoderLM, kind: quantized.Quantize) -> decoder_lm.DecoderLM:
  """The same model with its linear layers in int8."""
  cfg = decoder_lm.Config(**{**MIDDLE, "quantize": kind})
  graphdef, shapes = nnx.split(layers.abstract(lambda r: decoder_lm.DecoderLM(cfg, rngs=r)))
  given = dict(nnx.to_flat_state(nnx.state(model)))
  out = {}
  for path, leaf in nnx.to_flat_state(shapes):
    if leaf.dtype == jnp.int8:
      kernel, scale = quantized.quantize(np.asarray(given[path][...]))
      out[path], out[(*path[:-1], "scale")] = leaf.replace(kernel), leaf.replace(scale)
    elif path in given:
      out[path] = given[path]
  return nnx.merge(graphdef, nnx.from_flat_state(list(out.items())))


def test_the_error_of_a_random_middling_model(fill):
  """512 wide, 8 deep: about 1 % of hidden vectors and caches, 1 to 3 % of a gradient."""
  cfg = decoder_lm.Config(**MIDDLE)
  exact = fill(lambda: decoder_lm.DecoderLM(cfg, rngs=nnx.Rngs(0)))
  rng = np.random.default_rng(1)
  tokens = jnp.asarray(rng.integers(0, 64, (2, 24)))
  segments = jnp.asarray(np.arange(24) >= [[0], [7]], jnp.int32)
  slots = jnp.asarray(rng.standard_normal((2, 8, 512)), jnp.float32)
  positions = decoder_lm.plain_positions(segments)
  after = positions[:, -1:] + 1 + jnp.arange(8)
  weights = jnp.asarray(rng.standard_normal(512), jnp.float32)

  @jax.jit
  def run(model: Any, slots: jax.Array) -> Any:
    x = model.embed(tokens)
    hidden, cache = model.prefill(x, positions, segments, 32)

    def read(slots: jax.Array) -> Any:
      found = model.extend(slots, after, cache)[0]
      return jnp.mean(jnp.tanh(found) @ weights), found

    grads, found = jax.grad(read, has_aux=True)(slots)
    return hidden, cache.k[:, :, :24], found, grads

  plain, models = run(exact, slots), {}
  kinds: tuple[quantized.Quantize, ...] = ("int8", "int8_backward")
  seen = segments[:, :, None] > 0
  for kind in kinds:
    models[kind] = run(quantised(exact, kind), slots)
    hidden, keys, found, grads = models[kind]
    assert 1e-3 < error(hidden * seen, plain[0] * seen) < 0.03
    assert 1e-3 < error(keys * seen[None, ..., None], plain[1] * seen[None, ..., None]) < 0.03
    assert 1e-3 < error(found, plain[2]) < 0.03
    assert cosine(grads, plain[3]) > 0.998
  np.testing.assert_array_equal(models["int8"][2], models["int8_backward"][2])
  assert error(models["int8"][3], models["int8_backward"][3]) > 1e-4


def test_only_the_seven_kernels_of_a_block_are_int8():
  cfg = decoder_lm.Config(**{**MIDDLE, "dim": 64, "mlp_dim": 96, "depth": 2, "quantize": "int8"})
  model = layers.abstract(lambda r: decoder_lm.DecoderLM(cfg, rngs=r))
  leaves = {"/".join(map(str, p)): v for p, v in nnx.to_flat_state(nnx.state(model))}
  int8 = [path for path, leaf in leaves.items() if leaf.dtype == jnp.int8]
  assert len(int8) == 7
  assert all(path.startswith("layers/") for path in int8)
  scale = leaves["layers/mlp/down_proj/scale"]
  assert (scale.shape, scale.dtype) == ((2, 64), jnp.float32)
  assert scale.get_metadata("axes") == ("layers", "embed")
  built = nnx.state(decoder_lm.DecoderLM(cfg, rngs=nnx.Rngs(0)))
  for path, leaf in nnx.to_flat_state(built):
    same = leaves["/".join(map(str, path))]
    assert (leaf.shape, leaf.dtype) == (same.shape, same.dtype)
    assert leaf.get_metadata("axes") == same.get_metadata("axes")
  kernel = built["layers"]["mlp"]["up_proj"]["kernel"][...]
  assert int(jnp.max(jnp.abs(kernel.astype(jnp.int32)))) in (126, 127), "random, not zeros"


def test_who_gains_is_said():
  """The rate of the matrix units and the whole step apart: v6e has the one and not the other."""
  leaves = {"a/kernel": jax.ShapeDtypeStruct((2, 2), jnp.int8)}
  assert quantized.said({}, "cpu") == ""
  for kind, step in (
    ("TPU v5", "and the 8B pretraining step, as planned, is 1.27 times as fast"),
    ("TPU v6 lite", "but the 8B pretraining step, as planned, is 1.01 times as fast: memory is"),
    ("TPU v5 lite", "a whole step in int8 was not planned there"),
  ):
    assert f"the matrix units of {kind} gain by it, {step}" in quantized.said(leaves, kind)
  for kind in ("TPU v4", "TPU7x", "cpu"):
    said = quantized.said(leaves, kind)
    assert f"the matrix units of {kind} are not known to gain by it" in said
    assert said.endswith(
      "(those of TPU v5 lite, TPU v5, TPU v6 lite gain; the whole step, as planned, on TPU v5)"
    )
  table = (Path(__file__).parents[2] / "docs/performance.md").read_text()
  for name in ("v5p:4x4x4", "v6e:8x8"):
    plain, low = (
      float(re.search(rf"\| {name}, {kind} \| ([\d.]+) \|", table)[1])
      for kind in ("bfloat16", "`int8_backward`")
    )
    assert chips.CHIPS[name.split(":")[0]].int8_step == plain / low
