"""The Next-DiT: sizes, initialisation, rotary embeddings, grouped heads, what `prepare` covers."""

import dataclasses
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip3o_jax import rotary
from blip3o_jax import sharding
from blip3o_jax import trees
from blip3o_jax.models import next_dit

SMALL = next_dit.Config(
  in_channels=6, grid=4, condition_dim=20, dim=32, depth=2, heads=4, kv_heads=4, multiple_of=16
)
THREE_D = dataclasses.replace(SMALL, rope="3d", rope_axes=(4, 2, 2))


def flat(model: nnx.Module) -> dict[str, Any]:
  return trees.flatten(nnx.to_pure_dict(nnx.state(model)))


def rebuilt(model: nnx.Module, values: dict[str, Any]) -> Any:
  return nnx.merge(nnx.graphdef(model), trees.unflatten(values))


def randomised(cfg: next_dit.Config, seed: int = 0) -> next_dit.NextDiT:
  """A network whose gates, norms and biases are away from their neutral values; no compiling."""
  model = nnx.eval_shape(lambda: next_dit.NextDiT(cfg, rngs=nnx.Rngs(0)))
  rng = np.random.default_rng(seed)
  values = {}
  for path, abstract in flat(model).items():
    value = rng.normal(size=abstract.shape).astype(np.float32)
    if path.endswith("kernel"):
      value *= abstract.shape[-2] ** -0.5
    values[path] = jnp.asarray(1 + 0.2 * value if path.endswith("scale") else value)
  return rebuilt(model, values)


def inputs(cfg: next_dit.Config, batch: int = 2, side: int = 4) -> tuple[jax.Array, ...]:
  rng = np.random.default_rng(1)
  x = rng.normal(size=(batch, side, side, cfg.in_channels)).astype(np.float32)
  t = np.linspace(40, 960, batch).astype(np.float32)
  z = rng.normal(size=(batch, 5, cfg.condition_dim)).astype(np.float32)
  return jnp.asarray(x), jnp.asarray(t), jnp.asarray(z)


prepared = jax.jit(lambda model, z: model.prepare(z))
called = jax.jit(lambda model, x, t, condition: model(x, t, condition))


@jax.jit
def velocity(model: next_dit.NextDiT, x: jax.Array, t: jax.Array, z: jax.Array) -> jax.Array:
  return model(x, t, model.prepare(z))


@pytest.mark.parametrize(
  ("name", "count"), [("blip3o_4b", 1_362_257_824), ("blip3o_8b", 1_365_010_336)]
)
def test_released_parameter_counts(name: str, count: int) -> None:
  cfg = next_dit.VARIANTS[name]
  assert cfg.mlp_dim == 4864
  model = nnx.eval_shape(lambda: next_dit.NextDiT(cfg, rngs=nnx.Rngs(0)))
  assert sum(math.prod(v.shape) for v in flat(model).values()) == count
  sharding.param_axes(model)


def test_initialisation() -> None:
  """PyTorch's defaults: U(1/sqrt(fan_in)), norms 1, gates 0 (spec 3.6)."""
  cfg = dataclasses.replace(SMALL, dim=64, multiple_of=64)
  values = flat(next_dit.NextDiT(cfg, rngs=nnx.Rngs(0)))
  for path, value in values.items():
    name = path.split("/")[-1]
    if name == "gate":
      np.testing.assert_array_equal(value, 0)
    elif name == "scale":
      np.testing.assert_array_equal(value, 1)
    elif name == "bias" and "norm_q" not in path and "norm_k" not in path:
      if path.endswith("caption_embedder/norm/bias"):
        np.testing.assert_array_equal(value, 0)
        continue
      fan_in = values[path.replace("bias", "kernel")].shape[-2]
      assert 0 < np.abs(value).max() <= fan_in**-0.5, path
    elif name == "kernel":
      bound = value.shape[-2] ** -0.5
      assert 0.95 * bound < np.abs(value).max() <= bound, path
      assert np.std(value) == pytest.approx(bound / 3**0.5, rel=0.05), path


