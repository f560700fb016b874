"""Operations of a step of Nexus-Gen, and of those of its networks that no other system has.

Counted as in `parts.flops`. Training what is counted takes 3 times its forward pass.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from blip3o_jax.models import decoder_lm
from blip3o_jax.models import flux
from blip3o_jax.systems.parts import flops as parts


def step(cfg: Any, spec: Mapping[str, Any]) -> float:
  """Operations of one training step of `systems.nexus_gen` on a batch.

  Padding counts, absent pictures too; what is computed twice to save memory does not. The vision
  tower is taken to be frozen, and so is the language model while a decoder is trained.

  Args:
    cfg: `systems.nexus_gen.Config`. spec: {name: anything with a shape}, as `loss` takes it.
  """
  lm, each = cfg.backbone, 0.0
  if "patches" in spec:
    pictures, patches = spec["patches"].shape[1:3]
    each += pictures * parts.qwen(cfg.visual, patches)
  if "tokens" in spec:
    rows, length = spec["tokens"].shape
    read = length if cfg.stage == "language" else cfg.slots
    forward = parts.decoder(lm, length) + 2 * read * lm.dim**2
    if cfg.stage == "language":
      return rows * (each + 3 * (forward + parts.head(lm, length)))
    each += forward
  if "images" in spec:
    each += parts.qwen(cfg.visual, (spec["images"].shape[1] // cfg.visual.patch_size) ** 2)
  if "pixels" in spec:
    rows, side = spec["pixels"].shape[:2]
    each += parts.encode(cfg.autoencoder, side)
    cells = (side // cfg.autoencoder.factor) ** 2
  else:
    rows, *sides = spec["latents"].shape[:3]
    cells = sides[0] * sides[1]
  context = cfg.slots + (cfg.cells(cfg.reference_grid) if cfg.stage == "editing" else 0)
  made = merger(cfg, context) if cfg.stage == "editing" else adapter(cfg, context)
  return rows * (each + 3 * (made + velocity(cfg.flux, cells // 4, context)))


def adapter(cfg: Any, vectors: int) -> float:
  """The generation decoder's context of so many vectors."""
  out = cfg.flux.context_dim
  return 2 * vectors * (cfg.backbone.dim * out + out**2)


def merger(cfg: Any, vectors: int) -> float:
  """The editing decoder's context of so many vectors, which all see each other."""
  lm, out = cfg.backbone, cfg.flux.context_dim
  wide = out * cfg.merger_expand
  unseen = 4 * vectors**2 / 2 * lm.heads * lm.head_dim  # `decoder` counts a causal half
  layers = cfg.merger_depth * (parts.decoder(_one(lm), vectors) + unseen)
  return layers + 2 * vectors * (lm.dim * wide + wide * out)


def velocity(cfg: flux.Config, tokens: int, context: int) -> float:
  """One call of FLUX on `tokens` patches, with what it makes of `context` vectors and the time."""
  dim, both = cfg.dim, tokens + context
  # Queries, keys, values and output, then the MLP; a single block's are wider, not fewer.
  block = 4 * dim**2 + 2 * cfg.mlp_ratio * dim**2
  depth = cfg.double_depth + cfg.single_depth
  total = depth * (2 * both * block + 4 * both**2 * dim)
  modulation = cfg.double_depth * 12 * dim**2 + cfg.single_depth * 3 * dim**2 + 2 * dim**2
  embedded = (1 + cfg.guidance) * (cfg.sinusoid_dim * dim + dim**2) + cfg.pooled_dim * dim + dim**2
  ends = 2 * tokens * 2 * cfg.in_channels * dim + 2 * context * cfg.context_dim * dim
  return total + 2 * (modulation + embedded) + ends


def _one(cfg: decoder_lm.Config) -> decoder_lm.Config:
  """The language model with one layer."""
  return dataclasses.replace(cfg, depth=1)
