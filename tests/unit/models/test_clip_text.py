"""The contrastive text tower: padding of either side, where it is read, its table."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip3o_jax import sharding
from blip3o_jax import trees
from blip3o_jax.models import clip_text
from blip3o_jax.weights import table
from blip3o_jax.weights.rows import clip_text as names

run = jax.jit(lambda model, tokens, segments: model(tokens, segments))
SMALL = clip_text.Config(vocab_size=30, length=9, dim=16, depth=2, heads=2, mlp_dim=40)


@pytest.mark.parametrize("causal", [True, False])
def test_padding_does_not_matter(causal: bool) -> None:
  model = clip_text.ClipText(dataclasses.replace(SMALL, causal=causal), rngs=nnx.Rngs(0))
  tokens = np.array([[3, 7, 11, 2]])
  left = np.concatenate([np.full((1, 3), 5), tokens], 1)
  right = np.concatenate([tokens, np.full((1, 5), 8)], 1)
  plain = run(model, jnp.asarray(tokens), jnp.ones((1, 4), jnp.int32))
  assert plain.shape == (1, 16)
  for padded, valid in ((left, np.arange(7) >= 3), (right, np.arange(9) < 4)):
    out = run(model, jnp.asarray(padded), jnp.asarray(valid[None].astype(np.int32)))
    np.testing.assert_allclose(out, plain, rtol=1e-4, atol=1e-5)


def test_every_token_and_its_place_matter() -> None:
  model = clip_text.ClipText(SMALL, rngs=nnx.Rngs(0))
  texts = np.array([[3, 7, 11, 2], [4, 7, 11, 2], [7, 3, 11, 2], [3, 7, 11, 5]])
  out = np.asarray(run(model, jnp.asarray(texts), jnp.ones_like(jnp.asarray(texts))))
  for i in range(1, 4):
    assert np.abs(out[i] - out[0]).max() > 1e-4


def test_table_covers_the_network_both_ways() -> None:
  model = clip_text.ClipText(SMALL, rngs=nnx.Rngs(0))
  params = trees.flatten(nnx.to_pure_dict(nnx.state(model)))
  exported = dict(table.export(names.rows(), params))
  shapes = {n: v.shape for n, v in exported.items()}
  table.plan(names.rows(), shapes, {p: v.shape for p, v in params.items()})
  assert exported["layers.1.mlp.fc1.weight"].shape == (40, 16)
  sharding.param_axes(model)


def test_too_long() -> None:
  model = clip_text.ClipText(SMALL, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="10 tokens, the position table holds 9"):
    model(jnp.zeros((1, 10), jnp.int32), jnp.ones((1, 10), jnp.int32))
