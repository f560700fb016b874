"""The feature encoder in files: an EVA tower inside a model's main files, or in its own."""

from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Mapping
import dataclasses
import re
from typing import Any

from blip3o_jax.layers import Dtype
from blip3o_jax.models import eva_vit
from blip3o_jax.systems.parts import known
from blip3o_jax.systems.parts import layout
from blip3o_jax.systems.parts.known import Json
from blip3o_jax.systems.parts.known import Known
from blip3o_jax.weights import table
from blip3o_jax.weights.rows import eva_vit as eva_rows

PREFIX = "model.gen_vision_tower.vision_tower.model."  # of the tower inside main files
FOLDER = "eva_clip_vision_tower"  # of a tower beside them
CLIP = "visual."  # of a tower inside the files of a whole EVA-CLIP
NOT_READ = {
  rf"(?!{re.escape(CLIP)}).*": "of a CLIP, whose tower alone is read",
  rf"{re.escape(CLIP)}(norm|head)\..*": "of a CLIP's output; the features are those before it",
}
# Kinds of parts: main files that hold the tower, and files of the tower alone.
INSIDE, ALONE = "model", "tower"
# Fields of the tower's own config; the released one has its norms after the residual branches.
TOWER = Known(
  read={
    **dict.fromkeys(("head_width", "image_size", "layers", "patch_size", "width"), int),
    "mlp_ratio": float,
  },
  fixed={
    "global_average_pool": (False,),
    "ls_init_value": (None,),
    "naiveswiglu": (False,),
    "postnorm": (True,),
    "qkv_bias": (True,),
    "rope": (False,),
    "subln": (False,),
    "timm_model_name": (None,),
  },
  # Of training, of kernels, and of rope where there is none.
  free=("_*", "drop_path_rate", "eva_model_name", "fusedLN", "intp_freq", "patch_dropout",
        "pt_hw_seq_len", "xattn"),
)  # fmt: skip
ALONE_TOWER = dataclasses.replace(TOWER, unset={"postnorm": False})
CLIP_CONFIG = Known(
  read={"vision_cfg": dict},
  fixed={"quick_gelu": (False,)},
  free=(*known.TRANSFORMERS, "custom_text", "embed_dim", "text_cfg"),
)
MIT = layout.Licence("MIT (EVA-CLIP)", True)


def alone(files: layout.Files) -> bool:
  """Whether a folder is that of a tower alone."""
  if files.has("config.json"):
    return "vision_cfg" in files.json("config.json")
  names = files.names()
  return f"{_prefix(names)}cls_token" in names


def rows(kind: str, names: Iterable[str]) -> list[table.Row]:
  """The table of the tower, paths in full; inside main files with the whitening, which is ours."""
  if kind == ALONE:
    names = list(names)
    return table.prefixed(eva_rows.rows(names), _prefix(names), "encoder/tower/")
  return [
    *table.prefixed(eva_rows.rows(names), PREFIX, "encoder/tower/"),
    table.row("model.gen_feature_whiten.mean", "encoder/whiten/mean"),
    table.row("model.gen_feature_whiten.weight", "encoder/whiten/kernel", perm=table.LINEAR),
  ]


def config(values: Mapping[str, Any], where: str, dtype: Dtype) -> eva_vit.Config:
  """The tower's sizes: those under "eva", as `tiny.json` has them, or the release's.

  Raises:
    ValueError: a field of the wrong kind, not built or unknown, by name.
  """
  if "eva" not in values:
    return dataclasses.replace(eva_vit.VARIANTS["eva_clip_e14plus"], dtype=dtype, remat="none")
  return _sizes(TOWER.check(f"{where} eva", values["eva"]), dtype)


def _sizes(eva: Json, dtype: Dtype) -> eva_vit.Config:
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
    ValueError: a file that lacks a size, or asks for another tower, by field.
  """
  values, where = files.json("config.json"), f"{files.directory / 'config.json'}"
  try:
    if "vision_cfg" not in values:
      tiny = files.json("tiny.json")
      cfg = config(tiny, f"{files.directory / 'tiny.json'}", "float32")
    else:
      CLIP_CONFIG.check(where, values)
      found = ALONE_TOWER.check(f"{where} vision_cfg", values["vision_cfg"])
      cfg = _sizes(found, "float32")
    return part(files, "", cfg, "config.json vision_cfg")
  except KeyError as error:
    raise ValueError(f"{files.directory}: vision_cfg lacks the field {error}") from None


def part(files: layout.Files, folder: str, cfg: eva_vit.Config, where: str) -> layout.Part:
  """The part of a tower in files of its own, or of a CLIP; `where` tells its sizes."""
  prefix = _prefix(files.names(folder))
  shapes = layout.shapes(lambda rngs: eva_vit.EvaVit(cfg, rngs=rngs), "encoder/tower/")
  left = NOT_READ if prefix else {}
  told = fields(cfg, prefix, where)
  return layout.Part(ALONE, folder, layout.MAIN, ("encoder",), shapes, left, fields=told)


def _prefix(names: Collection[str]) -> str:
  """What stands before the tower's names: "visual." in a CLIP's files."""
  return CLIP if f"{CLIP}cls_token" in names else ""


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
