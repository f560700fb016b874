"""Sends pictures through image encoder and pixel decoder."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from blip3o_jax import asking

DRAWING = ("steps", "pixel_steps", "scale", "size")


def run(parser: argparse.ArgumentParser, args: Sequence[str]) -> int:
  """Rebuilds and writes one PNG; returns the exit status."""
  asking.add_options(parser)
  parser.add_argument("image", nargs="+", type=Path)
  parser.add_argument("--output", type=asking.png, default=Path("reconstructed.png"))
  asking.add_drawing(parser, *DRAWING)
  options = parser.parse_args(args)
  images = [asking.open_image(path, options.friendly) for path in options.image]
  model = asking.load(options, "reconstruct")
  seeds = [options.seed + i for i in range(len(images))]
  made = model.reconstruct(images, seeds, **asking.given(options, DRAWING))
  asking.save(made, options.output)
  return 0
