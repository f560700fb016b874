"""Makes the index of a set of tars, so that training starts at once."""

import argparse
from collections.abc import Sequence

from blip3o_jax.data.sources import reading as reading_options
from blip3o_jax.data.sources import tars


def run(parser: argparse.ArgumentParser, args: Sequence[str]) -> int:
  """Makes the index and says what it holds; returns the exit status."""
  parser.add_argument("path", help="a folder of tars, or an address")
  names = ("caption", "dots", "joined", "join", "inputs", "partial")
  reading_options.add_options(parser, *names)
  parser.add_argument("--workers", type=int, default=0, help="processes; by default a core each")
  options = parser.parse_args(args)
  reading = reading_options.of_options(options)
  index = tars.TarSource(options.path, reading, workers=options.workers).index
  print(tars.summary(index))
  print(f"the index is in {index.folder}")
  return 0
