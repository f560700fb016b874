import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip3o_jax import sharding
from blip3o_jax.models import decoder_lm

CFG = decoder_lm.Config(
  vocab_size=50, dim=32, depth=3, heads=4, kv_heads=2, head_dim=8, mlp_dim=48,
  mrope_section=(1, 1, 2),
)  # fmt: skip
LENGTHS = (9, 5, 7)
TOLERANCE = 2e-6


@pytest.fixture(scope="module")
def model() -> decoder_lm.DecoderLM:
  return build(CFG)


def build(cfg: decoder_lm.Config) -> decoder_lm.DecoderLM:
  """Weights large enough that attention is not uniform; norms and biases random too."""
  model = decoder_lm.DecoderLM(cfg, rngs=nnx.Rngs(0))
  state = nnx.state(model, nnx.Param)
  keys = iter(jax.random.split(jax.random.key(1), 64))
  noise = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(next(keys), p.shape), state)
  nnx.update(model, noise)
  return model


def batch(length: int = 9) -> tuple[np.ndarray, np.ndarray]:
  tokens = np.random.default_rng(2).integers(0, 50, (3, length)).astype(np.int32)
  segments = (np.arange(length) >= length - np.array(LENGTHS)[:, None]).astype(np.int32)
  return tokens, segments


def near(found: jax.Array, expected: jax.Array) -> None:
  np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * float(abs(expected).max()))


def test_padding_anywhere_is_invisible(model):
  tokens, segments = batch()
  hidden = model(model.embed(tokens), decoder_lm.plain_positions(segments), segments)
  for b, n in enumerate(LENGTHS):
    alone = tokens[b : b + 1, -n:]
    ones = np.ones_like(alone)
    near(hidden[b : b + 1, -n:], model(model.embed(alone), np.arange(n)[None], ones))


def test_three_equal_axes_are_plain_positions(model):
  tokens, segments = batch()
  positions = decoder_lm.plain_positions(segments)
  x = model.embed(tokens)
  three = jnp.broadcast_to(positions, (3, *positions.shape))
  np.testing.assert_array_equal(model(x, positions, segments), model(x, three, segments))
  moved = model(x, three.at[1].add(np.arange(9)), segments)
  assert abs(moved - model(x, three, segments)).max() > 1e-3


@pytest.mark.parametrize("chunks", [(1, 1, 1), (2, 1), (3,)])
def test_extend_continues_prefill(model, chunks):
  tokens, segments = batch(12)
  segments[:, -3:] = 1
  positions = decoder_lm.plain_positions(segments)
  x = model.embed(tokens)
  expected = model(x, positions, segments)
  hidden, cache = model.prefill(x[:, :9], positions[:, :9], segments[:, :9], 14)
  valid = segments[:, :9, None]
  near(hidden * valid, expected[:, :9] * valid)
  at = 9
  for t in chunks:
    hidden, cache = model.extend(x[:, at : at + t], positions[:, at : at + t], cache)
    near(hidden, expected[:, at : at + t])
    at += t
  assert int(cache.length) == 12
  np.testing.assert_array_equal(cache.segments[:, :12], segments)
  assert not cache.segments[:, 12:].any()
  assert not np.asarray(cache.k[:, :, 12:]).any()


def test_read_after_is_prefill_and_extend(model):
  tokens, segments = batch(12)
  segments[:, -3:] = 1
  positions = decoder_lm.plain_positions(segments)
  x = model.embed(tokens)
  _, cache = model.prefill(x[:, :9], positions[:, :9], segments[:, :9], 12)
  expected, _ = model.extend(x[:, 9:], positions[:, 9:], cache)
  found = model.read_after(x[:, :9], positions[:, :9], segments[:, :9], x[:, 9:], positions[:, 9:])
  near(found, expected)

  def total(x):
    args = (x[:, :9], positions[:, :9], segments[:, :9], x[:, 9:], positions[:, 9:])
    return jnp.sum(model.read_after(*args) ** 2)

  slope = jax.grad(total)(x)
  assert not slope[:, :9].any(), "the prompt has a gradient"
  assert np.abs(slope[:, 9:]).max() > 0


