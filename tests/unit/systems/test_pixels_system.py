"""The pixel decoder as a system: both trainings, generation, files and their configs."""

from collections.abc import Callable
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from blip3o_jax import config
from blip3o_jax import trees
from blip3o_jax.diffusion import eps
from blip3o_jax.models import autoencoder
from blip3o_jax.models import unet
from blip3o_jax.systems import pixels
from blip3o_jax.systems.parts import cores
from blip3o_jax.systems.parts import decoder_files
from blip3o_jax.systems.parts import diffusers_files
from blip3o_jax.systems.parts import features as feature_space
from blip3o_jax.systems.parts import loading
from blip3o_jax.systems.parts import painter
from blip3o_jax.systems.parts import painter_files
from blip3o_jax.systems.parts import watching
from blip3o_jax.systems.parts.network import Network

TINY = pixels.Config(
  unet=unet.Config(
    channels=(8, 8),
    heads=(2, 2),
    depths=(0, 1),
    mid_depth=1,
    resnets=1,
    context_dim=6,
    time_ids_dim=4,
    groups=4,
  ),
  autoencoder=autoencoder.Config(channels=(8, 8), depth=1, groups=4, scaling_factor=0.7),
  grid=4,
  feature_grid=2,
)
TRAIN_AUTOENCODER = dataclasses.replace(
  TINY, train="autoencoder", loss=pixels.Loss(mse=1.0, edges=0.5, kl=1e-3)
)
CONFIGS = [TINY, TRAIN_AUTOENCODER]


prepare = jax.jit(lambda module, batch: module.prepare(batch))
encode = jax.jit(lambda module, images: module.autoencoder.encode(images)[0])
loss_of = jax.jit(lambda module, batch, key, weights: module.loss(batch, key, weights))


@pytest.fixture(scope="module")
def decoder(fill: Callable[..., Any]) -> pixels.PixelTraining:
  return fill(lambda: pixels.build(TINY, nnx.Rngs(0)))


def sizes_of(cfg: pixels.Config) -> painter.Config:
  """What files say of a config: nothing of its training."""
  names = [f.name for f in dataclasses.fields(painter.Config)]
  return painter.Config(**{name: getattr(cfg, name) for name in names})


def batch_of(cfg: pixels.Config, count: int) -> dict[str, jax.Array]:
  spec = pixels.batch_spec(cfg, count)
  keys = jax.random.split(jax.random.key(7), len(spec))
  return {
    name: jnp.tanh(jax.random.normal(key, s.shape))  # images as they are when normalised
    for key, (name, s) in zip(keys, spec.items(), strict=True)
  }


@pytest.mark.parametrize("cfg", CONFIGS, ids=["unet", "autoencoder"])
def test_training_lowers_the_loss(cfg: pixels.Config, fill: Callable[..., Any]) -> None:
  module = fill(lambda: pixels.build(cfg, nnx.Rngs(0)))
  split: Any = nnx.split(module, lambda path, _: path[0] == cfg.train, ...)
  graphdef, params, frozen = split
  batch, key = prepare(module, batch_of(cfg, 4)), jax.random.key(0)
  tx = optax.adam(3e-3)

  @jax.jit
  def step(params: Any, opt: Any) -> Any:
    def loss(params: Any) -> Any:
      model = nnx.merge(graphdef, params, frozen)
      return model.loss(batch, key, model.weights(batch))

    (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params)
    updates, opt = tx.update(grads, opt, params)
    return optax.apply_updates(params, updates), opt, value, metrics

  opt, values = tx.init(params), []
  for _ in range(20):
    params, opt, value, metrics = step(params, opt)
    values.append(float(value))
  assert values[-1] < 0.8 * values[0]
  assert all(np.isfinite(m).all() for m in metrics.values())


