"""Pictures drawn while training: the fixed prompts, by the module that is being trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flax import nnx
import numpy as np

from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.systems.blip3o import prompts
from blip3o_jax.systems.blip3o import released
from blip3o_jax.systems.blip3o import verbs
from blip3o_jax.systems.parts import painter_files
from blip3o_jax.systems.parts.network import Network


def sampler(cfg: Any, samples: Any, tokenizer: str) -> Callable[[nnx.Module, int], np.ndarray]:
  """See `systems.System.sampler`; its pictures need a pixel decoder."""
  if not samples.decoder:
    raise ValueError("config.log.samples_every needs config.samples.decoder")
  decoder = painter_files.load(Path(samples.decoder), cfg.grid, cfg.backbone.dtype)
  settings = released.read_settings(Path(samples.decoder))
  words = Tokenizer.load(tokenizer, prompts.SPECIAL)

  def draw(module: nnx.Module, step: int) -> np.ndarray:
    del step  # the same noise each time shows what training changes
    model = verbs.Model(cfg, settings, Network.of(module), decoder, words)
    return model.generate(
      samples.prompts,
      range(len(samples.prompts)),
      steps=samples.steps,
      scale=samples.scale,
      pixel_steps=samples.pixel_steps,
    )

  return draw
