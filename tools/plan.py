"""Says what a run needs on a slice that is not there: `blip3o plan`, from a checkout.

python tools/plan.py ...
"""

from collections.abc import Sequence
import sys

from blip3o_jax import cli


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the verb; returns the exit status."""
  return cli.main(["plan", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
  sys.exit(main())
