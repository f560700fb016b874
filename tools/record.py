"""Records what PyTorch computes with a checkpoint, for tools/verify.py to hold ours against.

    python tools/record.py --model DIR --output recorded.safetensors [--seed 0]

DIR is a released-layout directory (not a converted one), or a hub id. Writes recorded.safetensors
for the system and, where the model has one, recorded.decoder.safetensors for its pixel decoder.
Needs the test extra (pip install ".[test]", Python 3.11) and, in float32, the memory of the largest
network: 4 bytes a parameter, and as much again where gradients of all of it are recorded. One
network is loaded at a time.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
import sys

from blip3o_jax import cli
from blip3o_jax import runtime


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--model", required=True, metavar="DIR", help="a model, or a hub id")
  parser.add_argument("--output", required=True, type=Path, metavar="FILE")
  parser.add_argument(
    "--part", default="all", choices=("all", "system", "decoder"), help="what is recorded"
  )
  parser.add_argument("--seed", type=int, default=0, help="of the random inputs")
  parser.add_argument(
    "--inputs", action="append", default=[], metavar="FILE", help="a recording to take inputs from"
  )
  parser.add_argument(
    "--allowed",
    type=int,
    default=0,
    help="answers take ids below this one (0: as the system has it)",
  )
  options = parser.parse_args(argv)
  runtime.prepare(programs=False)
  try:
    return cli.guarded("record", lambda: _record(options), RuntimeError)
  except ImportError as error:
    print(
      f'record: {error}; recording needs the test extra: pip install ".[test]"', file=sys.stderr
    )
    return 1


def _record(options: argparse.Namespace) -> int:
  from blip3o_jax.verify.torch import record

  record.record(
    options.model,
    options.output,
    part=options.part,
    seed=options.seed,
    inputs=options.inputs,
    allowed=options.allowed,
    say=print,
  )
  return 0


if __name__ == "__main__":
  sys.exit(main())
