"""A BLIP3-o's directory: how it is recognised, which parts it has, what is known of releases."""

from collections.abc import Collection
from collections.abc import Mapping
import dataclasses
import functools
from pathlib import Path
from typing import Any

from blip3o_jax import trees
from blip3o_jax.systems.blip3o import released
from blip3o_jax.systems.blip3o import sizes
from blip3o_jax.systems.blip3o import vocabulary
from blip3o_jax.systems.blip3o.model import Config
from blip3o_jax.systems.blip3o.model import Part
from blip3o_jax.systems.blip3o.model import build
from blip3o_jax.systems.parts import decoder_files
from blip3o_jax.systems.parts import features_files
from blip3o_jax.systems.parts import layout
from blip3o_jax.systems.parts import others
from blip3o_jax.systems.parts import qwen_files
from blip3o_jax.weights import pickles
from blip3o_jax.weights.rows import decoder_lm
from blip3o_jax.weights.safetensors import Tensors

LOOKS_FOR = (
  "model_type blip3o_qwen or its architecture in config.json, or tensors model.latent_queries and "
  "model.dit; a Qwen2.5-VL (model_type qwen2_5_vl) with no tensors but model, visual and lm_head, "
  "and no tiny.json; an EVA tower "
  "(vision_cfg in config.json, or a tensor cls_token or visual.cls_token with no config.json)"
)
# Top-level module -> the component that it is stored in.
COMPONENTS = {
  "backbone": "backbone",
  "visual": "visual",
  **dict.fromkeys(("slots", "projector", "denoiser", "regressor"), "generation"),
  "encoder": "encoder",
  **decoder_files.COMPONENTS,
}
QWEN = ("backbone", "visual")
MAIN = (*QWEN, "slots", "projector", "denoiser", "regressor", "encoder")
OWN = ("model.latent_queries", "model.dit.", "model.gen_")
# Tensors that may be in the files and are not read (spec 3.8, 12).
LEFTOVERS = {
  r"model\.vae\..*": "the autoencoder of an earlier design, which nothing reads",
  r".*rotary_emb\.inv_freq": "buffers that older versions of transformers saved",
}
QWEN_3B = layout.Licence("Qwen Research License Agreement (Qwen2.5-VL-3B)", False)
QWEN_7B = layout.Licence("Apache-2.0 (Qwen2.5-VL-7B)", True)
OURS = layout.Licence("Apache-2.0 (BLIP3-o)", True)


def recognises(files: layout.Files) -> bool:
  """Whether a folder holds a BLIP3-o, the Qwen2.5-VL that it starts from, or its tower alone."""
  values = files.json("config.json")
  named = (values.get("model_type"), *values.get("architectures", ()))
  if others.is_next(values):
    return False
  if {"blip3o_qwen", "blip3oQwenForCausalLM"} & set(named) or features_files.alone(files):
    return True
  names = files.names()
  if any(name.startswith(OWN) for name in names):
    return True
  # tiny.json is of a system that has parts beside it.
  plain = values.get("model_type") == "qwen2_5_vl" and not files.has("tiny.json")
  tops = {name.partition(".")[0] for name in names if "." in name}  # a pickle has other strings
  return plain and tops <= {"model", "visual", "lm_head"}


def is_plain(files: layout.Files) -> bool:
  """Whether a folder holds the Qwen2.5-VL that a BLIP3-o starts from, and nothing more."""
  plain = files.json("config.json").get("model_type") == "qwen2_5_vl"
  return plain and not any(name.startswith(OWN) for name in files.names())


def parts(files: layout.Files) -> layout.Layout:
  """The parts of such a folder; the main files need no config.json where sizes are given.

  Raises:
    FileNotFoundError, ValueError: JSON files that are absent or wrong, by file and field.
  """
  if features_files.alone(files):
    found = (features_files.part_alone(files), *decoder_files.beside(files))
    return layout.Layout(None, found)
  values, names = files.json("config.json"), files.names()
  cfg = released.read(files.directory, "float32")[0] if "vision_config" in values else None
  inside = any(name.startswith(features_files.PREFIX) for name in names)
  plain = is_plain(files)
  out: list[layout.Part] = []
  if cfg is not None or names:
    out.append(_main(files, cfg, names, plain, inside))
  notes: list[str] = []
  unread: list[Path] = []
  folder = files.directory / features_files.FOLDER
  apart = folder.is_dir() and cfg is not None and not inside and not plain
  if inside and folder.is_dir():
    unread = sorted([*folder.glob("*.bin"), *folder.glob("*.safetensors")])
    notes = [_repeats(files, path, names) for path in unread]
  elif apart and cfg is not None and cfg.target == "features":
    where = "tiny.json eva, or the release's"
    out.append(features_files.part(files, features_files.FOLDER, cfg.features.tower, where))
  elif not inside and not plain and cfg is not None:
    notes = ["no EVA tower: neither inside the main files nor beside them"]
  change = None
  if cfg is not None:
    change = functools.partial(vocabulary.wanted, files.directory, cfg, plain)
  every = (*out, *decoder_files.beside(files))
  return layout.Layout(cfg, every, tuple(notes), tuple(unread), change)