@pytest.mark.parametrize("cfg", CONFIGS, ids=["unet", "autoencoder"])
def test_losses_of_microbatches_add_up(cfg: pixels.Config, fill: Callable[..., Any]) -> None:
  module = fill(lambda: pixels.build(cfg, nnx.Rngs(0)))
  batch = prepare(module, batch_of(cfg, 2))
  twice = {k: jnp.concatenate([v, v]) for k, v in batch.items()}
  whole = module.weights(twice)
  assert set(whole) == {"samples"}
  key = jax.random.key(1)
  part, metrics = loss_of(module, batch, key, whole)
  alone, same = loss_of(module, batch, key, module.weights(batch))
  np.testing.assert_allclose(2 * part, alone, rtol=1e-5)
  for name in metrics:
    factor = 1 if "_by_t/" in name else 2  # sums and counts are not normalised
    np.testing.assert_allclose(factor * metrics[name], same[name], rtol=1e-5)


def test_drop_gives_the_null_loss(decoder: pixels.PixelTraining) -> None:
  batch, key = prepare(decoder, batch_of(TINY, 3)), jax.random.key(3)
  _, state = nnx.split(decoder)

  def loss(drop: float, features: jax.Array) -> float:
    cfg = dataclasses.replace(TINY, loss=dataclasses.replace(TINY.loss, drop=drop))
    abstract = nnx.eval_shape(lambda: pixels.build(cfg, nnx.Rngs(0)))
    model = nnx.merge(nnx.graphdef(abstract), state)
    value, _ = loss_of(model, {**batch, "features": features}, key, model.weights(batch))
    return float(value)

  zeros = jnp.zeros_like(batch["features"])
  assert loss(1.0, batch["features"]) == pytest.approx(loss(0.0, zeros), rel=1e-6)
  assert loss(0.0, batch["features"]) != pytest.approx(loss(0.0, zeros), rel=1e-4)


def test_prepare_encodes_once_and_scales(decoder: pixels.PixelTraining) -> None:
  batch = batch_of(TINY, 2)
  ready = prepare(decoder, batch)
  mean = encode(decoder, batch["images"])
  np.testing.assert_allclose(ready["latents"], 0.7 * mean, rtol=1e-5)
  assert "images" not in ready
  assert decoder.prepare(ready) is ready


def test_images_do_not_depend_on_batch_mates(decoder: pixels.PixelTraining) -> None:
  features = jax.random.normal(jax.random.key(0), (3, 2, 2, 6))
  seeds = np.asarray([5, 6, 7], np.uint32)
  network, options = Network.of(decoder), {"steps": 3, "scale": 2.0}
  draw = functools.partial(painter.sample, network, **options)
  latents = draw(features, seeds)
  np.testing.assert_allclose(draw(features[1:2], seeds[1:2]), latents[1:2], atol=2e-5)
  assert np.abs(latents[0] - latents[1]).max() > 1e-2
  images = painter.paint(network, features, [5, 6, 7], **options)
  assert images.shape == (3, 8, 8, 3)
  wanted = np.asarray(decoder.pixels(jnp.asarray(latents)))
  assert wanted.min() >= 0
  assert wanted.max() <= 1
  assert np.abs(images - 255 * wanted).max() < 0.51


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("available", [2, 8])
def test_latents_do_not_depend_on_the_cores(
  decoder: pixels.PixelTraining, monkeypatch: pytest.MonkeyPatch, available: int, scale: float
) -> None:
  features, network = jax.random.normal(jax.random.key(0), (3, 2, 2, 6)), Network.of(decoder)
  null, noise = features[::-1] * 0.5, np.asarray([5, 6, 7], np.uint32)

  def sample(cores_here: int) -> np.ndarray:
    monkeypatch.setattr(cores, "count", lambda: cores_here)
    return painter.sample(network, features, noise, steps=3, scale=scale, null=null)

  np.testing.assert_allclose(sample(available), sample(1), atol=2e-5)


def test_images_are_the_same_while_somebody_watches(decoder: pixels.PixelTraining) -> None:
  features = jax.random.normal(jax.random.key(0), (3, 2, 2, 6))
  paint = functools.partial(painter.paint, Network.of(decoder), features, [5, 6, 7], steps=3)
  plain, seen = paint(), []

  def watch(step: watching.Step) -> None:
    assert step.preview is not None
    seen.append((step.stage, step.done, step.total, step.preview()))

  np.testing.assert_array_equal(paint(watch=watch), plain)
  assert [step[:3] for step in seen] == [("pixels", done, 3) for done in (1, 2, 3)]
  np.testing.assert_array_equal(seen[-1][3], plain)
  assert all(np.abs(step[3].astype(int) - plain).max() > 0 for step in seen[:2])
  assert all(step[3].shape == plain.shape == (3, 8, 8, 3) for step in seen)


