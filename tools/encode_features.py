"""Keeps the features of a data set's pictures: `blip3o encode`, from a checkout.

python tools/encode_features.py ...
"""

from collections.abc import Sequence
import sys

from blip3o_jax import cli


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the verb; returns the exit status."""
  return cli.main(["encode", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
  sys.exit(main())
