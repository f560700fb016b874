"""The pixel decoder by diffusers: the recorded calls of UNet, autoencoder and scheduler."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from blip3o_jax.systems.parts.painter_recordings import LOOP_SCALE
from blip3o_jax.systems.parts.painter_recordings import LOOP_STEPS

STEM = "diffusion_pytorch_model"
Arrays = dict[str, np.ndarray]


def load(kind: Any, folder: Path) -> Any:
  """A network of diffusers, float32, strictly.

  Raises:
    FileNotFoundError: no such folder. ValueError: keys that are missing or left over.
  """
  if not (folder / "config.json").is_file():
    raise FileNotFoundError(f"{folder}: no config.json of {kind.__name__}")
  variant = "bf16" if (folder / f"{STEM}.bf16.safetensors").exists() else None
  network, info = kind.from_pretrained(
    str(folder),
    variant=variant,
    torch_dtype=torch.float32,
    use_safetensors=True,
    local_files_only=True,
    low_cpu_mem_usage=False,
    output_loading_info=True,
  )
  wrong = {key: sorted(info[key]) for key in ("missing_keys", "unexpected_keys") if info[key]}
  if wrong:
    raise ValueError(f"{folder}: {wrong}")
  return network.eval().requires_grad_(False)


def inputs(home: Path, rng: np.random.Generator) -> Arrays:
  """Random inputs of the sizes that the decoder's config files tell.

  Raises:
    ValueError: a decoder with options that diffusers has not.
  """
  unet = diffusers.UNet2DConditionModel.load_config(str(home / "unet"))
  if unet.get("place_channels"):
    raise ValueError(f"{home}/unet: place_channels is an option of this package, not of diffusers")
  vae = diffusers.AutoencoderKL.load_config(str(home / "vae"))
  grid, channels = unet["sample_size"], unet["in_channels"]
  size = grid * 2 ** (len(vae["block_out_channels"]) - 1)
  width = unet["cross_attention_dim"]
  count = 64 if grid >= 64 else 4

  def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)

  return {
    "features": normal(1, count, width),
    "null_features": normal(1, count, width),
    "unet.sample": normal(2, channels, grid, grid),
    "unet.timestep": np.array(521, np.float32),
    "unet.time_ids": np.array([size, size, 0, 0, size, size], np.int64),
    "vae.image": rng.uniform(-1, 1, (1, vae["in_channels"], size, size)).astype(np.float32),
    "vae.latent": normal(1, vae["latent_channels"], grid, grid),
    "loop.noise": normal(1, channels, grid, grid),
  }


@torch.no_grad()
def record(home: Path, given: Mapping[str, np.ndarray]) -> Arrays:
  """The outputs of the decoder in a folder with `unet`, `vae` and `scheduler` for given inputs."""
  tensors = {name: torch.from_numpy(np.asarray(value)) for name, value in given.items()}
  latents, out = _unet(home, tensors)
  autoencoder = load(diffusers.AutoencoderKL, home / "vae")
  moments = autoencoder.encode(tensors["vae.image"]).latent_dist
  decoded = autoencoder.decode(tensors["vae.latent"]).sample
  picture = autoencoder.decode(latents / autoencoder.config.scaling_factor).sample
  out |= {
    "vae.mean": moments.mean.numpy(),
    "vae.logvar": moments.logvar.numpy(),
    "vae.decoded": decoded.numpy(),
    "loop.image": (picture / 2 + 0.5).clamp(0, 1).numpy(),
  }
  return out


def _unet(home: Path, given: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, Arrays]:
  """The latents of the loop, and what is recorded of the UNet and of the loop."""
  network = load(diffusers.UNet2DConditionModel, home / "unet")
  both = torch.cat([given["features"], given["null_features"]])
  added = {
    "text_embeds": both.mean(1),  # of each half its own
    "time_ids": given["unet.time_ids"].float().expand(2, -1),
  }

  def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return network(x, t, encoder_hidden_states=both, added_cond_kwargs=added).sample

  found = predict(given["unet.sample"], given["unet.timestep"])
  scheduler = diffusers.EulerDiscreteScheduler.from_pretrained(str(home / "scheduler"))
  scheduler.set_timesteps(LOOP_STEPS)
  x = given["loop.noise"] * scheduler.init_noise_sigma
  for t in scheduler.timesteps:
    with_, without = predict(scheduler.scale_model_input(torch.cat([x, x]), t), t).chunk(2)
    guided = without + LOOP_SCALE * (with_ - without)
    x = scheduler.step(guided, t, x, return_dict=False)[0]
  return x, {
    "unet.eps": found.numpy(),
    "loop.timesteps": scheduler.timesteps.float().numpy(),
    "loop.sigmas": scheduler.sigmas.float().numpy(),
    "loop.latent": x.numpy(),
  }