def test_guidance(decoder: pixels.PixelTraining) -> None:
  features = jax.random.normal(jax.random.key(0), (2, 2, 2, 6))
  noise = np.asarray([1, 2], np.uint32)
  sample = functools.partial(painter.sample, Network.of(decoder), noise=noise, steps=2)
  null = jax.random.normal(jax.random.key(2), (2, 2, 6))
  guided = sample(features, scale=1.5, null=null)
  assert float(np.abs(guided - sample(features, scale=1.5)).max()) > 1e-4  # zeros by default
  np.testing.assert_allclose(sample(features, scale=1.5, null=null[None]), guided, atol=1e-6)
  plain = sample(features, scale=1)
  np.testing.assert_allclose(sample(features, scale=1.000001, null=null), plain, atol=1e-4)
  np.testing.assert_allclose(sample(features, scale=0.0, null=features), plain, atol=1e-4)


def test_wrong_count_of_noise(decoder: pixels.PixelTraining) -> None:
  with pytest.raises(ValueError, match="2 features but noise for 1 images"):
    painter.paint(Network.of(decoder), np.zeros((2, 2, 2, 6)), [0])


def test_latent_scale_makes_unit_variance(decoder: pixels.PixelTraining) -> None:
  images = batch_of(TINY, 4)["images"]
  mean = encode(decoder, images)
  scale = autoencoder.latent_scale(decoder.autoencoder, images)
  np.testing.assert_allclose(jnp.std(scale * mean), 1.0, rtol=1e-5)


def test_places_are_told_apart_and_saved(tmp_path: Path) -> None:
  code = feature_space.place_code(4, 6)
  distance = np.linalg.norm(code[:, None] - code[None], axis=-1)
  assert code.shape == (16, 6)
  assert distance[~np.eye(16, dtype=bool)].min() > 1
  cfg = dataclasses.replace(
    TINY, places=2, unet=dataclasses.replace(TINY.unet, context_dim=TINY.unet.context_dim + 2)
  )
  assert pixels.batch_spec(cfg, 3)["features"].shape == (3, 2, 2, 6)
  module = pixels.build(cfg, nnx.Rngs(0))
  features = jax.random.normal(jax.random.key(0), (1, 2, 2, 6))
  swapped = features[:, ::-1]
  a, b = (nnx.jit(lambda m, f: m.condition(f).keys_values)(module, f) for f in (features, swapped))
  moved = jax.tree.map(lambda x: jnp.take(x, jnp.array([2, 3, 0, 1]), axis=-3), b)
  assert (
    max(float(jnp.abs(x - y).max()) for x, y in zip(*map(jax.tree.leaves, (a, moved)), strict=True))
    > 1e-3
  )
  decoder_files.save(
    cfg, tmp_path / diffusers_files.FOLDER, trees.flatten(nnx.to_pure_dict(nnx.state(module)))
  )
  assert painter_files.read_config(tmp_path, feature_grid=2) == sizes_of(cfg)
  with pytest.raises(ValueError, match="places 3: expected an even number"):
    dataclasses.replace(cfg, places=3)


def test_files_round_trip(decoder: pixels.PixelTraining, tmp_path: Path) -> None:
  params = trees.flatten(nnx.to_pure_dict(nnx.state(decoder)))
  decoder_files.save(TINY, tmp_path / diffusers_files.FOLDER, params)
  assert painter_files.read_config(tmp_path, feature_grid=2) == sizes_of(TINY)
  abstract = {p: jax.ShapeDtypeStruct(v.shape, v.dtype) for p, v in params.items()}
  again, _ = loading.fill(pixels, TINY, loading.resolve([str(tmp_path)]), abstract, abstract)
  assert set(again) == set(params)
  for path, value in params.items():
    np.testing.assert_array_equal(again[path], value)
  part = {p: v for p, v in abstract.items() if p.startswith("autoencoder/")}
  used = loading.resolve([str(tmp_path / diffusers_files.FOLDER)])
  found, _ = loading.fill(pixels, TINY, used, part, part)
  assert set(found) == set(part)
  with pytest.raises(FileNotFoundError, match="diffusion-decoder"):
    loading.fill(pixels, TINY, [loading.Source(str(tmp_path / "no"), "released")], part, part)


