from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from blip3o_jax import layers
from blip3o_jax import stacks
from blip3o_jax.models import decoder_lm

CFG = decoder_lm.Config(
  vocab_size=20,
  dim=8,
  depth=3,
  heads=2,
  kv_heads=1,
  head_dim=4,
  mlp_dim=12,
  mrope_section=(0, 1, 1),
)


class Outer(nnx.Module):
  """A stack beneath a list, beside what is none."""

  def __init__(self, rngs: nnx.Rngs):
    self.blocks = nnx.List([Inner(rngs) for _ in range(2)])
    self.head = layers.linear(4, 4, ("embed", "mlp"), rngs=rngs)


class Inner(nnx.Module):
  def __init__(self, rngs: nnx.Rngs):
    self.layers = layers.stack(lambda r: layers.linear(4, 4, ("embed", "mlp"), rngs=r), 3, rngs)


def test_stacks_are_taken_apart_wherever_they_stand() -> None:
  module = Outer(nnx.Rngs(0))
  kernels = [np.asarray(inner.layers.kernel[...]) for inner in module.blocks]
  head = module.head
  stacks.apart(module)
  assert module.head is head
  for inner, kernel in zip(module.blocks, kernels, strict=True):
    assert isinstance(inner.layers, nnx.List)
    np.testing.assert_array_equal([layer.kernel[...] for layer in inner.layers], kernel)


def test_a_loop_over_layers_that_are_apart_equals_the_scan() -> None:
  inner, x = Inner(nnx.Rngs(1)), jnp.arange(8.0).reshape(2, 4)
  scales = jnp.asarray([1.0, 2.0, 3.0])

  def run(inner: Inner) -> tuple[jax.Array, jax.Array]:
    def apply(layer: nnx.Module, x: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
      return x + scale * layer(x), x.mean()  # type: ignore[operator]

    return stacks.scan(inner.layers, x, apply, (scales,))

  whole = run(inner)
  second = stacks.layer_of(inner.layers, 1)
  stacks.apart(inner)
  for found, wanted in zip(run(inner), whole, strict=True):
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
  np.testing.assert_array_equal(stacks.layer_of(inner.layers, 1).kernel[...], second.kernel[...])


def test_a_language_model_taken_apart_reads_the_same() -> None:
  model = decoder_lm.DecoderLM(CFG, rngs=nnx.Rngs(0))
  tokens = jnp.asarray([[1, 2, 3, 4], [0, 0, 5, 6]])
  segments = (tokens > 0).astype(jnp.int32)
  positions = decoder_lm.plain_positions(segments)

  @nnx.jit
  def read(model: decoder_lm.DecoderLM) -> list[jax.Array]:
    x = model.embed(tokens)
    hidden, cache = model.prefill(x, positions, segments, 6)
    more, cache = model.extend(x[:, :2], positions[:, -1:] + jnp.asarray([1, 2]), cache)
    late = model.read_after(x, positions, segments, x[:, :2], positions[:, -1:] + 1)
    return [hidden, more, cache.k, cache.v, late, model(x, positions, segments)]

  whole = read(model)
  stacks.apart(model)
  for found, wanted in zip(read(model), whole, strict=True):
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-6)
