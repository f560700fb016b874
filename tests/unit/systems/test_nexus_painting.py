"""Nexus-Gen's decoders: contexts, pictures of any size and number, and their training loss."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip3o_jax import layers
from blip3o_jax import sharding
from blip3o_jax import trees
from blip3o_jax.diffusion import flow
from blip3o_jax.models import autoencoder
from blip3o_jax.models import decoder_lm
from blip3o_jax.models import flux
from blip3o_jax.models import qwen_vision
from blip3o_jax.systems.nexus_gen import decoders
from blip3o_jax.systems.nexus_gen import model as nexus_gen
from blip3o_jax.systems.nexus_gen import painting
from blip3o_jax.systems.nexus_gen.losses import Loss
from blip3o_jax.systems.parts.network import Network

D, SLOTS, REFERENCE = 16, 4, 16
LM = decoder_lm.Config(
  vocab_size=30,
  dim=D,
  depth=1,
  heads=2,
  kv_heads=1,
  head_dim=8,
  mlp_dim=24,
  mrope_section=(1, 1, 2),
)
DIT = flux.Config(
  dim=24,
  heads=2,
  axes=(4, 4, 4),
  double_depth=1,
  single_depth=1,
  context_dim=20,
  pooled_dim=6,
  in_channels=8,
  mlp_ratio=2,
  sinusoid_dim=16,
)
VAE = autoencoder.Config(
  latent_channels=2,
  channels=(4, 4),
  depth=1,
  groups=2,
  mid_attention=False,
  quant_conv=False,
  post_quant_conv=False,
  scaling_factor=0.5,
  shift_factor=0.25,
)
CFG = nexus_gen.Config(
  backbone=LM,
  visual=qwen_vision.Config(dim=8, depth=1, heads=1, mlp_dim=8, out_dim=D, full_layers=(0,)),
  flux=DIT,
  autoencoder=VAE,
  slots=SLOTS,
  target_grid=4,
  reference_grid=8,
  base_grid=16,
  null_tokens=5,
  image_token=3,
  boi=1,
  eoi=2,
  parts=("generator", "editor", "autoencoder", "constants"),
  stage="generation",
)
SIZE = (8, 12)  # pixels; half as many cells a side, of which two a side are a token


@pytest.fixture(scope="module")
def network(fill: Callable[..., Any]) -> Network:
  cfg = dataclasses.replace(CFG, parts=("generator", "autoencoder", "constants"))
  return Network.of(fill(lambda: nexus_gen.build(cfg, nnx.Rngs(0))))


@pytest.fixture(scope="module")
def shapes() -> Any:
  """All parts, as shapes."""
  return layers.abstract(lambda rngs: nexus_gen.build(CFG, rngs))


def vectors(count: int, rows: int = 3, seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).standard_normal((rows, count, D)).astype(np.float32)


def test_released_sizes() -> None:
  """Parameters of adapter, merger and autoencoder (spec 1), and that they divide over devices."""
  lm, vae = decoder_lm.VARIANTS["qwen2_5_vl_7b"], autoencoder.VARIANTS["flux"]
  made = {
    31_481_856: layers.abstract(lambda r: decoders.Adapter(3584, 4096, rngs=r)),
    358_931_456: layers.abstract(lambda r: decoders.Merger(lm, 1, 4, 4096, 72, rngs=r)),
    83_819_683: layers.abstract(lambda r: autoencoder.Autoencoder(vae, rngs=r)),
  }
  mesh = jax.sharding.AbstractMesh((1, 64, 4), sharding.MESH_AXES)
  for count, found in made.items():
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(found, nnx.Param))) == count
    sharding.shardings(found, mesh)  # type: ignore[arg-type]


def test_ids_of_a_size_that_is_no_square() -> None:
  """Rows follow the height, columns the width; the reference lies on the same picture."""
  ids = decoders.text_ids([4, 16], (8, 24), "float32")
  assert ids.shape == (20, 3)
  np.testing.assert_array_equal(ids[:4], [[0, 0, 0], [0, 0, 6], [0, 2, 0], [0, 2, 6]])
  np.testing.assert_array_equal(
    ids[4:10], [[1, 0, 3 * i] for i in range(4)] + [[1, 1, 0], [1, 1, 3]]
  )
  frame = decoders.merger_positions([4, 16], 16)
  np.testing.assert_array_equal(frame[:, :4], [[0] * 4, [0, 0, 4, 4], [0, 4, 0, 4]])
  np.testing.assert_array_equal(frame[:, -1], [0, 6, 6])
  with pytest.raises(ValueError, match="5 image vectors: expected a square"):
    decoders.text_ids([5], (8, 8), "float32")


def test_pictures_do_not_depend_on_batch_mates(network: Network) -> None:
  """Three are padded to four; each is the same at another place, whatever its seed's high half."""
  given, seeds = vectors(SLOTS, 4), [2**40 + 1, 1, 2**64 - 1, 2**40 + 2]
  found = painting.paint(network, (given[:3], None), seeds[:3], size=SIZE, steps=3)
  assert found.shape == (3, *SIZE, 3)
  assert found.dtype == np.uint8
  order = [3, 0, 2, 1]
  again = painting.paint(
    network, (given[order], None), [seeds[i] for i in order], size=SIZE, steps=3
  )
  for place, i in enumerate(order[1:], 1):
    assert np.abs(again[place].astype(int) - found[i]).max() <= 1
  alike = given[[0, 0, 0]]  # but for the seeds, of which two differ in one half alone
  found = painting.paint(
    network, (alike, None), [seeds[0], 1, seeds[3]], size=SIZE, steps=3
  ).astype(int)
  assert all(np.abs(found[0] - found[i]).max() > 3 for i in (1, 2))
  assert painting.paint(network, (given[:0], None), [], size=SIZE).shape == (0, *SIZE, 3)


