"""A model to a directory in the released layout: the tables read backwards.

Everything is written beside the target and renamed, so a directory that exists is whole.
"""

from collections.abc import Collection
from collections.abc import Mapping
import json
from pathlib import Path
import shutil
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from blip3o_jax import trees
from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.systems import blip3o
from blip3o_jax.systems.blip3o import released
from blip3o_jax.systems.blip3o import rows as names
from blip3o_jax.systems.blip3o.verbs import Model
from blip3o_jax.systems.parts import diffusers_files
from blip3o_jax.systems.parts import painter
from blip3o_jax.weights import table
from blip3o_jax.weights.table import Stored

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")


def save(
  model: Model, tokenizer: str | Path, directory: str | Path, *, dtype: Stored | None = None
) -> None:
  """Writes the system, its pixel decoder, the tokenizer and all JSON files.

  Args:
    model: all parts present. tokenizer: a directory with the tokenizer's files.
    directory: must not exist, or is replaced when it holds a config.json.
    dtype: of every tensor in the files; without it the system's are as they are and the pixel
      decoder's float32.

  Raises:
    FileExistsError: a directory that is not empty and no model. WeightsError: see `table.export`.
    ValueError: a value that `dtype` cannot hold, by the name of its tensor.
  """
  target = Path(directory)
  if target.exists() and any(target.iterdir()) and not (target / "config.json").exists():
    raise FileExistsError(f"{target}: exists, is not empty and holds no model; nothing was written")
  partial = target.with_name(f".{target.name}.partial")
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  write_weights(trees.flatten(model.system.params), partial, dtype=dtype)
  _write_json(partial, model)
  copy_tokenizer(Path(tokenizer), partial)
  if model.decoder is not None:
    decoder: painter.PixelDecoder = model.decoder.module()
    home = partial / diffusers_files.FOLDER
    save_decoder(decoder.cfg, home, trees.flatten(model.decoder.params), dtype=dtype or "float32")
  if target.exists():
    shutil.rmtree(target)
  partial.rename(target)


def write_weights(
  params: Mapping[str, Any], directory: Path, *, dtype: Stored | None = None
) -> None:
  """model.safetensors with the parameters {path: array} of `Blip3o`, or of some of its parts.

  Args:
    dtype: of the tensors; without it that of each array.

  Raises:
    WeightsError: a parameter that no row names, or a network of which a part is missing.
    ValueError: a value that `dtype` cannot hold, by the name of its tensor.
  """
  rows = [r for r in names.rows() if any(p in params for p in r.paths)]
  tensors = {
    name: table.cast(name, value, dtype) if dtype else np.asarray(value)
    for name, value in table.export(rows, params)
  }
  directory.mkdir(parents=True, exist_ok=True)
  save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def copy_tokenizer(source: Path, directory: Path) -> None:
  """Copies the files of a tokenizer."""
  for name in TOKENIZER_FILES:
    if (source / name).is_file():
      shutil.copy(source / name, directory / name)


def save_decoder(
  cfg: painter.Config, home: Path, params: Mapping[str, Any], *, dtype: Stored = "float32"
) -> None:
  """Writes the folders of a pixel decoder in `dtype`: `unet`, `vae` and `scheduler` in `home`.

  `params` is {path: array} of both networks or of one ("autoencoder/...").
  """
  present = {path.partition("/")[0] for path in params}
  write_decoder_json(cfg, home, present)
  for network, rows in painter.tables(cfg).items():
    prefix = f"{network}/"
    mine = {p.removeprefix(prefix): v for p, v in params.items() if p.startswith(prefix)}
    if mine:
      diffusers_files.save(home / diffusers_files.FOLDERS[network], rows, mine, dtype=dtype)


def write_decoder_json(cfg: painter.Config, home: Path, networks: Collection[str]) -> None:
  """Writes the config.json of `networks` ("unet", "autoencoder"), and the schedule."""
  found = {
    "unet": diffusers_files.unet_json(cfg.unet, grid=cfg.grid),
    "autoencoder": diffusers_files.vae_json(cfg.autoencoder, size=cfg.size),
  }
  if cfg.places:
    found["unet"][painter.PLACES] = cfg.places
  for network in networks:
    folder = home / diffusers_files.FOLDERS[network]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(found[network], indent=2))
  diffusers_files.save_schedule(home / "scheduler", cfg.schedule)


def special_ids(ids: Tokenizer) -> dict[str, int]:
  """The special ids as tiny.json names them."""
  return {
    "vision_start": ids.vision_start,
    "vision_end": ids.vision_end,
    "image_pad": ids.image_pad,
    "video_pad": ids.video_pad,
    "img_start": ids.image_start,
    "img_end": ids.image_end,
    "gen_image": ids.image,
    "pad": ids.pad,
  }


def _write_json(directory: Path, model: Model) -> None:
  cfg: blip3o.Config = model.cfg
  ids = model.tokenizer
  special = special_ids(ids)
  files = {
    "config.json": released.config_json(cfg, eos=ids.im_end, pad=ids.pad),
    "tiny.json": released.tiny_json(cfg, model.settings, special),
    "preprocessor_config.json": {
      "image_processor_type": "Qwen2VLImageProcessor",
      "patch_size": cfg.visual.patch_size,
      "temporal_patch_size": cfg.visual.temporal_patch_size,
      "merge_size": cfg.visual.merge,
      "min_pixels": model.settings.min_pixels,
      "max_pixels": model.settings.max_pixels,
      "image_mean": [0.48145466, 0.4578275, 0.40821073],
      "image_std": [0.26862954, 0.26130258, 0.27577711],
    },
  }
  for name, value in files.items():
    (directory / name).write_text(json.dumps(value, indent=2) + "\n")


def write_backbone(model: Model, directory: Path) -> None:
  """The language model and the vision tower alone, as transformers' Qwen2.5-VL class loads them.

  Writes config.json and model.safetensors, in the dtype of the arrays.

  Raises:
    WeightsError: a model without one of the two.
  """
  flat = trees.flatten(model.system.params)
  parts = {p: v for p, v in flat.items() if p.split("/")[0] in ("backbone", "visual")}
  write_weights(parts, directory)
  ids = model.tokenizer
  config = released.backbone_json(model.cfg, eos=ids.im_end, pad=ids.pad)
  config |= {
    "video_token_id": ids.video_pad,
    "vision_start_token_id": ids.vision_start,
    "vision_end_token_id": ids.vision_end,
  }
  (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
