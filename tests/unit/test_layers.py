"""Layers against numpy in float64, and the traps that they avoid."""

import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip3o_jax import layers
from blip3o_jax import rotary
from blip3o_jax import sharding


def normal(*shape, seed=0, scale=1.0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32) * scale


def randomise(module):
  """Gives every parameter a value that is neither zero nor one."""
  state = nnx.state(module, nnx.Param)
  leaves, tree = jax.tree.flatten(state)
  draws = [jnp.asarray(normal(*x.shape, seed=i)) for i, x in enumerate(leaves)]
  nnx.update(module, jax.tree.unflatten(tree, draws))
  return module


def close(found, expected, atol=5e-6):
  np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-5, atol=atol)


def test_linear():
  layer = randomise(layers.linear(6, 4, ("embed", "mlp"), rngs=nnx.Rngs(0)))
  x = normal(2, 3, 6, seed=9)
  close(layer(jnp.asarray(x)), x @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...]))
  assert sharding.param_axes(layer) == {"kernel": ("embed", "mlp"), "bias": ("mlp",)}


def test_linear_computes_in_its_dtype_and_stores_float32():
  layer = layers.linear(6, 4, ("embed", "mlp"), dtype="bfloat16", bias=False, rngs=nnx.Rngs(0))
  assert layer.kernel[...].dtype == jnp.float32
  assert layer(jnp.ones((1, 6))).dtype == jnp.bfloat16
  assert set(sharding.param_axes(layer)) == {"kernel"}


def test_initial_values_are_those_of_torch():
  layer = layers.linear(400, 300, ("embed", "mlp"), rngs=nnx.Rngs(0))
  for values in (layer.kernel[...], layer.bias[...]):
    assert abs(values).max() <= 1 / math.sqrt(400)
    assert abs(values).max() > 0.95 / math.sqrt(400)
  assert float(layer.kernel[...].std()) == pytest.approx(1 / math.sqrt(3 * 400), rel=0.02)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [None, ((0, 1), (0, 1))])
def test_conv(stride, padding):
  conv = randomise(layers.Conv(3, 5, 3, stride=stride, padding=padding, rngs=nnx.Rngs(0)))
  x = normal(2, 6, 8, 3, seed=9)
  side = padding or ((1, 1), (1, 1))
  padded = np.pad(x.astype(np.float64), ((0, 0), *side, (0, 0)))
  windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))[:, ::stride, ::stride]
  kernel = np.asarray(conv.kernel[...], np.float64)
  close(conv(jnp.asarray(x)), np.einsum("bhwcij,ijco->bhwo", windows, kernel) + conv.bias[...])


def test_rms_norm_scales_after_the_cast():
  norm = randomise(layers.RMSNorm(8))
  x = jnp.asarray(normal(3, 8, seed=5), jnp.bfloat16)
  y = np.float32(x) / np.sqrt((np.float32(x) ** 2).mean(-1, keepdims=True) + 1e-6)
  expected = norm.scale[...].astype(jnp.bfloat16) * jnp.asarray(y, jnp.bfloat16)
  np.testing.assert_array_equal(norm(x), expected)
  assert norm(x).dtype == jnp.bfloat16


def test_layer_norm():
  norm = randomise(layers.LayerNorm(8, eps=1e-3))
  x = normal(3, 8, seed=5) + 4
  y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-3)
  close(norm(jnp.asarray(x)), y * norm.scale[...] + norm.bias[...])
  close(layers.standardize(jnp.asarray(x), 1e-3), y)


def test_group_norm():
  norm = randomise(layers.GroupNorm(6, groups=2, eps=1e-3))
  x = normal(2, 4, 5, 6, seed=5) + 3
  groups = x.reshape(2, 20, 2, 3)
  mean, var = groups.mean((1, 3), keepdims=True), groups.var((1, 3), keepdims=True)
  y = ((groups - mean) / np.sqrt(var + 1e-3)).reshape(x.shape)
  close(norm(jnp.asarray(x)), y * norm.scale[...] + norm.bias[...])
  with pytest.raises(ValueError, match="6 channels do not divide into 4 groups"):
    layers.GroupNorm(6, groups=4, eps=1e-3)


def test_gated_mlp():
  mlp = randomise(layers.GatedMlp(4, 6, bias=True, dtype="float32", rngs=nnx.Rngs(0)))
  x = normal(2, 4, seed=9)

  def dense(layer, y):
    return y @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])

  gate = dense(mlp.gate_proj, x)
  expected = dense(mlp.down_proj, gate / (1 + np.exp(-gate)) * dense(mlp.up_proj, x))
  close(mlp(jnp.asarray(x)), expected, atol=2e-5)


def test_heads_split_and_merge():
  x = jnp.arange(24.0).reshape(1, 2, 12)
  heads = layers.split_heads(x, 3)
  assert heads.shape == (1, 2, 3, 4)
  assert float(heads[0, 1, 2, 3]) == 23
  np.testing.assert_array_equal(layers.merge_heads(heads), x)


def as_complex(x, layout):
  """The planes that are turned, as complex numbers."""
  half = x.shape[-1] // 2
  if layout is rotary.rotate_half:
    return x[..., :half] + 1j * x[..., half:]
  return x[..., ::2] + 1j * x[..., 1::2]