def test_the_cross_attention_starts_switched_off() -> None:
  model = randomised(SMALL)
  model = rebuilt(model, flat(model) | {"layers/gate": jnp.zeros((2, 4))})
  x, t, z = inputs(SMALL)
  condition = prepared(model, z)
  other = condition.replace(k=condition.k + 1, v=2 * condition.v)
  wanted = called(model, x, t, condition)
  np.testing.assert_array_equal(called(model, x, t, other), wanted)
  pooled = condition.replace(pooled=condition.pooled + 1)
  assert np.abs(called(model, x, t, pooled) - wanted).max() > 1e-4


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_grouped_heads_equal_repeated_ones(kv_heads: int) -> None:
  """Query head n uses kv head n // (heads / kv_heads): the same as a full one with repeats."""
  grouped = randomised(dataclasses.replace(SMALL, kv_heads=kv_heads))
  full = randomised(SMALL)
  values = {}
  for path, value in flat(grouped).items():
    parts = path.split("/")
    if "to_k" in parts or "to_v" in parts or "norm_k" in parts:
      heads = value.reshape(*value.shape[:-1], kv_heads, -1)
      value = jnp.repeat(heads, 4 // kv_heads, -2).reshape(*value.shape[:-1], -1)
    values[path] = value
  args = inputs(SMALL)
  np.testing.assert_allclose(
    velocity(grouped, *args), velocity(rebuilt(full, values), *args), rtol=1e-4, atol=1e-5
  )


def test_2d_angles() -> None:
  cfg = dataclasses.replace(SMALL, dim=64, heads=4)  # head dim 16
  angles = next_dit.rotary_angles(cfg, 2, 3)
  assert angles.shape == (6, 8)
  for i in range(4):
    freq = 10000 ** (-i / 4)
    np.testing.assert_allclose(angles[:, 2 * i], freq * np.array([0, 0, 0, 1, 1, 1]))
    np.testing.assert_allclose(angles[:, 2 * i + 1], freq * np.array([0, 1, 2, 0, 1, 2]))


def test_3d_angles() -> None:
  cfg = dataclasses.replace(THREE_D, dim=64, heads=4, rope_axes=(4, 6, 6))
  still, moved = (next_dit.rotary_angles(cfg, 2, 3, frame) for frame in (0, 5))
  assert still.shape == (6, 8)
  np.testing.assert_array_equal(still[:, :2], 0)
  np.testing.assert_allclose(moved[:, :2], 5 * np.array([[1, 0.01]]).repeat(6, 0))
  np.testing.assert_array_equal(still[:, 2:], moved[:, 2:])
  freqs = 10000 ** (-2 * np.arange(3) / 6)
  np.testing.assert_allclose(still[:, 2:5], np.array([0, 0, 0, 1, 1, 1])[:, None] * freqs)
  np.testing.assert_allclose(still[:, 5:], np.array([0, 1, 2, 0, 1, 2])[:, None] * freqs)


def test_rotation_by_hand() -> None:
  """Adjacent channels as a complex number, turned; at frame 0 the pairs of time stay."""
  cfg = dataclasses.replace(THREE_D, dim=64, heads=4, rope_axes=(4, 6, 6))
  x = np.random.default_rng(0).normal(size=(2, 6, 4, 16)).astype(np.float32)
  table = next_dit.rotary_table(cfg, 2, 3)
  out = np.asarray(rotary.rotate_pairs(jnp.asarray(x.reshape(2, 6, 64)), 4, table)).reshape(x.shape)
  turned = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(
    1j * next_dit.rotary_angles(cfg, 2, 3)[None, :, None]
  )
  np.testing.assert_allclose(out[..., 0::2], turned.real, atol=1e-6)
  np.testing.assert_allclose(out[..., 1::2], turned.imag, atol=1e-6)
  np.testing.assert_array_equal(out[..., :4], x[..., :4])


def test_the_kind_of_rotation_matters() -> None:
  model = randomised(SMALL)
  x, t, z = inputs(SMALL)
  other = rebuilt(randomised(THREE_D), flat(model))
  assert np.abs(velocity(model, x, t, z) - velocity(other, x, t, z)).max() > 1e-3


def test_prepare_covers_the_condition() -> None:
  """After `prepare` no projection of the condition is used: they may be lost."""
  model = randomised(SMALL)
  x, t, z = inputs(SMALL)
  condition = prepared(model, z)
  assert condition.k.shape == (2, 2, 5, 4, 8)
  assert condition.pooled.shape == (2, 32)
  projections = "caption_projection caption_embedder attn2/to_k attn2/to_v attn2/norm_k"
  of_condition = (*projections.split(), "norm1_context")
  lost = {
    p: v * jnp.nan if any(part in p for part in of_condition) else v for p, v in flat(model).items()
  }
  wanted = called(model, x, t, condition)
  assert np.all(np.isfinite(wanted))
  np.testing.assert_array_equal(called(rebuilt(model, lost), x, t, condition), wanted)


def test_a_condition_for_one_call_gives_what_one_for_many_does() -> None:
  model = randomised(SMALL)
  x, t, z = inputs(SMALL)
  many, one = (model(x, t, f(z)) for f in (model.prepare, model.embed))
  np.testing.assert_allclose(one, many, rtol=1e-5, atol=1e-6)


def test_recomputation_changes_nothing() -> None:
  values, args = flat(randomised(SMALL)), inputs(SMALL)
  slopes = []
  for remat in ("none", "full", "dots"):
    cfg = dataclasses.replace(SMALL, remat=remat)  # type: ignore[arg-type]
    model = rebuilt(randomised(cfg), values)
    slopes.append(jax.grad(lambda z, m=model: velocity(m, *args[:2], z).sum())(args[2]))
  for slope in slopes[1:]:
    np.testing.assert_allclose(slope, slopes[0], rtol=1e-4, atol=1e-5)


def test_other_grids_and_patches() -> None:
  cfg = dataclasses.replace(SMALL, patch_size=2)
  model = randomised(cfg)
  x, t, z = inputs(cfg, side=6)
  out = velocity(model, x, t, z)
  assert out.shape == x.shape
  assert out.dtype == jnp.float32


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(heads=5, kv_heads=5), "does not divide into 5 heads"),
    (dict(kv_heads=3), "not a multiple of kv_heads"),
    (dict(patch_size=3), "patches of 3"),
    (dict(rope="3d"), "add up to the head dim 8"),
    (dict(rope="3d", rope_axes=(2, 3, 3)), "must be even"),
    (dict(dim=24), "divisible by 4"),
  ],
)
def test_bad_sizes(change: dict[str, Any], message: str) -> None:
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(SMALL, **change)
