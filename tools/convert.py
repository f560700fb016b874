"""Weights in, weights out.

    python tools/convert.py import --source DIR --output DIR      released layout -> orbax
    python tools/convert.py export --source DIR --output DIR      orbax, or a run -> released layout

docs/weights.md says what is read, what is written, and what it takes.
"""

import argparse
from collections.abc import Sequence
import os
from pathlib import Path
import sys
from typing import Any

from absl import logging

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing here computes; a machine's chips stay free

from blip3o_jax import cli
from blip3o_jax.convert import exporter
from blip3o_jax.convert import importer
from blip3o_jax.weights import hub


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one verb; returns the exit status. Errors of the user are readable lines."""
  args = _parser().parse_args(argv)
  logging.set_verbosity(logging.ERROR)  # the checkpoint library warns of each array of a run
  return cli.guarded("error", lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
  args.run(args)
  print(args.output)
  return 0


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


def _import(args: argparse.Namespace) -> None:
  importer.run(
    hub.local_directory(args.source, pickles=args.allow_pickle),
    args.output,
    dtype=args.dtype,
    allow_pickle=args.allow_pickle,
    vocab_size=args.vocab_size,
    only=[name for name in args.only.split(",") if name],
    say=_say,
  )


def _export(args: argparse.Namespace) -> None:
  exporter.run(
    args.source,
    args.output,
    weights=args.weights,
    step=args.step,
    dtype=args.dtype,
    max_shard_size=args.max_shard_size,
    tokenizer=args.tokenizer,
    say=_say,
  )


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  verbs = parser.add_subparsers(required=True)
  bring = _verb(
    verbs,
    "import",
    "A checkpoint in PyTorch's layout to an orbax directory.",
    "python tools/convert.py import --source BLIP3o-Model-4B --output converted-4b",
  )
  bring.add_argument("--source", required=True, help="a directory, or a hub id (owner/name)")
  bring.add_argument(
    "--allow-pickle", action="store_true", help="read .bin files where there is nothing else"
  )
  bring.add_argument(
    "--vocab-size",
    default="auto",
    metavar="ROWS",
    help="a number, keep, or auto: a plain Qwen2.5-VL gets BLIP3-o's tokens (default)",
  )
  bring.add_argument(
    "--only",
    default="",
    metavar="NAMES",
    help="components, such as encoder,unet (default all)",
  )
  bring.set_defaults(run=_import)
  give = _verb(
    verbs,
    "export",
    "An orbax directory, or the directory of a run, to PyTorch's layout.",
    "python tools/convert.py export --source runs/4b --weights ema --output my-model",
  )
  give.add_argument("--source", type=Path, required=True, help="converted directory, or a run's")
  give.add_argument("--weights", choices=("raw", "ema"), default="raw", help="of a run")
  give.add_argument("--step", type=int, default=-1, help="of a run (default the latest)")
  give.add_argument(
    "--max-shard-size", default="", metavar="SIZE", help="such as 5GB (default as in the source)"
  )
  give.add_argument(
    "--tokenizer", default="", metavar="DIR", help="for a run that started from no model"
  )
  give.set_defaults(run=_export)
  return parser


def _verb(verbs: Any, name: str, what: str, example: str) -> argparse.ArgumentParser:
  out = verbs.add_parser(
    name,
    description=what,
    epilog=f"example:\n  {example}",
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  out.add_argument("--output", type=Path, required=True, help="must not exist, or be empty")
  out.add_argument(
    "--dtype", default="", choices=tuple(importer.DTYPES), help="of all numbers (default as stored)"
  )
  return out


if __name__ == "__main__":
  sys.exit(main())
