"""Proves a checkpoint: replays recorded inputs through it and compares every recorded output.

    python tools/verify.py --model tests/data/tiny-blip3o \\
      --recorded tests/data/tiny-blip3o/io.safetensors [--dtype bfloat16] [--json report.json]

A recording is made by tools/record.py from PyTorch; docs/weights.md shows the way from download to
proof. The exit status is 0 when every output is within its tolerance, 1 when one is not or the
files are wrong.
"""

import argparse
from collections.abc import Sequence
import json
from pathlib import Path
import sys
from typing import Any

from blip3o_jax import cli

TOLERANCE = (
  "largest relative error: a number for all outputs but those that must be equal, or NAME=number "
  "with * in NAME; may be repeated (default: 1.5 times the bars of docs/weights.md)"
)


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--model", required=True, metavar="DIR", help="a model, or a hub id")
  parser.add_argument(
    "--recorded", required=True, nargs="+", metavar="FILE", help="recordings of it, .safetensors"
  )
  parser.add_argument("--tolerance", action="append", default=[], help=TOLERANCE)
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
  parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
  options = parser.parse_args(argv)
  return cli.guarded("verify", lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
  report = _verify(options)
  if options.json:
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=2) + "\n")
  return 0 if report["ok"] else 1


def _verify(options: argparse.Namespace) -> dict[str, Any]:
  from blip3o_jax.verify import compare
  from blip3o_jax.verify import recordings
  from blip3o_jax.verify import verify
  from blip3o_jax.weights import hub

  tolerances = [recordings.parse_tolerance(text) for text in options.tolerance]
  files = {file: verify.read(file) for file in options.recorded}
  for file, recorded in files.items():
    verify.check(recorded, file)
  directory = hub.local_directory(options.model)
  rows = []
  for file, recorded in files.items():
    width = max(len(name) for name in recorded)
    print(compare.header(width))
    found = verify.verify(
      directory, recorded, dtype=options.dtype, tolerances=tolerances, where=file
    )
    for row in found:
      print(compare.line(row, width), flush=True)
      rows.append(row)
  bad = sum(not row.ok for row in rows)
  print(f"{len(rows)} outputs, " + (f"{bad} FAILED" if bad else "all within tolerance"))
  return compare.summary(rows)


if __name__ == "__main__":
  sys.exit(main())
