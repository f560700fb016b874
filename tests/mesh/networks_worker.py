"""Runs every network of the miniature on a mesh of all three axes and on one device of the same
process; prints {network: largest relative error} as one JSON line. Needs 8 CPU devices."""

from collections.abc import Callable
import dataclasses
import json
import sys
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from blip3o_jax import layers
from blip3o_jax import quantized
from blip3o_jax import sharding
from blip3o_jax import trees
from blip3o_jax.attention import attention
from blip3o_jax.miniature import sizes
from blip3o_jax.models import autoencoder
from blip3o_jax.models import decoder_lm
from blip3o_jax.models import eva_vit
from blip3o_jax.models import next_dit
from blip3o_jax.models import qwen_vision
from blip3o_jax.models import unet

BATCH = 8
SIZES, PIXELS = sizes.blip3o_shapes(), sizes.pixels_shapes()


def draw(seed: int, *shape: int) -> jax.Array:
  return jax.random.normal(jax.random.key(seed), (BATCH, *shape))


def language(m: decoder_lm.DecoderLM, x: jax.Array) -> jax.Array:
  ones = jnp.ones(x.shape[:2], jnp.int32)
  return m.logits(m(x, decoder_lm.plain_positions(ones), ones))


def vision(m: qwen_vision.QwenVision, x: jax.Array) -> jax.Array:
  return m(x, qwen_vision.layout([(8, 8)] * BATCH, 64, SIZES.visual))


def denoise(m: next_dit.NextDiT, x: jax.Array) -> jax.Array:
  z = jnp.tile(x.reshape(BATCH, 16, -1), 8)[..., : SIZES.denoiser.condition_dim]
  return m(x, jnp.linspace(1, 999, BATCH), m.prepare(z))


def decode(m: unet.UNet, x: jax.Array) -> jax.Array:
  tokens = x.reshape(BATCH, 16, -1)[..., : PIXELS.unet.context_dim]
  ids = jnp.ones((BATCH, 6))
  condition = unet.Condition(m.prepare(tokens), jnp.mean(tokens, 1), ids)
  return m(x, jnp.linspace(1, 999, BATCH), condition)


def both_ways(m: autoencoder.Autoencoder, x: jax.Array) -> jax.Array:
  return m.decode(m.encode(x)[0])


class Mixer(nnx.Module):
  """The attention that TPUs take, with pairs of heads (4 of 64), single heads (2) and groups."""

  def __init__(self, rngs: nnx.Rngs):
    axes = ("embed", "heads")
    self.q, self.k, self.v = (layers.linear(32, 256, axes, rngs=rngs) for _ in range(3))

  def __call__(self, x: jax.Array) -> jax.Array:
    q, k, v = (layers.split_heads(each(x), 4) for each in (self.q, self.k, self.v))
    heads = ((4, 4), (2, 2), (4, 2))
    return jnp.concatenate(
      [attention(q[:, :, :n], k[:, :, :m], v[:, :, :m], impl="columns") for n, m in heads], 2
    )


CASES: dict[str, tuple[Callable[[nnx.Rngs], nnx.Module], Callable[..., jax.Array], jax.Array]] = {
  "decoder_lm": (
    lambda r: decoder_lm.DecoderLM(SIZES.backbone, rngs=r),
    language,
    draw(0, 24, 128),
  ),
  "decoder_lm_int8": (
    lambda r: decoder_lm.DecoderLM(dataclasses.replace(SIZES.backbone, quantize="int8"), rngs=r),
    language,
    draw(0, 24, 128),
  ),
  "qwen_vision": (lambda r: qwen_vision.QwenVision(SIZES.visual, rngs=r), vision, draw(1, 64, 384)),
  "next_dit": (
    lambda r: next_dit.NextDiT(SIZES.denoiser, rngs=r),
    denoise,
    draw(2, 4, 4, SIZES.channels),
  ),
  "eva_vit": (
    lambda r: eva_vit.EvaVit(SIZES.features.tower, rngs=r),
    lambda m, x: m(x),
    draw(3, 64, 64, 3),
  ),
  "attention": (Mixer, lambda m, x: m(x), draw(6, 24, 32)),
  "unet": (lambda r: unet.UNet(PIXELS.unet, rngs=r), decode, draw(4, 8, 8, 8)),
  "autoencoder": (
    lambda r: autoencoder.Autoencoder(PIXELS.autoencoder, rngs=r),
    both_ways,
    draw(5, 64, 64, 3),
  ),
}


def error(make: Any, call: Any, x: jax.Array, mesh: jax.sharding.Mesh) -> float:
  """||a - b|| / ||b|| of output and gradient together, on the mesh and on one device."""
  module = make(nnx.Rngs(0))
  graphdef, state = nnx.split(module)
  axes, rng = sharding.param_axes(module), np.random.default_rng(0)
  # Noise on all leaves: gates and biases that start at zero would hide what they multiply.
  plain = {path: np.asarray(v) for path, v in trees.flatten(nnx.to_pure_dict(state)).items()}
  frozen = {p for pair in quantized.scales_of(plain).items() for p in pair}
  flat = {
    path: v if path in frozen else v + 0.05 * rng.normal(size=v.shape).astype(np.float32)
    for path, v in plain.items()
  }

  def loss(params: Any, fixed: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    out = call(nnx.merge(graphdef, params, fixed), x)
    return jnp.mean(jnp.square(out)), out

  def run(params: Any, x: jax.Array) -> list[np.ndarray]:
    fixed, params = trees.partition(params, frozen.__contains__)
    (_, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, fixed, x)
    return [np.asarray(v) for v in (out, *jax.tree.leaves(grads))]

  one = run(trees.unflatten(flat), x)
  placed = {
    path: jax.device_put(v, jax.sharding.NamedSharding(mesh, sharding.to_spec(axes[path])))
    for path, v in flat.items()
  }
  with jax.set_mesh(mesh):
    many = run(trees.unflatten(placed), jax.device_put(x, sharding.batch_sharding(mesh)))
  return max(
    float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-3))
    for a, b in zip(many, one, strict=True)
  )


if __name__ == "__main__":
  cube = sharding.make_mesh(replica=2, fsdp=2, tensor=2)
  found = {name: error(*CASES[name], cube) for name in sys.argv[1:]}
  sys.stdout.write(json.dumps(found) + "\n")
