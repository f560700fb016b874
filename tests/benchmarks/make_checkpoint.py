"""A checkpoint in the released layout with random bfloat16 weights, of full size if asked for.

    python tests/benchmarks/make_checkpoint.py --size 4b --output DIR

Backbone, vision tower, queries, DiT and EVA tower in shards with an index, the leftover autoencoder
among them, and the pixel decoder in files of the variant `.bf16.`. Written as it is drawn: nothing
is whole in memory. 4b takes 25 GB of disk, 8b 34 GB.
"""

import argparse
from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import json
import math
from pathlib import Path
import shutil
import sys
from typing import Any

from flax import nnx
import numpy as np

from blip3o_jax import files
from blip3o_jax import trees
from blip3o_jax.convert import manifest
from blip3o_jax.data.text.tokenizer import FILES
from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.diffusion import eps
from blip3o_jax.models import autoencoder
from blip3o_jax.systems import blip3o
from blip3o_jax.systems import pixels
from blip3o_jax.systems.blip3o import prompts
from blip3o_jax.systems.blip3o import released
from blip3o_jax.systems.blip3o import rows as names
from blip3o_jax.systems.blip3o import sizes as released_sizes
from blip3o_jax.systems.parts import decoder_files
from blip3o_jax.systems.parts import diffusers_files
from blip3o_jax.systems.parts import painter
from blip3o_jax.systems.parts import painter_files
from blip3o_jax.weights import safetensors
from blip3o_jax.weights import table

TINY = Path(__file__).parents[1] / "data" / "tiny-blip3o"
BLOCK = 32 * 2**20
# What an earlier design left in the released files (spec 3.8).
LEFTOVER = autoencoder.Config(latent_channels=16, quant_conv=False, post_quant_conv=False)
Shapes = dict[str, table.Shape]


def sizes_of(name: str, layers: int) -> tuple[blip3o.Config, painter.Config]:
  """The configs of a size; `layers` cuts every depth, so that a part has the full widths."""
  if name == "tiny":
    cfg, _ = released.read(TINY, "float32")
    return cfg, painter_files.read_config(TINY, feature_grid=cfg.grid)
  cfg = released_sizes.released(name)
  decoder = dataclasses.replace(pixels.VARIANTS["emu2_gen"], schedule=eps.Schedule())
  if not layers:
    return cfg, decoder
  tower = dataclasses.replace(cfg.features.tower, depth=layers)
  unet = dataclasses.replace(
    decoder.unet, depths=tuple(min(d, layers) for d in decoder.unet.depths), mid_depth=layers
  )
  return (
    dataclasses.replace(
      cfg,
      backbone=dataclasses.replace(cfg.backbone, depth=layers),
      visual=dataclasses.replace(cfg.visual, depth=layers, full_layers=(layers - 1,)),
      denoiser=dataclasses.replace(cfg.denoiser, depth=layers),
      features=dataclasses.replace(cfg.features, tower=tower),
    ),
    dataclasses.replace(decoder, unet=unet),
  )


def shapes(make: Callable[[], nnx.Module]) -> Shapes:
  """{path: shape} of a module; nothing is allocated."""
  flat = trees.flatten(nnx.to_pure_dict(nnx.state(nnx.eval_shape(make))))
  return {path: tuple(v.shape) for path, v in flat.items()}


def leftover(size: str) -> Shapes:
  """{name: shape} of the autoencoder that is to be dropped."""
  cfg = dataclasses.replace(LEFTOVER, channels=(32, 32)) if size == "tiny" else LEFTOVER
  params = shapes(lambda: autoencoder.Autoencoder(cfg, rngs=nnx.Rngs(0)))
  rows = table.prefixed(decoder_files.vae_table(cfg), "model.vae.", "")
  return {name: t.shape for name, t in table.targets(rows, params).items()}


def fill(
  folder: Path, tensors: Mapping[str, table.Shape], part: Mapping[str, Any], limit: int
) -> None:
  """Writes random files of these tensors and their index."""
  folder.mkdir(parents=True, exist_ok=True)
  sheet = manifest.sheet(part, {name: ("BF16", shape) for name, shape in tensors.items()}, limit)
  if sheet.index is not None:
    (folder / sheet.index[0]).write_text(json.dumps(sheet.index[1], indent=2))
  rng = np.random.Generator(np.random.SFC64(0))
  for file in sheet.files:
    bf16 = safetensors.DTYPES["BF16"]
    safetensors.create(
      folder / file.name, {n: (bf16, tensors[n]) for n in file.tensors}, file.metadata
    )
    left = 2 * sum(math.prod(tensors[n]) for n in file.tensors)
    with open(folder / file.name, "r+b") as handle:
      handle.seek(-left, 2)
      while left:
        count = min(left, BLOCK)
        handle.write(random_bytes(rng, count))
        left -= count
    print(
      f"{folder / file.name}: {files.size((folder / file.name).stat().st_size)}", file=sys.stderr
    )


def random_bytes(rng: np.random.Generator, count: int) -> memoryview:
  """Bytes of bfloat16 numbers of either sign, between 2^-7 and 2^-5."""
  bits = np.frombuffer(rng.bytes(count), np.uint16)
  return ((bits & np.uint16(0x80FF)) | np.uint16(0x3C00)).data


def make(size: str, output: Path, *, layers: int = 0, shard_size: str = "5GB") -> None:
  """Writes the checkpoint; see the head of this file."""
  cfg, decoder = sizes_of(size, layers)
  words = Tokenizer.load(TINY, prompts.SPECIAL)
  cfg = dataclasses.replace(cfg, image_token=words.image_pad)
  limit = manifest.parse_size(shard_size)
  output.mkdir(parents=True)
  params = shapes(lambda: blip3o.build(cfg, nnx.Rngs(0)))
  rows = [r for r in names.rows() if any(p in params for p in r.paths)]
  tensors = {name: t.shape for name, t in table.targets(rows, params).items()} | leftover(size)
  empty = {"index": None, "files": {}}
  fill(output, tensors, {"stem": "model", **empty}, limit)
  config = released.config_json(cfg, eos=words.im_end, pad=words.pad)
  (output / "config.json").write_text(json.dumps(config))
  if size == "tiny" or layers:
    tiny = released.tiny_json(cfg, released.Settings(), {})
    (output / "tiny.json").write_text(json.dumps(tiny))
  for name in FILES:
    if (TINY / name).is_file():
      shutil.copy(TINY / name, output / name)
  home = output / diffusers_files.FOLDER
  found = shapes(lambda: painter.PixelDecoder(decoder, paints=True, rngs=nnx.Rngs(0)))
  decoder_files.write_json(decoder, home, tuple(diffusers_files.FOLDERS))
  variant = {f"{diffusers_files.STEM}.bf16.safetensors": {"metadata": {}, "tensors": {}}}
  for network, name in diffusers_files.FOLDERS.items():
    mine = {p: s for p, s in found.items() if p.startswith(network)}
    folder = home / name
    rows = decoder_files.rows_of(network, (), folder)
    held = {name: t.shape for name, t in table.targets(rows, mine).items()}
    # One file, as released.
    part = {"stem": diffusers_files.STEM, "index": None, "files": variant}
    fill(folder, held, part, 10**12)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--size", choices=("tiny", "4b", "8b"), required=True)
  parser.add_argument("--output", type=Path, required=True, help="must not exist")
  parser.add_argument("--layers", type=int, default=0, help="cut every depth (0: full)")
  parser.add_argument("--shard-size", default="5GB")
  args = parser.parse_args()
  make(args.size, args.output, layers=args.layers, shard_size=args.shard_size)


if __name__ == "__main__":
  main()
