"""Makes the file of Nexus-Gen's null condition from FLUX.1-dev's two text encoders.

python tools/null_condition.py --clip FLUX.1-dev/text_encoder --t5 FLUX.1-dev/text_encoder_2 \\
  --output MODEL/null_condition.safetensors
"""

import argparse
from collections.abc import Sequence
import os
from pathlib import Path
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # once, in float32; a machine's chips stay free

from blip3o_jax.systems.nexus_gen import constants


def main(argv: Sequence[str] | None = None) -> int:
  """Writes the file; returns the exit status."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument("--clip", type=Path, required=True, help="folder of the CLIP text encoder")
  parser.add_argument("--t5", type=Path, required=True, help="folder of the T5 encoder")
  parser.add_argument("--output", type=Path, required=True, help="null_condition.safetensors")
  parser.add_argument(
    "--tokens", type=int, default=constants.TOKENS, help="of the context (default %(default)s)"
  )
  options = parser.parse_args(argv)
  try:
    constants.write(options.clip, options.t5, options.output, options.tokens)
  except (FileNotFoundError, ValueError) as error:
    print(error, file=sys.stderr)
    return 1
  print(options.output)
  return 0


if __name__ == "__main__":
  sys.exit(main())
