"""FLUX: tokens and where they lie, rotations, what `prepare` covers, guidance, recomputation."""

import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip3o_jax import layers
from blip3o_jax import rotary
from blip3o_jax import trees
from blip3o_jax.models import flux

SMALL = flux.Config(
  dim=32,
  heads=2,
  axes=(4, 6, 6),
  double_depth=2,
  single_depth=2,
  context_dim=12,
  pooled_dim=10,
  in_channels=16,
)


def flat(model: nnx.Module) -> dict[str, Any]:
  return trees.flatten(nnx.to_pure_dict(nnx.state(model)))


def rebuilt(model: nnx.Module, values: dict[str, Any]) -> Any:
  return nnx.merge(nnx.graphdef(model), trees.unflatten(values))


def randomised(cfg: flux.Config = SMALL) -> flux.Flux:
  """A network whose norms and biases are away from their neutral values; no compiling."""
  model = layers.abstract(lambda rngs: flux.Flux(cfg, rngs=rngs))
  rng = np.random.default_rng(0)
  values = {}
  for path, abstract in flat(model).items():
    value = rng.normal(size=abstract.shape).astype(np.float32)
    if path.endswith("kernel"):
      value *= abstract.shape[-2] ** -0.5
    values[path] = jnp.asarray(1 + 0.2 * value if path.endswith("scale") else value)
  return rebuilt(model, values)


