"""A model to a directory in the released layout: the tables read backwards.

Everything is written beside the target and renamed, so a directory that exists is whole.
"""

from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
import json
from pathlib import Path
import shutil
from typing import TYPE_CHECKING
from typing import Any

import numpy as np

from blip3o_jax import files
from blip3o_jax import trees
from blip3o_jax.data.text import tokenizer as tokenizers
from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.systems.blip3o import released
from blip3o_jax.systems.blip3o import rows as names
from blip3o_jax.systems.blip3o.layout import MAIN
from blip3o_jax.systems.blip3o.model import Config
from blip3o_jax.systems.blip3o.prompts import SPECIAL
from blip3o_jax.systems.parts import decoder_files
from blip3o_jax.systems.parts import layout
from blip3o_jax.weights import safetensors
from blip3o_jax.weights import table
from blip3o_jax.weights.table import Stored

if TYPE_CHECKING:  # its verbs load what is saved here, and the system's module names both
  from blip3o_jax.systems.blip3o.verbs import Model

# What says that a directory holds a BLIP3-o, where it started from a Qwen2.5-VL.
OWN = (
  "architectures",
  "model_type",
  "n_query",
  "gen_vision_tower",
  "gen_hidden_size",
  "gen_pooling",
)


def save(
  model: "Model", tokenizer: str | Path, directory: str | Path, *, dtype: Stored | None = None
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
  tokenizers.copy_files(Path(tokenizer), partial)
  if model.decoder is not None:
    cfg, home = model.decoder.module().cfg, partial / decoder_files.FOLDER
    decoder_files.save(cfg, home, trees.flatten(model.decoder.params), dtype=dtype or "float32")
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
  safetensors.save(tensors, directory / "model.safetensors", {"format": "pt"})


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


def _write_json(directory: Path, model: "Model") -> None:
  cfg: Config = model.cfg
  ids = model.tokenizer
  special = special_ids(ids)
  written = {
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
  for name, value in written.items():
    (directory / name).write_text(json.dumps(value, indent=2) + "\n")


# A run's directory -------------------------------------------------------------------------------


def exported(
  cfg: Config, bases: Sequence[layout.Base], paths: Collection[str], tokenizer: Path | None
) -> layout.Export:
  """The directory that a run becomes: main files, a tower beside them, the pixel decoder.

  Args:
    cfg: of the run. bases: the directories that it started from, in order. paths: of all leaves of
      these and of the run. tokenizer: a directory, for a run that started from no model.

  Raises:
    ValueError: no base with a config.json, and no tokenizer.
  """
  base = layout.model_of(bases, tokenizer)
  modules = {trees.top(path) for path in paths}
  networks, extra = decoder_files.exported(bases, base, modules)
  held = {part["kind"]: part for part in (base.parts if base else ())}
  main = dict(held.get("model") or layout.new_part("model", "", layout.MAIN[0], ()))
  tower = held.get("tower")
  apart = [tower] if tower is not None and tower["folder"] else []  # one of its own goes inside
  main["modules"] = sorted(set(MAIN) - ({"encoder"} if apart else set()))
  dropped = frozenset(path for path in paths if not _belongs(cfg, path))
  return layout.Export(
    None if base is None else base.directory, (main, *apart, *networks), extra, dropped
  )


def _belongs(cfg: Config, path: str) -> bool:
  """Whether a run's model has a module; its sources may hold one that its design replaced."""
  module, _, rest = path.partition("/")
  has = {
    "denoiser": cfg.objective == "flow",
    "regressor": cfg.objective != "flow",
    "projector": cfg.projector != "identity",
    "encoder": cfg.target == "features" and (cfg.features.whiten or not rest.startswith("whiten")),
  }
  return bool(has.get(module, True))


def write_json(cfg: Config, export: layout.Export, folder: Path, tokenizer: Path | None) -> None:
  """Writes config.json and tiny.json where a run's sizes or design are not those of its base.

  Args:
    export: of `exported`. folder: with the files of the base. tokenizer: as there.

  Raises:
    ValueError: files that would not say what the run is.
  """
  if tokenizer is not None and not (folder / "config.json").is_file():
    tokenizers.copy_files(tokenizer, folder)
  ids = Tokenizer.load(folder, SPECIAL)
  wanted = released.config_json(cfg, eos=ids.im_end, pad=ids.pad)
  mine = released.sizes_json(cfg)

  def told() -> dict[str, Any]:
    return released.sizes_json(released.read(folder, "float32")[0])

  path = folder / "config.json"
  found = files.read_json(path, nulls=True) if path.is_file() else {}
  same = bool(found) and told() == mine
  if not same or found.get("model_type") != wanted["model_type"]:
    keys = OWN if same else wanted
    path.write_text(json.dumps({**found, **{k: wanted[k] for k in keys}}, indent=2) + "\n")
  path = folder / "tiny.json"
  if (path.is_file() and not same) or told() != mine:  # an older one may contradict the new sizes
    tiny = released.tiny_json(cfg, released.read_settings(folder), special_ids(ids))
    path.write_text(json.dumps(tiny, indent=2) + "\n")
  layout.refuse_lost(told(), mine)
