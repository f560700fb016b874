"""Writes a set of any layout as ArrayRecord files that are read at the speed of the disk.

Pictures are kept byte for byte. A second call goes on with a packing that was stopped. The format
tfds prepares a set of pictures with captions that others read with TFDS alone.
"""

import argparse
from collections.abc import Sequence
import dataclasses
from pathlib import Path

from blip3o_jax import files
from blip3o_jax.data import licence
from blip3o_jax.data import packing
from blip3o_jax.data import publish
from blip3o_jax.data import sources
from blip3o_jax.data.sources import reading as reading_options


def run(parser: argparse.ArgumentParser, args: Sequence[str]) -> int:
  """Packs and says what was written; returns the exit status."""
  parser.add_argument("path", help="a folder, file or address, in any layout of docs/data.md")
  parser.add_argument("--output", required=True, type=Path, metavar="DIR")
  parser.add_argument("--format", default="arrayrecord", choices=("arrayrecord", "tfds"))
  parser.add_argument("--name", default="", help="of the set (default: that of the output)")
  parser.add_argument(
    "--licence", default="", help="of pictures and texts (default: what the set says)"
  )
  parser.add_argument("--records-per-shard", type=int, default=8192, metavar="N")
  parser.add_argument("--workers", type=int, default=4, metavar="N", help="shards at a time")
  parser.add_argument(
    "--beam", metavar="NAME=VALUE,...", help="generate with Beam, by these options (format tfds)"
  )
  reading_options.add_options(parser)
  options = parser.parse_args(args)
  for name in ("records_per_shard", "workers"):
    if getattr(options, name) < 1:
      parser.error(f"--{name.replace('_', '-')}: expected 1 or more")
  reading = reading_options.of_options(options)
  if len(reading.captions()) > 1:
    parser.error("--caption: a packed record has one caption; name one field")
  if options.beam is not None and options.format != "tfds":
    parser.error("--beam: only --format tfds generates with Beam")
  name = options.name or options.output.resolve().name
  terms = options.licence or licence.note(options.path).name
  if options.format == "tfds":
    beam = [option for option in (options.beam or "").split(",") if option]
    what = publish.Set(options.path, reading, terms, beam=options.beam is not None)
    print(publish.prepare(name, what, str(options.output), beam_options=beam))
    return 0
  source = sources.opened(options.path, reading)
  about = {
    "source": {
      "path": options.path,
      "reading": dataclasses.asdict(reading),
      "parts": [dataclasses.astuple(part) for part in source.parts()],
    },
    "licence": terms,
    "records_per_shard": options.records_per_shard,
  }
  count = packing.count(len(source), options.records_per_shard)
  shards = packing.Shards(options.output, name, count, about)
  found = packing.pack(source, shards, options.records_per_shard, workers=options.workers)
  said = files.size(sum(shard["bytes"] for shard in found["shards"]))
  left = sum(sum(shard["left"].values()) for shard in found["shards"])
  more = f"; {left} damaged records were left out" if left else ""
  print(
    f"{options.output}: {found['records']} records in {len(found['shards'])} files, {said}{more}"
  )
  return 0
