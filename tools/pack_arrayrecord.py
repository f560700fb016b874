"""Packs a set as ArrayRecord files: `blip3o pack`, from a checkout.

python tools/pack_arrayrecord.py ...
"""

from collections.abc import Sequence
import sys

from blip3o_jax import cli


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the verb; returns the exit status."""
  return cli.main(["pack", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
  sys.exit(main())
