"""Runs the frozen image encoder of a config over its data, and keeps the features.

The set that is written holds captions and features, so training reads it alone: the same config,
with config.data.path the output and config.data.features=True. What is finished is kept: the same
command goes on. Several processes share the shards (--coordinator, as for train).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from blip3o_jax import config
from blip3o_jax import joining
from blip3o_jax import recipes
from blip3o_jax import systems
from blip3o_jax.data import storage
from blip3o_jax.data.records import DAMAGE
from blip3o_jax.train import encoding


def run(parser: argparse.ArgumentParser, args: Sequence[str]) -> int:
  """Encodes what the arguments say; returns the exit status."""
  options, overrides = _options(parser).parse_known_args(args)
  if storage.is_remote(options.output):
    raise ValueError(f"--output {options.output}: expected a local folder; copy the set afterwards")
  values = config.load(options.config, overrides, recipes.RELEASED)
  folder = Path(options.output)
  asked = encoding.Asked(
    folder,
    options.name,
    options.per_shard,
    options.batch_per_device,
    options.dtype,
    options.pixels,
    options.licence,
  )

  def work(parsed: Any) -> tuple[int, dict[str, Any]]:
    manifest = encoding.encode(parsed, systems.SYSTEMS[parsed.system], asked)
    return jax.process_index(), manifest

  status, done = joining.together("encode", options, values, folder, work)
  if done is not None and done[0] == 0:
    _say(folder, done[1])
  return status


def _say(folder: Path, manifest: dict[str, Any]) -> None:
  about, count = manifest["encoder"], len(manifest["shards"])
  shape = " x ".join(map(str, about["shape"]))
  line = f"{folder}: {manifest['records']} records in {count} files, features {about['dtype']} "
  print(f"{line}{shape} of the encoder {about['fingerprint']}")
  for kind, number in encoding.damaged(folder).items():
    print(f"left out: {number} {DAMAGE[kind]}; see {folder / encoding.QUARANTINE}")


def _options(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
  add = parser.add_argument
  add(
    "--config",
    required=True,
    metavar="FILE[:ARG]",
    help="a training config, or the name of a released stage; its model, data and init_from are "
    "read, with or without cached features",
  )
  add("--config.FIELD", dest="_", metavar="VALUE", help="any field, e.g. --config.data.path=DIR")
  add("--output", required=True, metavar="DIR", help="of the set, local")
  add("--name", default="features", help="of the set, in its files' names (default features)")
  add(
    "--dtype",
    default="bfloat16",
    choices=("bfloat16", "float16", "float32"),
    help="of the features (default bfloat16)",
  )
  add("--pixels", action="store_true", help="keep the pictures beside the features")
  add(
    "--per-shard", type=_count, default=4096, metavar="N", help="records of a file (default 4096)"
  )
  add(
    "--batch-per-device",
    type=_count,
    default=32,
    metavar="N",
    help="pictures that a device encodes at a time (default 32)",
  )
  add("--licence", default="", help="of pictures and texts (default: what the source says)")
  joining.add_options(parser)
  return parser


def _count(text: str) -> int:
  if not text.isdigit() or int(text) < 1:
    raise argparse.ArgumentTypeError(f"{text!r}: expected a number of at least 1")
  return int(text)
