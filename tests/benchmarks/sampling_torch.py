"""The shipped miniature in PyTorch, from prompt to picture: PyTorch's side of sampling.py.

Each network is the reference's own: transformers' language model, the DiT of `verify.torch` with
`scaled_dot_product_attention` and a table of rotations that is made once, diffusers' UNet,
autoencoder and scheduler. What the miniature has and the release has not stands here: a code of
each cell's place beside the features, and patches of pixels in the autoencoder's channels.
"""

from collections.abc import Sequence
import functools
import json
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import torch
from torch.nn import functional as F

from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.systems.blip3o import prompts
from blip3o_jax.systems.parts import features as feature_space
from blip3o_jax.verify.torch import checkpoint as checkpoints
from blip3o_jax.verify.torch import decoder
from blip3o_jax.verify.torch import next_dit
from blip3o_jax.verify.torch import qwen
from blip3o_jax.verify.torch import system
from blip3o_jax.weights.safetensors import Tensors


class Attention(next_dit.Attention):
  """The same by PyTorch's kernel."""

  def forward(
    self, x: torch.Tensor, context: torch.Tensor, turn: torch.Tensor, turn_keys: bool, heads: int
  ) -> torch.Tensor:
    head = x.shape[-1] // heads
    q = self.norm_q(self.to_q(x)).unflatten(-1, (-1, head)).transpose(1, 2)
    k = self.norm_k(self.to_k(context)).unflatten(-1, (-1, head)).transpose(1, 2)
    v = self.to_v(context).unflatten(-1, (-1, head)).transpose(1, 2)
    q = next_dit.rotate(q, turn)
    k = next_dit.rotate(k, turn) if turn_keys else k
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=k.shape[1] != heads)


class Sampler:
  """The networks of a directory and what goes through them, each method under no gradient."""

  def __init__(self, home: Path):
    # Whitening, an option of ours, is of what the image tower gives: drawing does not pass there.
    whiten = "model.gen_feature_whiten."
    with mock.patch.object(checkpoints, "OPTIONS", tuple(set(checkpoints.OPTIONS) - {whiten})):
      checkpoint = checkpoints.Checkpoint(home)
    self.tokenizer = Tokenizer.load(home, prompts.SPECIAL)
    self.settings = checkpoint.tiny["blip3o_jax"]
    self.language = qwen.Language(checkpoint)
    self.language.model.set_attn_implementation("sdpa")
    next_dit.rotation = functools.lru_cache(next_dit.rotation)
    self.dit = next_dit.build(checkpoint.state(checkpoints.DIT), checkpoint.tiny)
    for module in list(self.dit.modules()):
      if isinstance(module, next_dit.Attention):
        module.__class__ = Attention
    folder = home / "diffusion-decoder"
    self.unet = decoder.load(diffusers.UNet2DConditionModel, folder / "unet")
    self.scheduler = diffusers.EulerDiscreteScheduler.from_pretrained(str(folder / "scheduler"))
    self.autoencoder, self.patch = autoencoder(folder / "vae")
    grid = checkpoint.tiny["dit"]["input_size"]
    code = feature_space.place_code(grid, self.unet.config["place_channels"])
    self.places = torch.from_numpy(code)
    size = float(self.unet.config.sample_size * self.patch)
    self.time_ids = torch.tensor([size, size, 0, 0, size, size])

  def rows(self, texts: Sequence[str]) -> tuple[torch.Tensor, list[int]]:
    """Ids (B, T) with room for the queries behind each prompt, and where they start."""
    rows = [prompts.generation_ids(self.tokenizer, text) for text in texts]
    starts = [len(row) for row in rows]
    total = max(starts) + self.language.queries.shape[1]
    filled = [row + [self.tokenizer.pad] * (total - len(row)) for row in rows]
    return torch.tensor(filled), starts

  @torch.inference_mode()
  def read(self, rows: tuple[torch.Tensor, list[int]]) -> np.ndarray:
    """The hidden vectors of the queries, (B, Q, hidden)."""
    return self.language.read(*rows).numpy()

  @torch.inference_mode()
  def features(self, z: torch.Tensor, noise: torch.Tensor) -> np.ndarray:
    """(B, Q, hidden) and noise (B, h, w, C) to features, channels last, as ours rounds times."""
    x = noise.movedim(-1, 1)
    x = system.sample(self.dit, x, z, self.settings["steps"], self.settings["scale"])
    return x.movedim(1, -1).numpy()

  @torch.inference_mode()
  def latents(self, features: torch.Tensor, noise: torch.Tensor) -> np.ndarray:
    """Features (B, h, w, C) and noise (B, h', w', C') to scaled latents, channels last."""
    tokens = features.flatten(1, 2)
    tokens = torch.cat([torch.zeros_like(tokens), tokens])
    tokens = torch.cat([tokens, self.places.expand(len(tokens), -1, -1)], -1)
    added = {"text_embeds": tokens.mean(1), "time_ids": self.time_ids.expand(len(tokens), -1)}
    self.scheduler.set_timesteps(self.settings["pixel_steps"])
    x = noise.movedim(-1, 1).contiguous() * self.scheduler.init_noise_sigma
    for t in self.scheduler.timesteps:
      given = self.scheduler.scale_model_input(torch.cat([x, x]), t)
      found = self.unet(
        given, t, encoder_hidden_states=tokens, added_cond_kwargs=added, return_dict=False
      )[0]
      without, with_ = found.chunk(2)
      guided = without + self.settings["pixel_scale"] * (with_ - without)
      x = self.scheduler.step(guided, t, x, return_dict=False)[0]
    return x.movedim(1, -1).numpy()

  @torch.inference_mode()
  def pixels(self, latents: torch.Tensor) -> np.ndarray:
    """Scaled latents (B, h, w, C) to images (B, H, W, 3) in [0, 1]."""
    x = latents.movedim(-1, 1).contiguous() / self.autoencoder.config.scaling_factor
    x = self.autoencoder.decode(x, return_dict=False)[0]
    p = self.patch  # in the order (row, column, channel)
    x = x.unflatten(1, (p, p, -1)).permute(0, 4, 1, 5, 2, 3) if p > 1 else x.movedim(1, -1)
    x = x.flatten(3, 4).flatten(1, 2) if p > 1 else x
    return (x / 2 + 0.5).clamp(0, 1).numpy()

  def generate(
    self, texts: Sequence[str], noise: torch.Tensor, pixel_noise: torch.Tensor
  ) -> np.ndarray:
    """Prompts to pictures uint8 (B, H, W, 3)."""
    z = tensor(self.read(self.rows(texts)))
    latents = self.latents(tensor(self.features(z, noise)), pixel_noise)
    images = self.pixels(tensor(latents))
    return np.round(images * np.float32(255)).astype(np.uint8)


def autoencoder(folder: Path) -> tuple[Any, int]:
  """diffusers' network of a folder, with patches of pixels as its channels, and their side."""
  config: dict[str, Any] = json.loads((folder / "config.json").read_text())
  patch = config.pop("patch_size", 1)
  for end in ("in_channels", "out_channels"):
    config[end] *= patch**2
  network = diffusers.AutoencoderKL.from_config(config)
  file = Tensors(folder / f"{decoder.STEM}.safetensors")
  state = {name: torch.from_numpy(file.read(name).astype(np.float32)) for name in file}
  network.load_state_dict(state)
  return network.eval().requires_grad_(False), patch


def tensor(array: np.ndarray) -> torch.Tensor:
  """A tensor of an array that may be of JAX."""
  return torch.from_numpy(np.array(array))
