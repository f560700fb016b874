"""Prints what a PNG says of how it came to be: prompt, seed, settings, weights, version."""

import argparse
from collections.abc import Mapping
from collections.abc import Sequence
import json
from pathlib import Path
from typing import Any

from blip3o_jax.use import picture


def run(parser: argparse.ArgumentParser, args: Sequence[str]) -> int:
  """Prints the metadata of each file; returns the exit status."""
  parser.add_argument("image", nargs="+", type=Path, help="a PNG that this package wrote")
  parser.add_argument("--json", action="store_true", help="a line of JSON for each file")
  options = parser.parse_args(args)
  for path in options.image:
    found = picture.read(path)
    if options.json:
      print(json.dumps({"file": str(path), **found}, ensure_ascii=False))
      continue
    each = found.get("pictures", [found])
    for i, metadata in enumerate(each):
      print(f"{path}{f', picture {i + 1} of {len(each)}' if len(each) > 1 else ''}")
      print("\n".join(_lines(metadata)))
  return 0


def _lines(metadata: Mapping[str, Any]) -> list[str]:
  width = max(map(len, metadata))
  return [f"  {name:<{width}}  {value}" for name, value in metadata.items()]
