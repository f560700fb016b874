"""The feature encoder in files: an EVA tower inside a model's main files, or in its own."""

from collections.abc import Iterable
from collections.abc import Mapping
import dataclasses
from typing import Any

from flax import nnx

from blip3o_jax.layers import Dtype
from blip3o_jax.models import eva_vit
from blip3o_jax.systems.parts import layout
from blip3o_jax.weights import table
from blip3o_jax.weights.rows import eva_vit as eva_rows

PREFIX = "model.gen_vision_tower.vision_tower.model."  # of the tower inside main files
FOLDER = "eva_clip_vision_tower"  # of a tower beside them
# Kinds of parts: main files that hold the tower, and files of the tower alone.
INSIDE, ALONE = "model", "tower"
MIT = layout.Licence("MIT (EVA-CLIP)", True)


def alone(files: layout.Files) -> bool:
  """Whether a folder is that of a tower alone."""
  if files.has("config.json"):
    return "vision_cfg" in files.json("config.json")
  return "cls_token" in files.names()


def rows(kind: str, names: Iterable[str]) -> list[table.Row]:
  """The table of the tower, paths in full; inside main files with the whitening, which is ours."""
  if kind == ALONE:
    return table.prefixed(eva_rows.rows(names), "", "encoder/tower/")
  return [
    *table.prefixed(eva_rows.rows(names), PREFIX, "encoder/tower/"),
    table.row("model.gen_feature_whiten.mean", "encoder/whiten/mean"),
    table.row("model.gen_feature_whiten.weight", "encoder/whiten/kernel", perm=table.LINEAR),
  ]


def config(values: Mapping[str, Any], dtype: Dtype) -> eva_vit.Config:
  """The tower's sizes: those under "eva", as `tiny.json` has them, or the release's."""
  if "eva" not in values:
    return dataclasses.replace(eva_vit.VARIANTS["eva_clip_e14plus"], dtype=dtype, remat="none")
  eva = values["eva"]
  return eva_vit.Config(
    image_size=eva["image_size"],
    patch_size=eva["patch_size"],
    dim=eva["width"],
    depth=eva["layers"],
    heads=eva["width"] // eva["head_width"],
    mlp_dim=int(eva["width"] * eva["mlp_ratio"]),
    dtype=dtype,
  )


def part_alone(files: layout.Files) -> layout.Part:
  """The part of a folder that is a tower's, its sizes those of its config.json or tiny.json.

  Raises:
    ValueError: a file that lacks a size.
  """
  values = files.json("config.json")
  found = {"eva": values["vision_cfg"]} if "vision_cfg" in values else files.json("tiny.json")
  try:
    return part("", config(found, "float32"), "config.json vision_cfg")
  except KeyError as error:
    raise ValueError(f"{files.directory}: vision_cfg lacks the field {error}") from None


def part(folder: str, cfg: eva_vit.Config, where: str) -> layout.Part:
  """The part of a tower in files of its own; `where` tells its sizes."""
  shapes = layout.shapes(lambda: eva_vit.EvaVit(cfg, rngs=nnx.Rngs(0)), "encoder/tower/")
  return layout.Part(
    ALONE, folder, layout.MAIN, ("encoder",), shapes, fields=fields(cfg, "", where)
  )


def fields(cfg: eva_vit.Config, prefix: str, where: str) -> tuple[layout.Field, ...]:
  """What `where` says about the tensors of an EVA tower, which begin with `prefix`."""
  return (
    layout.Field(f"{where} width", cfg.dim, f"{prefix}cls_token", 2),
    layout.Field(f"{where} layers", cfg.depth, f"{prefix}blocks.{{}}.norm1.weight"),
    layout.Field(f"{where} patch_size", cfg.patch_size, f"{prefix}patch_embed.proj.weight", 2),
    layout.Field(f"{where} width times mlp_ratio", cfg.mlp_dim, f"{prefix}blocks.0.mlp.fc1.weight"),
    layout.Field(
      f"{where} image_size in patches, squared, plus one",
      (cfg.image_size // cfg.patch_size) ** 2 + 1,
      f"{prefix}pos_embed",
      1,
    ),
  )