def rotate_pairs(x, angles):
  cos, sin = np.cos(angles[0]), np.sin(angles[0])
  table = np.repeat(cos, 2, -1), np.stack([-sin, sin], -1).reshape(len(sin), -1)
  flat = x.reshape(*x.shape[:2], -1)
  return rotary.rotate_pairs(flat, x.shape[2], table).reshape(x.shape)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("partner", ["halves", "pairs"])
def test_channels_are_swapped_alike_by_a_matmul(partner, dtype):
  x = jnp.asarray(normal(2, 3, 128, scale=100.0), dtype)
  moved = np.asarray(rotary.swap(x, partner).astype(jnp.float32))
  np.testing.assert_array_equal(rotary.swap_by_matmul(x, partner).astype(jnp.float32), moved)
  half = np.asarray(x.astype(jnp.float32))
  first = half[..., 64] if partner == "halves" else half[..., 1]
  np.testing.assert_array_equal(moved[..., 0], first)


def test_a_gated_product_has_the_gradient_of_its_formula():
  gate, up, g = (jnp.asarray(normal(3, 5, seed=i)) for i in range(3))
  formula = jax.vjp(lambda a, b: jax.nn.silu(a) * b, gate, up)
  found = jax.vjp(layers.gated, gate, up)
  np.testing.assert_array_equal(found[0], formula[0])
  for ours, theirs in zip(found[1](g), formula[1](g), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_layers_of_a_stack():
  stacked = layers.stack(lambda r: layers.linear(4, 4, ("embed", "mlp"), rngs=r), 3, nnx.Rngs(0))
  x = jnp.asarray(normal(2, 4))
  expected, _ = layers.scan(stacked, x, lambda layer, x: (layer(x), ()))
  for i in range(3):
    x = layers.layer_of(stacked, i)(x)
  np.testing.assert_allclose(x, expected, rtol=1e-6)


@pytest.mark.parametrize("rotate", [rotary.rotate_half, rotate_pairs])
def test_rotary_is_a_rotation(rotate):
  x, angles = normal(2, 5, 3, 8), normal(1, 5, 4, seed=1, scale=3.0)
  found = np.asarray(rotate(jnp.asarray(x), jnp.asarray(angles)))
  expected = as_complex(x, rotate) * np.exp(1j * angles)[:, :, None]
  np.testing.assert_allclose(as_complex(found, rotate), expected, atol=2e-6)


@pytest.mark.parametrize("rotate", [rotary.rotate_half, rotate_pairs])
def test_rotary_keeps_the_dtype_and_turns_in_float32(rotate):
  x = jnp.asarray(normal(1, 4, 1, 8), jnp.bfloat16)
  angles = jnp.asarray(normal(1, 4, 4, scale=1000.0))  # far positions: bfloat16 angles are noise
  found = rotate(x, angles)
  assert found.dtype == jnp.bfloat16
  exact = rotate(x.astype(jnp.float32), angles)
  np.testing.assert_array_equal(found, exact.astype(jnp.bfloat16))


def test_timestep_embedding():
  t = np.array([0.0, 1.0, 999.0, 0.5])
  freqs = 10000.0 ** (-np.arange(4) / 4)
  args = t[:, None] * freqs
  # float32 holds an angle of 999 to 3e-5.
  close(
    layers.timestep_embedding(jnp.asarray(t), 8),
    np.concatenate([np.cos(args), np.sin(args)], -1),
    atol=1e-4,
  )


def block(layer, x, scale):
  return x + layer(x) * scale, x.mean()


@pytest.mark.parametrize("remat", ["none", "full", "dots"])
def test_a_scan_equals_a_loop(remat):
  def make(rngs):
    return layers.GatedMlp(4, 6, bias=False, dtype="float32", rngs=rngs)

  stacked = layers.stack(make, 3, nnx.Rngs(0))
  axes = sharding.param_axes(stacked)
  assert axes["down_proj/kernel"] == ("layers", "mlp", "embed")
  scales, x = jnp.asarray([1.0, 2.0, 3.0]), jnp.asarray(normal(2, 4))
  graph, state = nnx.split(stacked)

  def scanned(state):
    y, means = layers.scan(nnx.merge(graph, state), x, block, (scales,), remat=remat)
    return (y**2).sum(), means

  def looped(state):
    y, means = x, []
    for i in range(3):
      layer = nnx.merge(graph, jax.tree.map(lambda leaf, i=i: leaf[i], state))
      y, mean = block(layer, y, scales[i])
      means.append(mean)
    return (y**2).sum(), jnp.stack(means)

  (a, a_means), a_grad = jax.value_and_grad(scanned, has_aux=True)(state)
  (b, b_means), b_grad = jax.value_and_grad(looped, has_aux=True)(state)
  close(a, b)
  close(a_means, b_means)
  jax.tree.map(close, a_grad, b_grad)


def test_layers_of_a_stack_differ():
  stacked = layers.stack(
    lambda rngs: layers.linear(4, 4, ("embed", "mlp"), rngs=rngs), 3, nnx.Rngs(0)
  )
  kernels = np.asarray(stacked.kernel[...])
  assert kernels.shape == (3, 4, 4)
  assert len({k.tobytes() for k in kernels}) == 3