def test_no_new_program_for_other_numbers(network: Network) -> None:
  """Other pictures up to a power of two, steps, seeds and scales, but 1, run the same program."""
  programs: list[Any] = [painting._start, painting._loop, painting._pixels]
  sizes = []
  for count, steps, scale in ((3, 3, 3.0), (4, 7, 1.5)):
    given, seeds = vectors(SLOTS, count), list(range(count))
    painting.paint(network, (given, None), seeds, size=SIZE, steps=steps, scale=scale)
    sizes.append([program._jit._cache_size() for program in programs])
  assert sizes[0] == sizes[1]


def calls(module: Any, scale: float | None) -> int:
  """How often the transformer stands in the sampler's loop."""
  seen = []
  real = flux.Flux.__call__

  def counted(*args: Any) -> jax.Array:
    seen.append(1)
    return real(*args)

  given = (jax.ShapeDtypeStruct((1, SLOTS, D), jnp.float32), None)
  noise = jax.ShapeDtypeStruct((1, 4, 6, 2), jnp.float32)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(flux.Flux, "__call__", counted)
    found = jax.eval_shape(
      painting.sample, module.generator, module.constants, given, noise, painting.table(2), scale
    )
  assert found.shape == noise.shape
  return len(seen)


def test_guidance_of_one_costs_one_pass(shapes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
  assert calls(shapes, 2.0) == 2 * calls(shapes, None)
  told: list[Any] = []

  def loop(network: Network, condition: Any, scale: Any, state: Any, *_: Any, **__: Any) -> Any:
    told.append((condition, scale))
    return state

  state = flow.State(*np.zeros((2, 1, 6, 8), np.float32))
  monkeypatch.setattr(painting, "_start", lambda *_, guided, **__: (guided, state))
  monkeypatch.setattr(painting, "_loop", loop)
  shown = np.zeros((1, *SIZE, 3), np.float32)
  monkeypatch.setattr(painting, "_pixels", lambda network, x, size: shown)
  ask: dict[str, Any] = dict(size=SIZE, steps=2)
  network = Network.of(shapes)
  painting.paint(network, (vectors(SLOTS, 1), None), [0], scale=1.0, **ask)
  painting.paint(network, (vectors(SLOTS, 1), None), [0], **ask)
  painting.paint(network, (vectors(SLOTS, 1), None), [0], decoder="editor", **ask)
  assert told == [(False, None), (True, 3.0), (False, None)]


def test_what_cannot_be_painted(shapes: Any) -> None:
  network, one, ref = Network.of(shapes), vectors(SLOTS, 1), vectors(REFERENCE, 1)
  with pytest.raises(ValueError, match=r"size \(8, 10\): .* multiples of 4"):
    painting.paint(network, (one, None), [0], size=(8, 10))
  with pytest.raises(ValueError, match="no reference picture"):
    shapes.generator.context(one, ref, (4, 6))
  with pytest.raises(ValueError, match="one for each of 2 seeds"):
    painting.paint(network, (one, None), [0, 1], size=SIZE)
  with pytest.raises(ValueError, match="reference: not finite"):
    painting.paint(network, (one, ref * np.nan), [0], decoder="editor", size=SIZE)
  with pytest.raises(ValueError, match="0 steps"):
    painting.paint(network, (one, None), [0], size=SIZE, steps=0)
  cfg = dataclasses.replace(CFG, parts=("generator", "autoencoder"))
  bare = Network.of(layers.abstract(lambda rngs: nexus_gen.build(cfg, rngs)))
  with pytest.raises(ValueError, match="constants"):
    painting.paint(bare, (one, None), [0], size=SIZE)


@pytest.mark.parametrize(
  ("path", "part"),
  [
    ("generator/dit/x_embedder/bias", "generation decoder"),
    ("autoencoder/decoder/conv_out/bias", "autoencoder"),
  ],
)
def test_a_picture_of_no_numbers(network: Network, path: str, part: str) -> None:
  flat = trees.flatten(network.params)
  broken = trees.unflatten(flat | {path: jnp.full_like(flat[path], jnp.nan)})
  with pytest.raises(ValueError, match=f"output of the {part} is not finite.*{path}"):
    painting.paint(
      Network(network.graphdef, broken), (vectors(SLOTS), None), [1, 2, 3], size=SIZE, steps=3
    )


# Training ----------------------------------------------------------------------------------------


class Toy(decoders.Decoder):
  """A velocity of `weight` times the condition, a number a sample, in place of a network's."""

  def __init__(self, weight: float) -> None:
    self.weight = nnx.Param(jnp.float32(weight))

  def context(self, vectors: Any, reference: Any, size: Any) -> Any:
    raise AssertionError("what it is told is no context of tokens")

  def condition(
    self, constants: Any, vectors: Any, reference: Any, size: Any, guidance: Any = 1.0
  ) -> Any:
    del constants, reference, size
    return self.weight[...] * jnp.mean(vectors, (1, 2)) * guidance

  def null(self, constants: Any, rows: int, size: Any, guidance: Any = 1.0) -> Any:
    del size, guidance
    return jnp.full((rows,), constants)

  def velocity(self, x: jax.Array, t: jax.Array, condition: Any) -> jax.Array:
    del t
    return jnp.broadcast_to(condition[:, None, None, None], x.shape)


@functools.partial(jax.jit, static_argnames="cfg")
def step(toy: Toy, given: jax.Array, key: jax.Array, cfg: Loss) -> Any:
  """Value and metrics of the loss over 8 samples, of which these are some, and the gradient."""
  latents = jnp.full((len(given), 2, 4, 2), 2.0)

  def run(toy: Toy) -> Any:
    constants: Any = 0.25
    return decoders.loss(toy, constants, (given, None), latents, key, jnp.float32(8), cfg, 1.0)

  found, grads = jax.value_and_grad(run, has_aux=True)(toy)
  return *found, grads.weight[...]


def test_a_dropped_condition_is_the_whole_batch() -> None:
  """Vectors then matter not and what makes the condition has no gradient."""
  one, two = vectors(SLOTS, 4, 0), vectors(SLOTS, 4, 1)
  seen = []
  for seed in range(16):
    key, cfg = jax.random.key(seed), Loss(drop=0.5)
    value, _, gradient = step(Toy(1.0), one, key, cfg)
    other, whole = step(Toy(1.0), two, key, cfg)[0], step(Toy(1.0), one, key, Loss())[0]
    dropped = float(gradient) == 0
    assert (float(value) == float(other)) == dropped
    assert (float(value) != float(whole)) == dropped
    seen.append(dropped)
  assert 2 <= sum(seen) <= 14


def test_loss_is_weighted_and_counted_as_a_share() -> None:
  """Of zero velocity the error is the target's square; the weight of its index multiplies it."""
  _, weights = flow.training(decoders.SHIFT, decoders.LAST)
  key = jax.random.key(3)
  noise = jax.random.normal(jax.random.split(key, 3)[1], (4, 2, 4, 2))
  square = np.mean(np.square(np.asarray(noise) - 2), (1, 2, 3))
  found = {}
  for times in ("sample", "batch"):
    value, metrics, _ = step(Toy(0.0), vectors(SLOTS, 4), key, Loss(times=times))
    sums, counts = (np.asarray(metrics[f"image_loss_by_index/{n}"]) for n in ("sum", "count"))
    assert counts.sum() == 4
    np.testing.assert_allclose(sums.sum() / 8, value, rtol=1e-5)
    found[times] = float(value), int((counts > 0).sum())
  assert found["batch"][1] == 1 < found["sample"][1]
  other, *_ = step(Toy(0.0), vectors(SLOTS, 4), key, Loss(times="batch", by_time="shoulder"))
  assert float(other) != pytest.approx(found["batch"][0], rel=1e-3)
  index = np.argmin(np.abs(weights * square.sum() / 8 - found["batch"][0]))
  np.testing.assert_allclose(weights[index] * square.sum() / 8, found["batch"][0], rtol=1e-5)


def test_the_table_of_training() -> None:
  sigmas, weights = flow.training(3.0, 0.003 / 1.002)
  assert weights.mean() == pytest.approx(1, abs=1e-6)
  assert weights[0] == 0
  assert weights[751] == weights.max() == pytest.approx(1.7943, abs=1e-4)
  assert weights[-1] == pytest.approx(0.0494, abs=1e-4)
  assert 1000 * sigmas[-1] == pytest.approx(8.93, abs=5e-3)
  again, shoulder = flow.training(3.0, 0.003 / 1.002, "shoulder")
  np.testing.assert_array_equal(again, sigmas)
  assert shoulder.mean() == pytest.approx(1, abs=1e-6)
  assert np.ptp(shoulder[:751]) == 0
  scale = weights[751:] / shoulder[751:]  # below, the bell times a number
  np.testing.assert_allclose(scale, scale[0], rtol=1e-5)
  with pytest.raises(ValueError, match=r"drop 1\.0"):
    Loss(drop=1.0)
