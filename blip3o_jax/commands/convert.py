"""Weights in, weights out: `import` reads PyTorch's layout, `export` writes it.

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

from blip3o_jax.convert import exporter
from blip3o_jax.convert import importer
from blip3o_jax.convert.source import Take
from blip3o_jax.weights import hashes
from blip3o_jax.weights import hub


def run(parser: argparse.ArgumentParser, args: Sequence[str]) -> int:
  """Runs `import` or `export`; returns the exit status."""
  _describe(parser)
  options = parser.parse_args(args)
  logging.set_verbosity(logging.ERROR)  # the checkpoint library warns of each array of a run
  options.run(options)
  print(options.output)
  return 0


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


def _import(args: argparse.Namespace) -> None:
  importer.run(
    hub.local_directory(args.source, pickles=args.allow_pickle),
    args.output,
    Take(args.allow_pickle, [name for name in args.only.split(",") if name], args.weights),
    dtype=args.dtype,
    vocab_size=args.vocab_size,
    algorithm=args.hash,
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


def _describe(parser: argparse.ArgumentParser) -> None:
  verbs = parser.add_subparsers(required=True)
  bring = _verb(
    verbs,
    "import",
    "A checkpoint in PyTorch's layout to an orbax directory.",
    "blip3o convert import --source BLIP3o-Model-4B --output converted-4b",
  )
  bring.add_argument("--source", required=True, help="a directory, or a hub id (owner/name)")
  bring.add_argument(
    "--allow-pickle", action="store_true", help="read .bin files where there is nothing else"
  )
  bring.add_argument(
    "--vocab-size",
    default="auto",
    metavar="ROWS",
    help="of the token embedding: a number, keep, or auto (default): a plain Qwen2.5-VL gets the "
    "151668 rows that BLIP3-o's tokens need, anything else keeps its own",
  )
  bring.add_argument(
    "--only",
    default="",
    metavar="NAMES",
    help="components, such as encoder,unet (default all)",
  )
  bring.add_argument(
    "--weights",
    default="",
    metavar="NAME",
    help="of files that hold several tables: ema, module, ... (default the model's own)",
  )
  bring.add_argument(
    "--hash",
    choices=tuple(hashes.ALGORITHMS),
    default=hashes.DEFAULT,
    help="of the fingerprints: sha256 for a run that knows its weights by it (default %(default)s)",
  )
  bring.set_defaults(run=_import)
  give = _verb(
    verbs,
    "export",
    "An orbax directory, or the directory of a run, to PyTorch's layout.",
    "blip3o convert export --source runs/4b --weights ema --output my-model",
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
