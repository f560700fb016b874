"""Draws a picture of each prompt."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from blip3o_jax import asking

DRAWING = ("steps", "pixel_steps", "scale", "sampler", "size", "language")


def run(parser: argparse.ArgumentParser, args: Sequence[str]) -> int:
  """Draws and writes one PNG; returns the exit status."""
  asking.add_options(parser)
  asking.add_texts(parser, "prompt")
  parser.add_argument("--output", type=asking.png, default=Path("generated.png"))
  asking.add_drawing(parser, *DRAWING)
  options = parser.parse_args(args)
  count = len(options.prompt)
  shown = [asking.open_image(options.image, options.friendly)] * count if options.image else []
  model = asking.load(options, "generate")
  asked = asking.given(options, (*DRAWING, "max_pixels"))
  if shown:
    asked["images"] = shown
  seeds = [options.seed + i for i in range(count)]
  asking.save(model.generate(options.prompt, seeds, **asked), options.output)
  return 0
