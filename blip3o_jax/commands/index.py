"""Makes the index of a folder of WebDataset tars, so that training starts at once."""

import argparse
from collections.abc import Sequence

from blip3o_jax.data.sources import tars


def run(parser: argparse.ArgumentParser, args: Sequence[str]) -> int:
  """Makes the index and says what it holds; returns the exit status."""
  parser.add_argument("folder")
  parser.add_argument("--partial", action="store_true", help="use what is whole of truncated tars")
  options = parser.parse_args(args)
  print(tars.summary(tars.index_folder(options.folder, partial=options.partial)))
  return 0