def _main(
  files: layout.Files, cfg: Config | None, names: Collection[str], plain: bool, inside: bool
) -> layout.Part:
  """The main files: a plain Qwen2.5-VL's, or those of a whole model."""
  if cfg is None:

    def unknown() -> dict[str, tuple[int, ...]]:
      absent = f"{files.directory}: no config.json with a vision_config, so no sizes are known"
      raise FileNotFoundError(absent)

    return layout.Part("model", "", layout.MAIN, MAIN, unknown, LEFTOVERS)
  built: tuple[Part, ...] = ("visual", "head") if plain else ("visual", "head", "denoiser")
  has_tower = inside and cfg.target == "features"
  made = dataclasses.replace(cfg, parts=(*built, "encoder") if has_tower else built)
  modules = QWEN if plain else MAIN if has_tower else MAIN[:-1]
  newer = any(name.startswith(decoder_lm.PREFIXES[1]) for name in names)
  embedding = f"{decoder_lm.PREFIXES[newer]}embed_tokens.weight"
  ties = {vocabulary.HEAD: embedding} if cfg.backbone.tie_embeddings else {}
  shapes = layout.shapes(lambda rngs: build(made, rngs))
  fields = _fields(cfg, names, files.json("config.json"))
  return layout.Part("model", "", layout.MAIN, modules, shapes, LEFTOVERS, ties, fields)


def _repeats(files: layout.Files, path: Path, names: Collection[str]) -> str:
  """Says that a tower's own file is not read where the main files hold the tower."""
  prefix = features_files.PREFIX
  inside = {n.removeprefix(prefix) for n in names if n.startswith(prefix)}
  held = pickles.strings(path) if path.suffix == ".bin" else set(Tensors(path))
  text = f"repeats {len(inside & held)} of the {len(inside)} tensors of the tower"
  return f"{path.relative_to(files.directory)}: skipped, {text} inside the main files"


def stored_as(cfg: Config) -> dict[str, str]:
  """With the target "latents" the encoder is the autoencoder of a pixel decoder."""
  return {"encoder": "autoencoder"} if cfg.target == "latents" else {}


def licence(component: str, cfg: Config | None, parameters: int) -> layout.Licence:
  """Under which licence a component of these sizes was released."""
  if component in QWEN and cfg is not None:
    for size, found in (("4b", QWEN_3B), ("8b", QWEN_7B)):
      mine, theirs = cfg.backbone, sizes.released(size).backbone
      if (mine.dim, mine.depth, mine.mlp_dim) == (theirs.dim, theirs.depth, theirs.mlp_dim):
        return found
  known = {
    ("generation", 1_362_388_896): OURS,
    ("generation", 1_365_239_712): OURS,
    ("encoder", 4_350_208_256): features_files.MIT,
  }
  return known.get((component, parameters)) or decoder_files.licence(component, parameters)


def differences(cfg: Config) -> list[str]:
  """Fields of config.json and tiny.json unlike the release nearest in width: "dim 64, not 2048"."""
  known = {name: sizes.released(name) for name in ("4b", "8b")}
  near = min(known, key=lambda name: abs(known[name].backbone.dim - cfg.backbone.dim))
  mine, theirs = (trees.flatten(released.sizes_json(c)) for c in (cfg, known[near]))
  return [
    f"{field.replace('/', '.')}: {mine.get(field)}, {near} has {theirs.get(field)}"
    for field in mine | theirs
    if mine.get(field) != theirs.get(field)
  ]


def _fields(
  cfg: Config, names: Collection[str], values: Mapping[str, Any]
) -> tuple[layout.Field, ...]:
  """What config.json and tiny.json say about the tensors of the main files."""
  pre, dit = "model.dit.model.", cfg.denoiser
  caption = f"{pre}caption_projection.linear_1.weight"
  where = "tiny.json dit (or the release)"
  out = [
    *qwen_files.fields(cfg.backbone, cfg.visual, names, values),
    layout.Field("config.json n_query", cfg.slots, "model.latent_queries", 1, "slots"),
  ]
  for name, value, tensor, axis in (
    ("dim", dit.dim, f"{pre}patch_embedder.proj.weight", 0),
    ("in_channels", dit.in_channels, f"{pre}norm_out.linear_2.weight", 0),
    ("n_layers", dit.depth, f"{pre}layers.{{}}.gate", 0),
    ("n_heads", dit.heads, f"{pre}layers.0.gate", 0),
    ("latent_embedding_size", dit.condition_dim, caption, 1),
  ):
    out.append(layout.Field(f"{where} {name}", value, tensor, axis, "denoiser"))
  if cfg.target == "features":
    where = "tiny.json eva (or the release)"
    found = features_files.fields(cfg.features.tower, features_files.PREFIX, where)
    out += [dataclasses.replace(f, module="encoder") for f in found]
  return tuple(out)
