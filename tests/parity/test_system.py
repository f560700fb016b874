"""The whole system on the tiny checkpoint: reader, prompts, sampler, loss and gradients."""

from pathlib import Path

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip3o_jax import trees
from blip3o_jax.systems import inference

TINY = Path(__file__).parents[1] / "data" / "tiny-blip3o"
CHANNELS_LAST = (0, 2, 3, 1)


@pytest.fixture(scope="module")
def model():
  return inference.load(TINY)


def test_generation_from_ids(model, recorded, check):
  for name in ("gen0", "gen1"):
    ids = np.asarray(recorded[f"{name}.prompt_ids"], np.int32)
    noise = recorded[f"{name}.noise"].transpose(CHANNELS_LAST)
    tokens, segments = inference.prompts.pad_left(ids.tolist(), 32, model.tokenizer.pad)
    for key, steps, scale in (("features", 30, 3.0), ("features_cfg1_8steps", 8, 1.0)):
      out = inference._generate(
        model.system.graphdef, model.system.params, tokens, segments, noise, steps, scale, "euler"
      )
      check(f"{name}.{key}", np.asarray(out).transpose(0, 3, 1, 2), 5e-6)


def training_batch(recorded):
  """The recorded right-padded rows as left-padded prompts without the slots."""
  ids, start = recorded["train.input_ids"], recorded["train.query_start"]
  rows = [row[:n].tolist() for row, n in zip(ids, start, strict=True)]
  tokens, segments = inference.prompts.pad_left(rows, 24, 500)
  images = recorded["train.gen_image"].transpose(0, 2, 3, 1)
  return {"tokens": tokens, "segments": segments, "images": images}


def test_training_loss_and_gradients(model, recorded, check):
  batch = training_batch(recorded)
  flat = trees.flatten(model.system.params)
  noise = recorded["train.noise"].transpose(CHANNELS_LAST)
  t = recorded["train.sigmas"]
  inner = inference.flow

  def loss(params):
    module = nnx.merge(model.system.graphdef, trees.unflatten(flat | params))
    z = module.condition(batch["tokens"], batch["segments"])
    x0 = module.prepare(batch)["features"]
    condition = module.denoiser.prepare(z)
    return jnp.mean(inner.loss(lambda x, s: module.denoiser(x, s, condition), x0, noise, t))

  trained = {p: v for p, v in flat.items() if p.split("/")[0] in ("slots", "denoiser")}
  value, grads = jax.jit(jax.value_and_grad(loss))(trained)
  check("train.loss", value, 2e-6)
  check("train.grad.latent_queries", grads["slots/embedding"], 1.2e-5)
  name = "denoiser/patch_embedder/proj/kernel"
  check("train.grad.dit.model.patch_embedder.proj.weight", grads[name].T, 1.2e-5)


def test_chat_gives_the_recorded_tokens(model, recorded):
  """The answering loop, fed the recorded ids; ids from 495 up are never chosen there."""
  ids, mask = recorded["und.input_ids"], recorded["und.attention_mask"]
  vision = model.cfg.visual
  grids = [tuple(g[1:]) for g in recorded["und.grid_thw"].tolist()]
  positions, deltas = inference.mrope.mrope_positions(
    ids, mask, grids, model.cfg.image_token, vision.merge
  )
  counts = [h * w for h, w in grids]
  rows = np.split(recorded["und.pixel_values"], np.cumsum(counts)[:-1])
  n = max(counts)
  patches = np.stack([np.pad(r, ((0, n - len(r)), (0, 0))) for r in rows])
  layout = inference.qwen_vision.layout(grids, n, vision)
  out = inference.answer(
    model.system.graphdef,
    model.system.params,
    (ids.astype(np.int32), mask.astype(np.int32), positions, deltas, patches, layout),
    (12, 495, (599,)),
    0.0,
    jax.random.key(0),
  )
  np.testing.assert_array_equal(out, recorded["und.greedy_tokens"])


def test_an_image_does_not_depend_on_its_batch(model):
  texts = ["a cat", "two dogs on a long red bench", "sky"]
  together = np.asarray(model.features(texts, [1, 2, 3], steps=4))
  alone = np.asarray(model.features(texts[1:2], [2], steps=4))
  np.testing.assert_allclose(together[1:2], alone, rtol=2e-4, atol=2e-5)


def test_an_altered_weight_is_caught(model, recorded):
  flat = trees.flatten(model.system.params)
  path = "denoiser/layers/attn2/to_k/kernel"
  flat[path] = flat[path].at[0, 0, 0].add(0.5)
  noise = recorded["gen0.noise"].transpose(CHANNELS_LAST)
  ids = np.asarray(recorded["gen0.prompt_ids"], np.int32)
  tokens, segments = inference.prompts.pad_left(ids.tolist(), 32, 500)
  out = inference._generate(
    model.system.graphdef, trees.unflatten(flat), tokens, segments, noise, 8, 1.0, "euler"
  )
  wanted = recorded["gen0.features_cfg1_8steps"].transpose(CHANNELS_LAST)
  assert np.linalg.norm(out - wanted) / np.linalg.norm(wanted) > 1.5 * 5e-6


def test_verbs_give_pictures_and_text(model):
  image = model.generate(["a cat"], [0], steps=2, pixel_steps=2)
  assert image.shape == (1, 128, 128, 3)
  assert image.dtype == np.uint8
  picture = inference.Image.fromarray(image[0])
  assert model.reconstruct([picture], [0], pixel_steps=2).shape == (1, 128, 128, 3)
  answers = model.chat(["what is this?", "hello"], [picture, None], length=4)
  assert all(isinstance(a, str) for a in answers)
