"""The pixel decoder against the recorded PyTorch reference, through the tables of weights."""

from collections.abc import Callable
from collections.abc import Mapping
from pathlib import Path
import shutil
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_model

from blip3o_jax import trees
from blip3o_jax.diffusion import eps
from blip3o_jax.diffusion import guidance
from blip3o_jax.systems.parts import diffusers_files
from blip3o_jax.systems.parts import loading
from blip3o_jax.systems.parts import painter
from blip3o_jax.systems.parts import painter_files
from blip3o_jax.systems.parts.network import Network
from blip3o_jax.weights.safetensors import Tensors

TINY = Path(__file__).parents[1] / "data" / "tiny-blip3o"
GRID = 2  # cells a side of the recorded features

Recorded = Mapping[str, np.ndarray]
Check = Callable[..., None]


def last(x: np.ndarray) -> jax.Array:
  """Channels first to last."""
  return jnp.asarray(np.moveaxis(x, 1, -1))


def first(x: jax.Array) -> np.ndarray:
  """Channels last to first."""
  return np.moveaxis(np.asarray(x), -1, 1)


call = jax.jit(lambda model, *args: model(*args))
conditions = jax.jit(
  lambda decoder, a, b: guidance.join(decoder.condition(a), decoder.condition(b), painter.AXES)
)
encode = jax.jit(lambda model, x: model.encode(x))
decode = jax.jit(lambda model, x: model.decode(x))


def error(found: np.ndarray, wanted: np.ndarray) -> float:
  """|found - wanted| / |wanted|."""
  return float(np.linalg.norm(np.float64(found) - wanted) / np.linalg.norm(wanted))


def load(directory: Path) -> painter.PixelDecoder:
  """The decoder of a directory, through the public reader."""
  cfg = painter_files.read_config(directory, feature_grid=GRID)
  return loading.load(painter, cfg, directory, dtype=None).module()


@pytest.fixture(scope="module")
def decoder() -> painter.PixelDecoder:
  """The recorded miniature."""
  return load(TINY)


def features(recorded: Recorded, name: str = "features") -> jax.Array:
  """(1, Q, C) as float[1, h, w, C]."""
  tokens = recorded[f"decoder.{name}"]
  return jnp.asarray(tokens.reshape(1, GRID, GRID, tokens.shape[-1]))


def unet_eps(decoder: painter.PixelDecoder, recorded: Recorded) -> np.ndarray:
  """The recorded call: condition first, null second, each with its own token mean."""
  condition = conditions(decoder, features(recorded), features(recorded, "null_features"))
  np.testing.assert_array_equal(condition.time_ids[0], recorded["decoder.unet.time_ids"])
  x = last(recorded["decoder.unet.sample"])
  t = jnp.full((len(x),), recorded["decoder.unet.timestep"])
  return first(call(decoder.unet, x, t, condition))


def test_loop(decoder: painter.PixelDecoder, recorded: Recorded, check: Check) -> None:
  latents = painter.sample(
    Network.of(decoder),
    features(recorded),
    last(recorded["decoder.loop.noise"]),
    steps=12,
    scale=3.0,
    null=features(recorded, "null_features"),
  )
  check("decoder.loop.latent", first(latents), 2e-6)
  check("decoder.loop.image", first(decoder.pixels(latents)), 2e-6)


@pytest.mark.parametrize("every", [16, pytest.param(1, marks=pytest.mark.slow)])
def test_altered_weights_are_caught(
  decoder: painter.PixelDecoder, recorded: Recorded, every: int
) -> None:
  """The test of the test: one element of a UNet parameter, and one recorded number."""
  wanted = recorded["decoder.unet.eps"]
  graphdef, state = nnx.split(decoder)
  flat = trees.flatten(nnx.to_pure_dict(state))
  weak = []
  for path in [p for p in flat if p.startswith("unet/")][::every]:
    value = flat[path]
    altered = trees.unflatten(flat | {path: value.at[(0,) * value.ndim].add(0.5)})
    if error(unet_eps(nnx.merge(graphdef, altered), recorded), wanted) < 1.5 * 2e-6:
      weak.append(path)
  assert not weak
  wrong = wanted.copy()
  wrong.flat[7] += 0.01
  assert error(unet_eps(decoder, recorded), wrong) > 1.5 * 2e-6


def test_altered_file_is_caught(tmp_path: Path) -> None:
  """A missing tensor and one of the wrong shape are named together."""
  from safetensors.numpy import save_file

  home = tmp_path / "diffusion-decoder"
  shutil.copytree(TINY / "diffusion-decoder", home)
  file = home / "unet" / "diffusion_pytorch_model.safetensors"
  stored = Tensors(file)
  tensors: dict[str, Any] = {name: stored.read(name) for name in stored}
  del tensors["conv_in.bias"]
  tensors["conv_out.weight"] = np.zeros((5, 32, 3, 3), np.float32)
  save_file(tensors, file)
  with pytest.raises(ValueError, match=r"(?s)missing conv_in.bias.*shape of conv_out.weight"):
    load(tmp_path)


# Against the installed diffusers, freshly randomised ----------------------------------------------

