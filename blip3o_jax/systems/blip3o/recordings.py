"""What a recording of BLIP3-o holds: its calls, their tensors, and how near ours must come.

A wrong epsilon hides below 1e-5, so the bars lie well under it.
"""

from collections.abc import Iterable
import re

from blip3o_jax.systems.parts.recorded import Bar
from blip3o_jax.systems.parts.recorded import Call

# Samplers that are recorded of each prompt: (name, steps, guidance).
SAMPLES = (("features", 30, 3.0), ("features_cfg1_8steps", 8, 1.0))

# What the host computes is the same in both types.
_SAME, _SIGMAS = Bar(0, None), Bar(2e-6, None)
CALLS: dict[str, Call] = {
  "eva": Call(("eva.pixel_values",), {"eva.patch_features": Bar(3e-6), "eva.pooled": Bar(3e-6)}),
  "dit": Call(("dit.x", "dit.timestep", "dit.z"), {"dit.velocity": Bar(5e-6)}),
  "und": Call(
    ("und.pixel_values", "und.grid_thw", "und.input_ids", "und.attention_mask"),
    {
      "und.image_embeds": Bar(3e-6),
      "und.position_ids": _SAME,
      "und.rope_deltas": _SAME,
      "und.last_hidden": Bar(3e-6),
      "und.logits": Bar(3e-6),
      # Tokens are not compared in bfloat16: the error is how far the score of a recorded one lies
      # below the best, relative to the largest score.
      "und.greedy_tokens": Bar(0),
    },
  ),
  "sampler": Call((), {"sampler.timesteps": _SAME, "sampler.sigmas": _SIGMAS}),
  "train": Call(
    tuple(
      f"train.{name}"
      for name in ("input_ids", "attention_mask", "query_start", "gen_image", "noise", "u")
    ),
    {
      "train.target_features": Bar(3e-6),
      "train.timesteps": _SAME,
      "train.sigmas": _SIGMAS,
      "train.query_hidden": Bar(3e-6),
      "train.prediction": Bar(5e-6),
      "train.loss": Bar(2e-6),
      "train.grad.*": Bar(1.2e-5, 0.15),
    },
  ),
}


def generation(prefix: str) -> Call:
  """The generation of one prompt; a recording numbers its prompts: gen0, gen1, ..."""
  bars = {"query_hidden": 3e-6, "features": 5e-6, "features_cfg1_8steps": 5e-6}
  outputs = {f"{prefix}.{name}": Bar(bar) for name, bar in bars.items()}
  return Call((f"{prefix}.prompt_ids", f"{prefix}.noise"), outputs)


def recorded(names: Iterable[str]) -> dict[str, Call]:
  """{call: its names}, those of every recording and the numbered prompts of this one."""
  prefixes = {match[1] for name in names if (match := re.match(r"(gen\d+)\.", name))}
  return CALLS | {prefix: generation(prefix) for prefix in sorted(prefixes)}
