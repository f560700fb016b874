"""What is in a checkpoint: components, parameters, bytes, dtypes, step, config differences.

DIR is a directory in the released layout, a converted one, or that of a run. Reads no weights.
"""

import argparse
from collections.abc import Sequence
import json
import os
from pathlib import Path

from absl import logging

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing here computes; a machine's chips stay free

from blip3o_jax.convert import manifest


def run(parser: argparse.ArgumentParser, args: Sequence[str]) -> int:
  """Prints the description; returns the exit status."""
  parser.add_argument("directory", type=Path, metavar="DIR")
  parser.add_argument("--json", action="store_true", help="print it as JSON")
  options = parser.parse_args(args)
  logging.set_verbosity(logging.ERROR)  # the checkpoint library warns of what it does not need
  found = manifest.describe(options.directory)
  print(json.dumps(found, indent=1) if options.json else "\n".join(manifest.lines(found)))
  return 0
