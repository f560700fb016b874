"""Operations of a step of BLIP3-o, and of those of its networks that no other system has (spec 11).

Counted as in `parts.flops`. Training what is counted takes 3 times its forward pass; passing
gradients through it while it is frozen takes 2 times.
"""

from collections.abc import Mapping
from typing import Any

from blip3o_jax.models import next_dit
from blip3o_jax.systems.parts import flops as parts


def step(cfg: Any, spec: Mapping[str, Any]) -> float:
  """Operations of one training step of `systems.blip3o` on a batch.

  Padding counts, absent pictures too; what is computed twice to save memory does not. A stage with
  a text loss is taken to train the language model and its tower; in the others they are frozen: the
  model only passes gradients, the tower none.

  Args:
    cfg: `systems.blip3o.Config`. spec: {name: anything with a shape}, as its loss takes it.
  """
  rows, length = spec["tokens"].shape
  lm, each = cfg.backbone, 0.0
  if "images" in spec and "features" not in spec:
    side = spec["images"].shape[1]
    each += (
      parts.encode(cfg.latents, side) if cfg.target == "latents" else parts.eva(cfg.features.tower)
    )
  if cfg.loss.image:
    each += parts.read_slots(
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
    each += 3 * (parts.decoder(lm, length) + parts.head(lm, length))
  if "patches" in spec:
    pictures, patches = spec["patches"].shape[1:3]
    each += (3 if cfg.loss.text else 1) * pictures * parts.qwen(cfg.visual, patches)
  return rows * each


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
