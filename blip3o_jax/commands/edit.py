"""Changes a picture as it is told to; of several instructions each changes the given picture."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from blip3o_jax import asking

DRAWING = ("steps", "guidance", "size", "language", "decoder")


def run(parser: argparse.ArgumentParser, args: Sequence[str]) -> int:
  """Edits and writes PNGs; returns the exit status."""
  asking.add_options(parser)
  parser.add_argument("image", type=Path, help="the picture")
  parser.add_argument("instruction", nargs="+", type=asking.said, help="what is to be changed")
  asking.add_shown(parser)
  asking.add_number(parser)
  asking.add_output(parser, "edited.png")
  asking.add_drawing(parser, *DRAWING)
  options = parser.parse_args(args)
  image = asking.open_image(options.image, options.friendly)
  model = asking.load(options, "edit")
  with asking.bar() as progress:
    pictures = model.edit(
      image,
      options.instruction,
      options.seed,
      images_per_prompt=options.number,
      progress=progress,
      every=asking.EVERY,
      **asking.given(options, (*DRAWING, "max_pixels")),
    )
  made = asking.made_of(pictures, [options.image] * len(pictures), options.friendly)
  asking.save(made, options.output)
  return 0
