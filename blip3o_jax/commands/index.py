"""Makes the index of a set of tars, so that training starts at once."""

import argparse
from collections.abc import Sequence

from blip3o_jax.data.sources import tars
from blip3o_jax.data.sources.reading import Reading


def run(parser: argparse.ArgumentParser, args: Sequence[str]) -> int:
  """Makes the index and says what it holds; returns the exit status."""
  parser.add_argument("path", help="a folder of tars, or an address")
  parser.add_argument("--caption", default="", help="txt, or a field of KEY.json or of the list")
  parser.add_argument(
    "--dots",
    choices=("first", "last"),
    default="",
    help="which dot of a name ends the key (default: last; webdataset's is the first)",
  )
  parser.add_argument("--joined", default="", metavar="LIST", help="a list of the captions")
  parser.add_argument("--join", default="", metavar="FIELD", help="of the list: a picture's name")
  parser.add_argument("--inputs", default="", metavar="FIELD", help="of the list: input pictures")
  parser.add_argument("--partial", action="store_true", help="use what is whole of truncated tars")
  parser.add_argument("--workers", type=int, default=0, help="processes; by default a core each")
  options = parser.parse_args(args)
  reading = Reading(
    caption=options.caption,
    dots=options.dots,
    joined=options.joined,
    join=options.join,
    inputs=options.inputs,
    partial=options.partial,
  )
  index = tars.TarSource(options.path, reading, workers=options.workers).index
  print(tars.summary(index))
  print(f"the index is in {index.folder}")
  return 0