UNET = dict(
  sample_size=8,
  block_out_channels=(16, 32, 64),
  down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
  up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
  transformer_layers_per_block=[1, 1, 3],
  attention_head_dim=[2, 4, 2],
  cross_attention_dim=24,
  addition_embed_type="text_time",
  addition_time_embed_dim=8,
  projection_class_embeddings_input_dim=24 + 48,
  norm_num_groups=4,
  use_linear_projection=True,
)
# Attention above, none below or in time: another arrangement of the same pieces.
PLAIN = dict(
  down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
  up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
  layers_per_block=1,
  addition_embed_type=None,
  addition_time_embed_dim=None,
  projection_class_embeddings_input_dim=None,
)
VAE = dict(
  block_out_channels=(16, 32),
  down_block_types=("DownEncoderBlock2D",) * 2,
  up_block_types=("UpDecoderBlock2D",) * 2,
  latent_channels=4,
  norm_num_groups=8,
  layers_per_block=2,
)
BARE = dict(mid_block_add_attention=False, use_quant_conv=False, use_post_quant_conv=False)


def arguments(kind: str, sizes: np.random.Generator) -> tuple[dict[str, Any], dict[str, Any]]:
  """What diffusers makes the two networks from: the release's arrangement, another, or drawn."""
  if kind != "drawn":
    return (UNET, VAE) if kind == "released" else (UNET | PLAIN, VAE | BARE)
  cfg = random_model.decoder(sizes)
  print(cfg)
  unet = diffusers_files.unet_json(cfg.unet, grid=cfg.grid)
  vae = diffusers_files.vae_json(cfg.autoencoder, size=cfg.size)
  return tuple({k: v for k, v in j.items() if k != "_class_name"} for j in (unet, vae))


def oracle(directory: Path, unet: dict[str, Any], vae: dict[str, Any]) -> tuple[Any, Any]:
  """Writes random networks of diffusers as a released directory; returns them."""
  torch = pytest.importorskip("torch")
  diffusers = pytest.importorskip("diffusers")
  torch.manual_seed(3)
  networks = diffusers.UNet2DConditionModel(**unet), diffusers.AutoencoderKL(**vae)
  for network, name in zip(networks, ("unet", "vae"), strict=True):
    for parameter in network.parameters():
      noise = torch.randn_like(parameter)
      scale = 0.2 if parameter.ndim == 1 else 1 / np.sqrt(parameter[0].numel())
      parameter.data.copy_(noise * scale + (parameter.ndim == 1) * parameter.data.round())
    network.eval().save_pretrained(directory / "diffusion-decoder" / name)
  scheduler = diffusers.EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1)
  scheduler.save_pretrained(directory / "diffusion-decoder" / "scheduler")
  return networks


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["released", "other", "drawn"])
def test_random_networks_of_diffusers(
  tmp_path: Path, check: Check, sizes: np.random.Generator, kind: str
) -> None:
  torch = pytest.importorskip("torch")
  theirs, autoencoder = oracle(tmp_path, *arguments(kind, sizes))
  ours = load(tmp_path)
  width = ours.cfg.unet.context_dim
  rng = np.random.default_rng(0)
  x, t = rng.standard_normal((3, 4, 8, 8), np.float32), np.array([1, 500, 914], np.float32)
  tokens = rng.standard_normal((3, 4, width), np.float32)
  condition = ours.condition(jnp.asarray(tokens.reshape(3, GRID, GRID, width)))
  images = rng.uniform(-1, 1, (2, 3, 16, 16)).astype(np.float32)
  with torch.no_grad():
    added = {
      "text_embeds": torch.tensor(np.asarray(condition.pooled)),
      "time_ids": torch.tensor(np.asarray(condition.time_ids)),
    }
    given = (torch.tensor(v) for v in (x, t, tokens))
    wanted = theirs(*given, added_cond_kwargs=added).sample
    moments = autoencoder.encode(torch.tensor(images)).latent_dist
    decoded = autoencoder.decode(moments.mean).sample
  # The bar is the recorded miniature's; drawn sizes round otherwise.
  bar = 5e-6 if kind == "drawn" else 2e-6
  found = first(call(ours.unet, last(x), jnp.asarray(t), condition))
  check(f"diffusers, {kind}: unet", found, bar, wanted)
  mean, logvar = encode(ours.autoencoder, last(images))
  check(f"diffusers, {kind}: vae.mean", first(mean), 3e-6, moments.mean)
  check(f"diffusers, {kind}: vae.logvar", first(logvar), 3e-6, moments.logvar)
  found = decode(ours.autoencoder, last(np.asarray(moments.mean)))
  check(f"diffusers, {kind}: vae.decoded", first(found), 4e-6, decoded)


@pytest.mark.torch
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("betas", ["linear", "scaled_linear"])
def test_schedule_of_diffusers(check: Check, spacing: Any, betas: Any) -> None:
  torch = pytest.importorskip("torch")
  diffusers = pytest.importorskip("diffusers")
  theirs = diffusers.EulerDiscreteScheduler(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule=betas,
    timestep_spacing=spacing,
    steps_offset=1,
  )
  theirs.set_timesteps(7)
  ours = diffusers_files.schedule_config(dict(theirs.config))
  noise = jax.random.normal(jax.random.key(1), (2, 4, 4, 3))
  x = torch.tensor(np.asarray(noise)) * theirs.init_noise_sigma
  for t in theirs.timesteps:
    predicted = torch.tanh(theirs.scale_model_input(x, t) + t / 1000)
    x = theirs.step(predicted, t, x).prev_sample
  sigmas, timesteps = eps.steps(ours, 7)
  check(f"diffusers {spacing} timesteps", timesteps, 1e-7, theirs.timesteps)
  check(f"diffusers {spacing} sigmas", sigmas, 2e-6, theirs.sigmas)

  def fn(x: jax.Array, t: jax.Array) -> jax.Array:
    return jnp.tanh(x + t[:, None, None, None] / 1000)

  check(f"diffusers {spacing}", eps.euler(fn, noise, eps.table(ours, 7)), 2e-6, x)