def test_what_lies_in_the_free_part_of_the_cache_is_never_read(model):
  tokens, segments = batch()
  positions = decoder_lm.plain_positions(segments)
  x = model.embed(tokens)
  _, cache = model.prefill(x, positions, segments, 12)
  dirty = cache.replace(k=cache.k.at[:, :, 9:].set(50.0), v=cache.v.at[:, :, 9:].set(1e3))
  clean, _ = model.extend(x[:, :2], positions[:, :2], cache)
  found, _ = model.extend(x[:, :2], positions[:, :2], dirty)
  np.testing.assert_array_equal(found, clean)


def test_a_full_cache_is_loud(model):
  tokens, segments = batch()
  positions = decoder_lm.plain_positions(segments)
  x = model.embed(tokens)
  _, cache = model.prefill(x, positions, segments, 10)
  hidden, cache = model.extend(x[:, :1], positions[:, :1], cache)
  assert np.isfinite(hidden).all()
  hidden, _ = model.extend(x[:, :1], positions[:, :1], cache)
  assert np.isnan(hidden).all()
  with pytest.raises(ValueError, match="cannot hold"):
    model.prefill(x, positions, segments, 8)
  with pytest.raises(ValueError, match="do not fit"):
    model.extend(jnp.tile(x, (1, 2, 1)), jnp.tile(positions, (1, 2)), cache)


def test_an_id_outside_the_vocabulary_is_loud(model):
  rows = model.embed(np.array([[0, 49, 50]], np.int32))
  assert np.isfinite(rows[:, :2]).all()
  assert np.isnan(rows[:, 2]).all()


def test_tied_head_is_the_embedding():
  model = build(dataclasses.replace(CFG, tie_embeddings=True))
  assert not hasattr(model, "lm_head")
  tokens, segments = batch()
  hidden = model(model.embed(tokens), decoder_lm.plain_positions(segments), segments)
  near(model.logits(hidden), hidden @ model.embed_tokens.embedding[...].T)

  def loss(model: decoder_lm.DecoderLM) -> jax.Array:
    return model.logits(jax.lax.stop_gradient(hidden)).sum()

  grads = nnx.to_pure_dict(nnx.state(jax.grad(loss)(model), nnx.Param))
  assert abs(grads["embed_tokens"]["embedding"]).max() > 0


def test_bfloat16_computes_and_caches_in_bfloat16():
  model = build(dataclasses.replace(CFG, dtype="bfloat16"))
  tokens, segments = batch()
  positions = decoder_lm.plain_positions(segments)
  hidden, cache = model.prefill(model.embed(tokens), positions, segments, 10)
  assert (hidden.dtype, cache.k.dtype, cache.v.dtype) == (jnp.bfloat16,) * 3
  assert model.logits(hidden).dtype == jnp.float32


@pytest.mark.parametrize("name", decoder_lm.VARIANTS)
def test_released_sizes_carry_axes_that_shard(name):
  cfg = decoder_lm.VARIANTS[name]
  model = nnx.eval_shape(lambda: decoder_lm.DecoderLM(cfg, rngs=nnx.Rngs(0)))
  axes = sharding.param_axes(model)
  assert axes["layers/self_attn/q_proj/kernel"] == ("layers", "embed", "heads")
  assert axes["layers/input_layernorm/scale"] == ("layers", "rest")


def test_cache_and_decode_are_one_program():
  """A static cache: extending compiles once, whatever the number of tokens read."""
  model, (tokens, segments) = build(CFG), batch()
  positions = decoder_lm.plain_positions(segments)
  _, cache = model.prefill(model.embed(tokens), positions, segments, 16)
  step = jax.jit(lambda m, x, at, c: m.extend(x, at, c))
  for s in range(5):
    at = positions[:, -1:] + 1 + s
    _, cache = step(model, model.embed(tokens[:, :1]), at, cache)
  assert step._cache_size() == 1


@pytest.mark.parametrize(
  ("change", "message"),
  [(dict(kv_heads=3), "multiple of 3"), (dict(mrope_section=(1, 2, 2)), "mrope_section")],
)
def test_config_faults(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(CFG, **change)
