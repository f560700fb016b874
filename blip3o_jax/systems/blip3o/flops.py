"""Floating-point operations of the networks, from their sizes (spec 11); a multiply-add is two.

Each function counts one sample's forward pass: its matmuls, convolutions and attention, and nothing
that costs a share of a percent beside them. Training what is counted takes 3 times as much;
passing gradients through it while it is frozen takes 2 times.
"""

from collections.abc import Mapping
from typing import Any

from blip3o_jax.models import autoencoder
from blip3o_jax.models import decoder_lm
from blip3o_jax.models import eva_vit
from blip3o_jax.models import next_dit
from blip3o_jax.models import qwen_vision


def step(cfg: Any, batch: Mapping[str, Any]) -> float:
  """Operations of one training step of `systems.blip3o` on a batch.

  Padding counts, what is computed twice to save memory does not. A stage with a text loss is taken
  to train the language model and its tower; in the others they are frozen and only pass gradients.

  Args:
    cfg: `systems.blip3o.Config`. batch: {name: anything with a shape}, as its loss takes it.
  """
  rows, length = batch["tokens"].shape
  lm, each = cfg.backbone, 0.0
  if "images" in batch and "features" not in batch:
    side = batch["images"].shape[1]
    each += encode(cfg.latents, side) if cfg.target == "latents" else eva(cfg.features.tower)
  if cfg.loss.image:
    each += read_slots(
      lm, length, cfg.slots, 2 if cfg.loss.text else 1, cfg.prompt_gradient == "full"
    )
    between = {"identity": 0, "linear": 1, "mlp": 2}[cfg.projector]
    each += 6 * cfg.slots * between * lm.dim**2
    if cfg.objective == "mse":
      each += 6 * cfg.slots * lm.dim * cfg.channels
    else:
      calls = cfg.loss.draws * velocity(cfg.denoiser, cfg.slots)
      each += 3 * (condition(cfg.denoiser, cfg.slots) + calls)
  if cfg.loss.text:
    each += 3 * (decoder(lm, length) + head(lm, length))
    if "patches" in batch:
      each += 3 * qwen(cfg.visual, batch["patches"].shape[1])
  return rows * each


def decoder(cfg: decoder_lm.Config, tokens: int, before: int = 0) -> float:
  """The causal language model on `tokens` positions that see `before` earlier ones; no head."""
  weights = 2 * cfg.dim * (cfg.heads + cfg.kv_heads) * cfg.head_dim + 3 * cfg.dim * cfg.mlp_dim
  pairs = tokens * before + tokens**2 / 2
  return cfg.depth * (2 * tokens * weights + 4 * pairs * cfg.heads * cfg.head_dim)


def head(cfg: decoder_lm.Config, tokens: int) -> float:
  """Logits of `tokens` hidden vectors."""
  return 2 * tokens * cfg.dim * cfg.vocab_size


def read_slots(cfg: decoder_lm.Config, prompt: int, slots: int, backward: int, full: bool) -> float:
  """Forward and backward passes of slots after a prompt.

  Args:
    prompt, slots: positions. backward: what the backward pass costs beside the forward one: 1
      through frozen weights, 2 with their gradients. full: the prompt has a backward pass too.
  """
  if full:
    return (1 + backward) * decoder(cfg, prompt + slots)
  return decoder(cfg, prompt) + (1 + backward) * decoder(cfg, slots, prompt)


def condition(cfg: next_dit.Config, slots: int) -> float:
  """What the denoiser makes of a condition of `slots` vectors, once for all times."""
  projection = cfg.condition_dim * cfg.dim + cfg.dim**2
  keys_values = cfg.depth * 2 * cfg.dim * cfg.kv_heads * cfg.head_dim
  return 2 * (slots * (projection + keys_values) + cfg.dim * cfg.modulation_dim)


def velocity(cfg: next_dit.Config, slots: int) -> float:
  """One call of the denoiser with a prepared condition."""
  tokens = (cfg.grid // cfg.patch_size) ** 2
  mixing = 3 * cfg.dim**2 + 2 * cfg.dim * cfg.kv_heads * cfg.head_dim
  ends = 2 * cfg.dim * cfg.in_channels * cfg.patch_size**2
  weights = tokens * (cfg.depth * (mixing + 3 * cfg.dim * cfg.mlp_dim) + ends)
  modulation = cfg.modulation_dim * (
    4 * cfg.depth * cfg.dim + next_dit.SINUSOIDS + cfg.modulation_dim + cfg.dim
  )
  return 2 * (weights + modulation) + cfg.depth * 4 * tokens * (tokens + slots) * cfg.dim


def eva(cfg: eva_vit.Config) -> float:
  """The tower on one picture."""
  patches = cfg.grid**2
  tokens = patches + 1
  blocks = cfg.depth * (4 * cfg.dim**2 + 2 * cfg.dim * cfg.mlp_dim)
  embedding = 2 * patches * 3 * cfg.patch_size**2 * cfg.dim
  return 2 * tokens * blocks + cfg.depth * 4 * tokens**2 * cfg.dim + embedding


def qwen(cfg: qwen_vision.Config, patches: int) -> float:
  """The understanding tower on one picture of so many patches."""
  blocks = 2 * patches * cfg.depth * (4 * cfg.dim**2 + 3 * cfg.dim * cfg.mlp_dim)
  window = min(patches, (cfg.window_size // cfg.patch_size) ** 2)
  whole = len(cfg.full_layers)
  seen = whole * patches + (cfg.depth - whole) * window
  wide = cfg.dim * cfg.merge**2
  merger = 2 * (patches // cfg.merge**2) * (wide**2 + wide * cfg.out_dim)
  return blocks + 4 * patches * seen * cfg.dim + merger + 2 * patches * cfg.patch_dim * cfg.dim


def encode(cfg: autoencoder.Config, side: int) -> float:
  """The autoencoder's encoder on a picture of `side` x `side` pixels."""
  side //= cfg.patch_size
  width = cfg.channels[0]
  total = _conv(side, cfg.image_channels * cfg.patch_size**2, width)
  for level, wide in enumerate(cfg.channels):
    for _ in range(cfg.depth):
      total += _resnet(side, width, wide)
      width = wide
    if level < len(cfg.channels) - 1:
      side //= 2
      total += _conv(side, width, width)
  total += 2 * _resnet(side, width, width) + _conv(side, width, 2 * cfg.latent_channels)
  if cfg.mid_attention:
    total += 4 * _conv(side, width, width, 1) + 4 * side**4 * width
  if cfg.quant_conv:
    total += _conv(side, 2 * cfg.latent_channels, 2 * cfg.latent_channels, 1)
  return total


def _resnet(side: int, d_in: int, d_out: int) -> float:
  total = _conv(side, d_in, d_out) + _conv(side, d_out, d_out)
  return total + (_conv(side, d_in, d_out, 1) if d_in != d_out else 0)


def _conv(side: int, d_in: int, d_out: int, size: int = 3) -> float:
  """A convolution whose output has `side` x `side` cells."""
  return 2 * side**2 * size**2 * d_in * d_out
