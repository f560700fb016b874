"""Makes the shipped miniature of a finished run of all parts: its files, its card, its sums.

    python tools/ship.py --workdir work/from-scratch [--output DIR] [--picture FILE]

Takes the model, the report and the runs' records of a folder that `bash launch/quickstart.sh
[--system NAME] --from-scratch` has finished, and writes the folder that the package ships, one for
each system. `--picture` also copies the report's picture, which the README or docs show. Refuses a
folder that lacks something, a model that is not the one that was scored or not in half precision,
and more than 17 MB.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
import sys

from blip3o_jax import cli
from blip3o_jax.miniature import plans
from blip3o_jax.miniature import ship
from blip3o_jax.miniature import shipped

ROOT = Path(__file__).resolve().parents[1]


def main(argv: Sequence[str] | None = None) -> int:
  """Writes the folder; returns the exit status."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--workdir", type=Path, required=True, help="of a finished --from-scratch")
  parser.add_argument(
    "--output", type=Path, help=f"default {shipped.NAME}, of another system {shipped.NAME}_SYSTEM"
  )
  parser.add_argument("--picture", type=Path, help="copy the report's picture there")
  options = parser.parse_args(argv)
  return cli.guarded("ship", lambda: _ship(options))


def _ship(options: argparse.Namespace) -> int:
  plan = plans.read(ROOT / "configs", ship.system_of(options.workdir))
  output = options.output or ROOT / shipped.name(plan.system)
  size = ship.ship(options.workdir, output, options.picture, plan)
  print(f"{output}: {size} bytes")
  return 0


if __name__ == "__main__":
  sys.exit(main())
