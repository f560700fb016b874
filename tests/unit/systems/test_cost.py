"""The operation counts against the figures of spec 11, and against what XLA counts."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import pytest

from blip3o_jax.miniature import sizes
from blip3o_jax.models import autoencoder
from blip3o_jax.systems import blip3o
from blip3o_jax.systems.blip3o import model
from blip3o_jax.systems.blip3o import sizes as released_sizes
from blip3o_jax.systems.parts import flops as shared

flops = model.operations  # the package's own name `flops` is the function of the contract
TERA = 1e12
# Spec 11, TF a sample: (size, T of prompt + 1 + 64) -> language model forward, head.
FORWARD = {
  ("4b", 115): (0.64, 0.07),
  ("4b", 215): (1.20, 0.13),
  ("4b", 512): (2.88, 0.32),
  ("8b", 115): (1.50, 0.13),
  ("8b", 215): (2.82, 0.23),
  ("8b", 512): (6.73, 0.56),
}


@pytest.mark.parametrize(("size", "length"), FORWARD)
def test_language_model(size, length):
  cfg, (forward, head) = released_sizes.released(size).backbone, FORWARD[size, length]
  assert shared.decoder(cfg, length) / TERA == pytest.approx(forward, rel=0.02)
  assert shared.head(cfg, length) / TERA == pytest.approx(head, abs=0.006)
  parts = shared.decoder(cfg, length - 64) + shared.decoder(cfg, 64, length - 64)
  assert parts == pytest.approx(shared.decoder(cfg, length))


@pytest.mark.parametrize(("size", "query"), [("4b", 0.36), ("8b", 0.84)])
def test_generator_and_tower(size, query):
  cfg = released_sizes.released(size)
  assert shared.decoder(cfg.backbone, 64, 151) / TERA == pytest.approx(query, rel=0.02)
  both = flops.condition(cfg.denoiser, 64) + flops.velocity(cfg.denoiser, 64)
  assert both / TERA == pytest.approx(0.153, rel=0.01)
  assert shared.eva(cfg.features.tower) / TERA == pytest.approx(9.39, rel=0.01)
  assert shared.qwen(cfg.visual, 1024) / TERA == pytest.approx(1.35, rel=0.03)


@pytest.mark.parametrize(
  ("size", "full", "total"),
  # T = 215. Full: forward, backward, DiT (spec 11 less recomputing). Stop: forward, suffix, DiT.
  [("4b", True, 2.86), ("8b", True, 6.10), ("4b", False, 2.02), ("8b", False, 4.12)],
)
def test_a_step(size, full, total):
  cfg = dataclasses.replace(
    released_sizes.released(size),
    parts=("denoiser",),
    prompt_gradient="full" if full else "stop",
  )
  spec = blip3o.batch_spec(cfg, 512, 215 - 64)
  assert blip3o.flops(cfg, spec) / 512 / TERA == pytest.approx(total, rel=0.02)
  with_tower = dataclasses.replace(cfg, parts=("denoiser", "encoder"))
  pixels = blip3o.batch_spec(with_tower, 512, 215 - 64)
  assert blip3o.flops(with_tower, pixels) / 512 / TERA == pytest.approx(total + 9.39, rel=0.02)


def test_more_draws_share_the_prompt():
  cfg = dataclasses.replace(released_sizes.released("4b"), parts=("denoiser",))
  twice = dataclasses.replace(cfg, loss=blip3o.Loss(draws=2))
  spec = blip3o.batch_spec(cfg, 1, 151)
  extra = blip3o.flops(twice, spec) - blip3o.flops(cfg, spec)
  assert extra == pytest.approx(3 * flops.velocity(cfg.denoiser, 64))


def test_text_rows_count_head_and_tower():
  cfg = sizes.blip3o_shapes()
  text = dataclasses.replace(cfg, parts=("visual", "head"), loss=blip3o.Loss(image=0, text=1))
  ids = jax.ShapeDtypeStruct((2, 64), jnp.int32)
  patches = jax.ShapeDtypeStruct((2, 3, 64, cfg.visual.patch_dim), jnp.uint8)
  alone = blip3o.flops(text, {"tokens": ids})
  assert alone == pytest.approx(
    6 * (shared.decoder(cfg.backbone, 64) + shared.head(cfg.backbone, 64))
  )
  seen = blip3o.flops(text, {"tokens": ids, "patches": patches})
  assert seen - alone == pytest.approx(6 * 3 * shared.qwen(cfg.visual, 64))
  # A frozen tower that prompts for pictures look through has no gradient at all.
  ids, drawn = blip3o.batch_spec(cfg, 2, 64), dataclasses.replace(cfg, parts=("visual", "denoiser"))
  extra = blip3o.flops(drawn, ids | {"patches": patches}) - blip3o.flops(drawn, ids)
  assert extra == pytest.approx(2 * 3 * shared.qwen(cfg.visual, 64))


def test_autoencoder_against_xla():
  cfg = autoencoder.Config(latent_channels=4, channels=(16, 32, 32), depth=1, groups=8)
  module = nnx.eval_shape(lambda: autoencoder.Autoencoder(cfg, rngs=nnx.Rngs(0)))
  images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  done = jax.jit(lambda m, x: m.encode(x)).lower(module, images).compile()
  assert shared.encode(cfg, 64) == pytest.approx(done.cost_analysis()["flops"], rel=0.1)
