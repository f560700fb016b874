"""Every system keeps the whole contract of `systems.System`, by name, by arguments and in deed."""

from collections.abc import Mapping
import dataclasses
import inspect
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import pytest
import test_nexus_speaking
import third_system

from blip3o_jax import config
from blip3o_jax.miniature import sizes
from blip3o_jax.models import autoencoder
from blip3o_jax.models import clip_text
from blip3o_jax.models import decoder_lm
from blip3o_jax.models import eva_vit
from blip3o_jax.models import unet
from blip3o_jax.systems import SYSTEMS as KNOWN
from blip3o_jax.systems import System
from blip3o_jax.systems.parts import flops
from blip3o_jax.train.run import Samples

FUNCTIONS = {
  name: value
  for name, value in vars(System).items()
  if inspect.isfunction(value) and not name.startswith("_")  # Protocol brings functions of its own
}
CONSTANTS = set(System.__annotations__)
SYSTEMS: Mapping[str, Any] = {**KNOWN, "quilt": third_system.System()}
# The miniature's own configs, in the form that trains, and a toy's; nothing is allocated by them.
TINY: Mapping[str, Any] = {
  "blip3o": dataclasses.replace(sizes.blip3o_shapes(), parts=("denoiser",)),
  "nexus_gen": test_nexus_speaking.CFG,
  "contrast": sizes.contrast_shapes(),
  "pixels": sizes.pixels_shapes(),
  "quilt": decoder_lm.Config(300, 32, 2, 2, 1, 16, 64, mrope_section=(2, 3, 3)),
}
ROWS, BUCKET = 2, 48


def test_every_system_is_looked_at():
  assert set(TINY) == set(SYSTEMS)


@pytest.mark.parametrize("name", SYSTEMS)
def test_names_and_arguments(name):
  system = SYSTEMS[name]
  missing = [n for n in (*CONSTANTS, *FUNCTIONS) if not hasattr(system, n)]
  assert not missing, f"{name} lacks {', '.join(missing)}"
  for function, wanted in FUNCTIONS.items():
    found = inspect.signature(getattr(system, function)).parameters
    asked = dict(list(inspect.signature(wanted).parameters.items())[1:])
    assert list(found)[: len(asked)] == list(asked), f"{name}.{function}"
    for argument, parameter in asked.items():
      assert found[argument].kind == parameter.kind, f"{name}.{function}({argument})"
    more = [p for p in list(found.values())[len(asked) :] if p.default is inspect.Parameter.empty]
    assert not more, f"{name}.{function} wants {more}, which nobody gives"


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_step_of_the_spec(name):
  """The loss takes a batch of `batch_spec` and gives additive metrics, traced, not computed."""
  system, cfg = SYSTEMS[name], TINY[name]
  assert config.build(system.Config, config.to_config(cfg)) == cfg
  spec = system.batch_spec(cfg, ROWS, BUCKET)
  assert {leaf.shape[0] for leaf in spec.values()} == {ROWS}
  module = nnx.eval_shape(lambda: system.build(cfg, nnx.Rngs(0)))

  def step(module: Any, batch: Any, key: jax.Array) -> Any:
    return module.loss(module.prepare(batch), key, module.weights(batch))

  loss, metrics = jax.eval_shape(step, module, spec, jax.random.key(0))
  assert (loss.shape, loss.dtype) == ((), jnp.float32)
  assert metrics
  assert all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in metrics.values())


@pytest.mark.parametrize("name", SYSTEMS)
def test_flops_grow_with_the_batch(name):
  system, cfg = SYSTEMS[name], TINY[name]
  one, two = (system.flops(cfg, system.batch_spec(cfg, rows, BUCKET)) for rows in (1, 2))
  assert math.isfinite(one)
  assert one > 1e6
  assert two == pytest.approx(2 * one, rel=0.01)


@pytest.mark.parametrize("name", SYSTEMS)
def test_what_cannot_be_trained_is_refused(name):
  system, cfg = SYSTEMS[name], TINY[name]
  system.check(cfg, [])
  if name == "blip3o":
    with pytest.raises(ValueError, match="the encoder makes the targets and stays frozen"):
      system.check(cfg, ["encoder/tower/kernel"])


@pytest.mark.parametrize("name", SYSTEMS)
def test_pictures_while_training(name, tmp_path):
  """Who cannot draw says so; who can looks for its decoder, or its tokenizer."""
  samples = Samples(decoder=str(tmp_path / "absent"), prompts=("a circle",))
  with pytest.raises((ValueError, OSError), match=r"samples_every|absent|no tokenizer"):
    SYSTEMS[name].sampler(TINY[name], samples, str(tmp_path))
  if name == "blip3o":
    with pytest.raises(ValueError, match=r"samples_every needs config\.samples\.decoder"):
      SYSTEMS[name].sampler(TINY[name], Samples(prompts=("a circle",)), str(tmp_path))


# The formulas, against what XLA counts ------------------------------------------------------------


def counted(function: Any, *args: Any) -> float:
  return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]


def test_towers_of_contrast():
  eva = eva_vit.Config(image_size=32, patch_size=4, dim=256, depth=1, heads=2, mlp_dim=1024)
  tower = nnx.eval_shape(lambda: eva_vit.EvaVit(eva, rngs=nnx.Rngs(0)))
  images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  assert flops.eva(eva) == pytest.approx(counted(lambda m, x: m(x), tower, images), rel=0.1)
  cfg = clip_text.Config(
    vocab_size=50, length=64, dim=256, depth=1, heads=2, mlp_dim=1024, causal=False
  )
  text = nnx.eval_shape(lambda: clip_text.ClipText(cfg, rngs=nnx.Rngs(0)))
  ids = jax.ShapeDtypeStruct((1, 64), jnp.int32)
  assert flops.text(cfg, 64) == pytest.approx(counted(lambda m, t: m(t, t), text, ids), rel=0.1)


def test_networks_of_pixels():
  # Large enough that borders, where a convolution does less, weigh little.
  cfg = autoencoder.Config(latent_channels=4, channels=(16, 32, 32), depth=1, groups=8)
  model = nnx.eval_shape(lambda: autoencoder.Autoencoder(cfg, rngs=nnx.Rngs(0)))
  latents = jax.ShapeDtypeStruct((1, 24, 24, 4), jnp.float32)
  found = counted(lambda m, x: m.decode(x), model, latents)
  assert flops.decode(cfg, 96) == pytest.approx(found, rel=0.1)
  small = unet.Config(
    in_channels=4,
    out_channels=4,
    channels=(64, 128),
    heads=(2, 4),
    depths=(0, 1),
    mid_depth=1,
    resnets=1,
    context_dim=48,
    time_ids_dim=16,
    groups=8,
  )
  network = nnx.eval_shape(lambda: unet.UNet(small, rngs=nnx.Rngs(0)))

  def call(m: Any, x: jax.Array, tokens: jax.Array) -> jax.Array:
    ids = jnp.ones((len(x), unet.TIME_IDS))
    condition = unet.Condition(m.prepare(tokens), jnp.mean(tokens, 1), ids)
    return m(x, jnp.ones(len(x)), condition)

  cells, tokens = jax.ShapeDtypeStruct((1, 32, 32, 4), "f4"), jax.ShapeDtypeStruct((1, 9, 48), "f4")
  formula = flops.paint_condition(small, 9) + flops.paint(small, 32, 9)
  assert formula == pytest.approx(counted(call, network, cells, tokens), rel=0.1)
