"""Changes a picture as it is told to; of several instructions each changes the given picture."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from blip3o_jax import asking

DRAWING = ("steps", "scale", "size", "language", "decoder")


def run(parser: argparse.ArgumentParser, args: Sequence[str]) -> int:
  """Edits and writes one PNG; returns the exit status."""
  asking.add_options(parser)
  parser.add_argument("image", type=Path, help="the picture")
  parser.add_argument("instruction", nargs="+", type=asking.said, help="what is to be changed")
  asking.add_shown(parser)
  parser.add_argument("--output", type=asking.png, default=Path("edited.png"))
  asking.add_drawing(parser, *DRAWING)
  options = parser.parse_args(args)
  count = len(options.instruction)
  images = [asking.open_image(options.image, options.friendly)] * count
  model = asking.load(options, "edit")
  asked = asking.given(options, (*DRAWING, "max_pixels"))
  seeds = [options.seed + i for i in range(count)]
  asking.save(model.edit(images, options.instruction, seeds, **asked), options.output)
  return 0
