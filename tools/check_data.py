"""Says what a set of pictures and texts holds: `blip3o check`, from a checkout.

python tools/check_data.py ...
"""

from collections.abc import Sequence
import sys

from blip3o_jax import cli


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the verb; returns the exit status."""
  return cli.main(["check", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
  sys.exit(main())
