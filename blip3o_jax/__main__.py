"""`python -m blip3o_jax` is `blip3o`."""

import sys

from blip3o_jax import cli

if __name__ == "__main__":
  sys.exit(cli.main())