def inputs(batch: int = 2, h: int = 4, w: int = 6) -> tuple[Any, ...]:
  """x, t, and the arguments of `prepare`; nine context tokens on a grid of their own."""
  rng = np.random.default_rng(1)
  x = rng.normal(size=(batch, h * w // 4, SMALL.in_channels)).astype(np.float32)
  t = np.linspace(40, 960, batch).astype(np.float32)
  context = rng.normal(size=(batch, 9, SMALL.context_dim)).astype(np.float32)
  pooled = rng.normal(size=(batch, SMALL.pooled_dim)).astype(np.float32)
  row, column = np.divmod(np.arange(9), 3)
  text_ids = np.stack([np.ones(9), row * h / 6, column * w / 6], -1).astype(np.float32)
  guidance = np.full((batch,), 3.5, np.float32)
  return x, t, context, pooled, guidance, text_ids[None], flux.image_ids(h, w)[None]


prepared = jax.jit(lambda model, *args: model.prepare(*args))
called = jax.jit(lambda model, x, t, condition: model(x, t, condition))


@pytest.fixture(scope="module")
def model() -> flux.Flux:
  return randomised()


def test_patches_by_hand() -> None:
  """A patch's features are channel-major, patches row by row."""
  latents = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype(np.float32)
  tokens = np.asarray(flux.patchify(latents))
  assert tokens.shape == (2, 6, 12)
  for row in range(2):
    for column in range(3):
      patch = latents[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
      wanted = np.moveaxis(patch, -1, 1).reshape(2, 12)
      np.testing.assert_array_equal(tokens[:, 3 * row + column], wanted)
  np.testing.assert_array_equal(flux.unpatchify(tokens, 4, 6), latents)


def test_image_ids() -> None:
  found = flux.image_ids(4, 6)
  wanted = [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 1], [0, 1, 2]]
  np.testing.assert_array_equal(found, wanted)
  assert found.dtype == np.float32


def test_rotation_by_hand() -> None:
  """Adjacent channels as a complex number, turned by their axis' coordinate."""
  ids = np.array([[[1, 3.5, 2], [0, 28.444, 63]]], np.float32)
  x = np.random.default_rng(0).normal(size=(1, 2, 1, 16)).astype(np.float32)
  angles = np.concatenate(
    [ids[..., i, None] * 1e4 ** (-np.arange(0, n, 2) / n) for i, n in enumerate(SMALL.axes)], -1
  )
  turned = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angles[:, :, None])
  wanted = np.stack([turned.real, turned.imag], -1).reshape(x.shape)
  for given in (ids, jnp.asarray(ids)):  # exact angles, and those of float32
    cos, sin = (t[:, :, None] for t in flux.rotary_table(SMALL, given))
    assert cos.dtype == np.float32
    found = rotary.turn(jnp.asarray(x), cos, sin, "pairs")
    np.testing.assert_allclose(found, wanted, atol=1e-6 if given is ids else 1e-5)


def test_ids_say_where_a_token_lies(model: flux.Flux) -> None:
  """Tokens in another order with their ids give the same; without them something else."""
  x, t, *given, text_ids, ids = inputs()
  wanted = called(model, x, t, prepared(model, *given, text_ids, ids))
  order = np.random.default_rng(0).permutation(x.shape[1])
  moved = called(model, x[:, order], t, prepared(model, *given, text_ids, ids[:, order]))
  np.testing.assert_allclose(moved, wanted[:, order], rtol=1e-4, atol=1e-5)
  fixed = called(model, x[:, order], t, prepared(model, *given, text_ids, ids))
  assert np.abs(fixed - moved).max() > 1e-2
  nowhere = called(model, x, t, prepared(model, *given, 0 * text_ids, ids))
  assert np.abs(nowhere - wanted).max() > 1e-2


def test_rows_do_not_see_each_other(model: flux.Flux) -> None:
  """Ids of one row are those of all; each row has its own guidance, time and context."""
  x, t, context, pooled, guidance, *ids = inputs()
  guidance = np.array([3.5, 1], np.float32)
  condition = prepared(model, context, pooled, guidance, *ids)
  each = prepared(model, context, pooled, guidance, *(np.repeat(i, 2, 0) for i in ids))
  for one, other in zip(jax.tree.leaves(condition), jax.tree.leaves(each), strict=True):
    np.testing.assert_array_equal(one, other)
  wanted = called(model, x, t, condition)
  alone = jax.tree.map(lambda axis, leaf: jnp.flip(leaf, axis), flux.BATCH_AXES, condition)
  found = called(model, x[::-1], t[::-1], alone)[::-1]
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
  assert wanted.dtype == jnp.float32


def test_prepare_covers_the_condition(model: flux.Flux) -> None:
  """After `prepare` no weight of what is constant over the steps is used: they may be lost."""
  x, t, *given = inputs()
  condition = prepared(model, *given)
  assert condition.tokens.shape == (2, 9, 32)
  assert condition.cos.shape == (2, 9 + 6, 16)
  constant = ("context_embedder/", "guidance_embedder/", "pooled_embedder/")
  lost = {p: v * jnp.nan if p.startswith(constant) else v for p, v in flat(model).items()}
  wanted = called(model, x, t, condition)
  assert np.isfinite(wanted).all()
  np.testing.assert_array_equal(called(rebuilt(model, lost), x, t, condition), wanted)


@pytest.mark.parametrize(("dtype", "thousands"), [("float32", 3500), ("bfloat16", 3504)])
def test_guidance_is_rounded_as_released(model: flux.Flux, dtype: Any, thousands: float) -> None:
  cfg = dataclasses.replace(SMALL, dtype=dtype)
  ours = rebuilt(layers.abstract(lambda rngs: flux.Flux(cfg, rngs=rngs)), flat(model))
  _, _, *given = inputs()
  found = ours.prepare(*given).vector
  assert ours.guidance_embedder is not None
  embedded = layers.timestep_embedding(jnp.full((2,), thousands), cfg.sinusoid_dim)
  np.testing.assert_array_equal(
    found, ours.guidance_embedder(embedded) + ours.pooled_embedder(given[1])
  )


def test_without_embedded_guidance(model: flux.Flux) -> None:
  cfg = dataclasses.replace(SMALL, guidance=False)
  values = {p: v for p, v in flat(model).items() if not p.startswith("guidance_embedder/")}
  ours = rebuilt(layers.abstract(lambda rngs: flux.Flux(cfg, rngs=rngs)), values)
  _, _, context, pooled, guidance, *ids = inputs()
  found = [ours.prepare(context, pooled, scale * guidance, *ids).vector for scale in (1, 2)]
  np.testing.assert_array_equal(*found)
  np.testing.assert_array_equal(found[0], ours.pooled_embedder(pooled))


def test_recomputation_changes_nothing(model: flux.Flux) -> None:
  x, t, *given = inputs()
  condition, slopes = prepared(model, *given), []
  for remat in ("none", "dots"):
    cfg = dataclasses.replace(SMALL, remat=remat)  # type: ignore[arg-type]
    ours = rebuilt(layers.abstract(lambda rngs, c=cfg: flux.Flux(c, rngs=rngs)), flat(model))
    slope = jax.jit(jax.grad(lambda x, m=ours: jnp.sin(m(x, t, condition)).sum()))
    slopes.append(slope(jnp.asarray(x)))
  assert np.abs(slopes[0]).max() > 0.1
  np.testing.assert_allclose(*slopes, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ("place", "shape", "message"),
  [
    (3, (1, 8, 3), r"text_ids: found shape \(1, 8, 3\), expected \[1 or 2, 9, 3\]"),
    (3, (9, 3), r"text_ids: found shape \(9, 3\)"),
    (4, (3, 6, 3), r"image_ids: found shape \(3, 6, 3\), expected \[1 or 2, N, 3\]"),
    (4, (1, 6, 2), r"image_ids: found shape \(1, 6, 2\)"),
  ],
)
def test_bad_ids(model: flux.Flux, place: int, shape: tuple[int, ...], message: str) -> None:
  _, _, *given = inputs()
  given[place] = np.zeros(shape, np.float32)
  with pytest.raises(ValueError, match=message):
    model.prepare(*given)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(heads=3), "3 heads of 16 channels make dim, found 32"),
    (dict(axes=(5, 5, 6)), "must be even"),
    (dict(sinusoid_dim=255), "must be even, and in_channels 16"),
    (dict(in_channels=6), "in_channels 6 those of 4 cells"),
  ],
)
def test_bad_sizes(change: dict[str, Any], message: str) -> None:
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(SMALL, **change)
