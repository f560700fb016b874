"""Proves a checkpoint: replays recorded inputs through it and compares every recorded output.

A recording is made by tools/record.py of a checkout from PyTorch; docs/weights.md shows the way
from download to proof. The exit status is 0 when every output is within its tolerance, 1 when one
is not or the files are wrong.
"""

import argparse
from collections.abc import Sequence
import functools
from pathlib import Path

TOLERANCE = (
  "largest relative error: a number for all outputs but those that must be equal, or NAME=number "
  "with * in NAME; may be repeated (default: 1.5 times the bars of docs/weights.md)"
)


def run(parser: argparse.ArgumentParser, args: Sequence[str]) -> int:
  """Replays and prints a line an output; returns the exit status."""
  parser.add_argument("--model", required=True, metavar="DIR", help="a model, or a hub id")
  parser.add_argument(
    "--recorded", required=True, nargs="+", metavar="FILE", help="recordings of it, .safetensors"
  )
  parser.add_argument("--tolerance", action="append", default=[], help=TOLERANCE)
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
  parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
  options = parser.parse_args(args)
  from blip3o_jax.verify import replay

  ok = replay.prove(
    options.model,
    options.recorded,
    dtype=options.dtype,
    tolerances=options.tolerance,
    report=options.json,
    say=functools.partial(print, flush=True),
  )
  return 0 if ok else 1
