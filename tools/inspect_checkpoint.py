"""What is in a checkpoint: components, parameters, bytes, dtypes, step, config differences.

    python tools/inspect_checkpoint.py DIR [--json]

DIR is a directory in the released layout, a converted one, or that of a run. Reads no weights.
"""

import argparse
from collections.abc import Sequence
import json
import os
from pathlib import Path
import sys

from absl import logging

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing here computes; a machine's chips stay free

from blip3o_jax import cli
from blip3o_jax.convert import manifest


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the description; returns the exit status."""
  parser = argparse.ArgumentParser(
    description=__doc__,
    epilog="example:\n  python tools/inspect_checkpoint.py tests/data/tiny-blip3o",
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("directory", type=Path)
  parser.add_argument("--json", action="store_true", help="print it as JSON")
  args = parser.parse_args(argv)
  logging.set_verbosity(logging.ERROR)  # the checkpoint library warns of what it does not need
  return cli.guarded("error", lambda: _show(args))


def _show(args: argparse.Namespace) -> int:
  found = manifest.describe(args.directory)
  print(json.dumps(found, indent=1) if args.json else "\n".join(manifest.lines(found)))
  return 0


if __name__ == "__main__":
  sys.exit(main())