def test_config_is_a_config() -> None:
  assert config.build(pixels.Config, config.to_config(TINY)) == TINY
  with pytest.raises(ValueError, match="latents have 4"):
    dataclasses.replace(TINY, unet=dataclasses.replace(TINY.unet, in_channels=8))
  assert pixels.VARIANTS["emu2_gen"].size == 1024


# Config files -------------------------------------------------------------------------------------


def test_absent_and_null_fields_have_documented_defaults() -> None:
  cfg = diffusers_files.unet_config({"_diffusers_version": "9", "dropout": 0.1})
  assert cfg.channels == (320, 640, 1280, 1280)
  assert cfg.depths == (1, 1, 1, 0)
  assert (cfg.heads, cfg.time_ids_dim, cfg.resnets) == ((8,) * 4, 0, 2)
  vae = diffusers_files.vae_config({"block_out_channels": [32, 64], "shift_factor": None})
  assert vae == autoencoder.Config(channels=(32, 64), depth=1, scaling_factor=0.18215)
  assert diffusers_files.schedule_config({}) == eps.Schedule(
    1e-4, 0.02, "linear", 1000, "linspace", 0
  )


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"act_fn": "gelu"}, "act_fn 'gelu' is not built, only 'silu'"),
    ({"up_block_types": ["UpBlock2D"] * 4}, "does not mirror"),
    ({"down_block_types": ["AttnDownBlock2D"] * 4}, "is not built"),
    ({"attention_head_dim": [8, 8]}, "not one number for each of 4 levels"),
    ({"addition_embed_type": "image"}, "addition_embed_type 'image'"),
    ({"mid_block_type": "Odd"}, "mid_block_type 'Odd'"),
    ({"layers_per_block": [1, 2, 2, 2]}, "one number each"),
    ({"novelty": 3}, "novelty 3 is no field that is known here"),
    ({"in_channels": "4"}, "in_channels '4': expected a whole number"),
  ],
)
def test_what_is_not_built_is_named(fields: dict[str, Any], words: str) -> None:
  with pytest.raises(ValueError, match=words):
    diffusers_files.unet_config(fields)


@pytest.mark.parametrize(
  ("read", "fields", "words"),
  [
    (diffusers_files.vae_config, {"latents_mean": [0.0]}, "latents_mean"),
    (diffusers_files.vae_config, {"up_block_types": ["Odd"]}, "up_block_types"),
    (diffusers_files.schedule_config, {"prediction_type": "v_prediction"}, "only 'epsilon'"),
    (diffusers_files.schedule_config, {"beta_schedule": "cosine"}, "'cosine' is not built"),
  ],
)
def test_other_files_too(read: Callable[..., Any], fields: dict[str, Any], words: str) -> None:
  with pytest.raises(ValueError, match=words):
    read(fields)


def test_released_sizes_survive_their_own_files() -> None:
  cfg = pixels.VARIANTS["emu2_gen"]
  text = json.loads(json.dumps(diffusers_files.unet_json(cfg.unet, grid=cfg.grid)))
  assert text["projection_class_embeddings_input_dim"] == 3328
  assert text["transformer_layers_per_block"] == [1, 2, 10]
  assert diffusers_files.unet_config(text, dtype="bfloat16") == cfg.unet
  text = json.loads(json.dumps(diffusers_files.vae_json(cfg.autoencoder, size=cfg.size)))
  assert diffusers_files.vae_config(text) == cfg.autoencoder
  assert (
    diffusers_files.schedule_config(diffusers_files.schedule_json(cfg.schedule)) == cfg.schedule
  )
