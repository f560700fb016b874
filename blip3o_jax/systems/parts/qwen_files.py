"""Config files of a Qwen2.5-VL, flat or nested, and what it does with pictures.

What a file leaves out has the value of transformers' class, for its own writer leaves defaults out.
"""

from collections.abc import Collection
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blip3o_jax import files
from blip3o_jax.data import images
from blip3o_jax.layers import Dtype
from blip3o_jax.models import decoder_lm
from blip3o_jax.models import qwen_vision
from blip3o_jax.systems.parts import known
from blip3o_jax.systems.parts import layout
from blip3o_jax.systems.parts.known import Json
from blip3o_jax.systems.parts.known import Known
from blip3o_jax.weights.rows import decoder_lm as decoder_rows
from blip3o_jax.weights.rows import qwen_vision as vision_rows

ABSENT = " (left out, its class's default)"
TEXT_DEFAULTS: Json = {
  "vocab_size": 152064,
  "hidden_size": 8192,
  "intermediate_size": 29568,
  "num_hidden_layers": 80,
  "num_attention_heads": 64,
  "num_key_value_heads": 8,
  "rms_norm_eps": 1e-5,
  "rope_theta": 1e6,
  "initializer_range": 0.02,
}
VISION_DEFAULTS: Json = {
  "depth": 32,
  "hidden_size": 3584,
  "intermediate_size": 3420,
  "num_heads": 16,
  "out_hidden_size": 3584,
  "patch_size": 14,
  "temporal_patch_size": 2,
  "spatial_merge_size": 2,
  "window_size": 112,
  "fullatt_block_indexes": [7, 15, 23, 31],
  "initializer_range": 0.02,
}
TEXT = Known(
  read={
    **{name: type(value) for name, value in TEXT_DEFAULTS.items()},
    "head_dim": int,
    "rope_parameters": dict,
    "rope_scaling": dict,
    "tie_word_embeddings": bool,
  },
  fixed={
    **known.TRANSFORMERS_FIXED,
    "attention_bias": (True,),  # of queries, keys and values
    "cross_attention_hidden_size": (None,),
    "hidden_act": ("silu",),
    "mlp_bias": (False,),
    "use_sliding_window": (False,),
  },
  # What a window would be, which use_sliding_window says is not used.
  free=(*known.TRANSFORMERS, "layer_types", "max_position_embeddings", "max_window_layers",
        "sliding_window"),
)  # fmt: skip
ROPE = Known(
  read={"mrope_section": list, "rope_theta": float},
  fixed={
    "mrope_interleaved": (False,),
    "partial_rotary_factor": (1.0,),
    "rope_type": ("default", "mrope"),  # "mrope" is the older name of the same
    "type": ("default", "mrope"),
  },
)
VISION = Known(
  read={name: type(value) for name, value in VISION_DEFAULTS.items()} | {"rope_parameters": dict},
  fixed={
    **known.TRANSFORMERS_FIXED,
    "cross_attention_hidden_size": (None,),
    "hidden_act": ("silu",),
    "in_channels": (qwen_vision.CHANNELS,),
    "in_chans": (qwen_vision.CHANNELS,),
  },
  # tokens_per_second is of videos; nothing reads spatial_patch_size beside patch_size.
  free=(*known.TRANSFORMERS, "spatial_patch_size", "tie_word_embeddings", "tokens_per_second"),
)
VISION_ROPE = Known(
  read={}, fixed={"rope_theta": (qwen_vision.ROPE_THETA,), "rope_type": ("axial", "default")}
)
PICTURES = Known(
  read={
    **dict.fromkeys(("patch_size", "temporal_patch_size", "merge_size"), int),
    **dict.fromkeys(("min_pixels", "max_pixels"), int),
    "size": dict,
  },
  fixed={
    **dict.fromkeys(("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"), (True,)),
    **dict.fromkeys(("do_center_crop", "do_pad"), (False,)),
    "image_mean": (images.MEAN.tolist(),),
    "image_std": (images.STD.tolist(),),
    "image_processor_type": (
      *("Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast", "Qwen2VLImageProcessorPil"),
      *("Qwen2_5_VLImageProcessor", "Qwen2_5_VLImageProcessorFast"),
    ),
    "resample": (3,),  # bicubic
    "rescale_factor": (1 / 255,),
  },
  free=("_*", "auto_map", "crop_size", "data_format", "default_to_square", "device",
        "disable_grouping", "input_data_format", "processor_class", "return_tensors"),
)  # fmt: skip
# Older names first, as transformers takes them.
LIMITS = {
  "min_pixels": ("min_pixels", "shortest_edge"),
  "max_pixels": ("max_pixels", "longest_edge"),
}
SIZE = Known(read=dict.fromkeys((n for names in LIMITS.values() for n in names), int))
LIMIT_DEFAULTS = {"min_pixels": 3136, "max_pixels": 1_003_520}
FILES = ("preprocessor_config.json", "processor_config.json")


def text_config(values: Mapping[str, Any], where: str, dtype: Dtype) -> decoder_lm.Config:
  """The language model of a config.json: its fields stand at the top, or under `text_config`.

  Args:
    values: of the whole file; a field at the top that `text_config` repeats is not looked at.
    where: the file, for errors.

  Raises:
    ValueError: a field of the wrong kind, not built or unknown, by name; sizes that do not divide.
  """
  nested = values.get("text_config")
  place = where if nested is None else f"{where} text_config"
  group = TEXT.check(place, of_text(values) if nested is None else nested)
  for kind in group.get("layer_types", ()):
    if kind != "full_attention":
      raise ValueError(f"{place}: layer_types has {kind!r}, but only 'full_attention' is built")
  name = "rope_parameters" if "rope_parameters" in group else "rope_scaling"
  name = "rope_scaling" if group.get("rope_scaling") else name
  rope = ROPE.check(f"{place} {name}", group.get(name, {}))
  if "mrope_section" not in rope:
    raise ValueError(f"{place}: {name} lacks mrope_section, the rotary frequencies of each axis")
  text: Json = TEXT_DEFAULTS | group
  heads = text["num_attention_heads"]
  # Some versions of transformers write it in one place, some in the other.
  tied = any(group.get("tie_word_embeddings", False) for group in (values, group))
  try:
    return decoder_lm.Config(
      vocab_size=text["vocab_size"],
      dim=text["hidden_size"],
      depth=text["num_hidden_layers"],
      heads=heads,
      kv_heads=text["num_key_value_heads"],
      head_dim=text.get("head_dim") or text["hidden_size"] // heads,
      mlp_dim=text["intermediate_size"],
      rope_theta=float(rope.get("rope_theta") or text["rope_theta"]),
      mrope_section=tuple(rope["mrope_section"]),
      norm_eps=text["rms_norm_eps"],
      tie_embeddings=tied,
      init_std=text["initializer_range"],
      dtype=dtype,
    )
  except ValueError as error:
    sizes = ("hidden_size", "num_attention_heads", "num_key_value_heads")
    left = [f"{name} {text[name]}" for name in sizes if name not in group]
    unsaid = f" (left out, so as in its class: {', '.join(left)})" if left else ""
    raise ValueError(f"{place}: {error}{unsaid}") from None


def of_text(values: Mapping[str, Any]) -> Json:
  """Those fields of a flat config that the language model's table has."""
  names = TEXT.read.keys() | TEXT.fixed.keys() | {"layer_types"}
  return {name: value for name, value in values.items() if name in names}


def vision_config(values: Mapping[str, Any], where: str, dtype: Dtype) -> qwen_vision.Config:
  """The vision tower of the group `vision_config`.

  Raises:
    ValueError: a field of the wrong kind, not built or unknown, by name; sizes that do not divide.
  """
  group = VISION.check(where, values)
  VISION_ROPE.check(f"{where} rope_parameters", group.get("rope_parameters", {}))
  vision = VISION_DEFAULTS | group
  try:
    return qwen_vision.Config(
      dim=vision["hidden_size"],
      depth=vision["depth"],
      heads=vision["num_heads"],
      mlp_dim=vision["intermediate_size"],
      out_dim=vision["out_hidden_size"],
      patch_size=vision["patch_size"],
      temporal_patch_size=vision["temporal_patch_size"],
      merge=vision["spatial_merge_size"],
      init_std=vision["initializer_range"],
      window_size=vision["window_size"],
      full_layers=tuple(vision["fullatt_block_indexes"]),
      dtype=dtype,
    )
  except ValueError as error:
    raise ValueError(f"{where}: {error}") from None


def fields(
  text: decoder_lm.Config,
  vision: qwen_vision.Config,
  names: Collection[str],
  values: Mapping[str, Any],
) -> list[layout.Field]:
  """What config.json says of the tensors of language model and vision tower.

  Args:
    names: of the tensors. values: of the file; what it leaves out is said to be a default.
  """
  newer = any(name.startswith(decoder_rows.PREFIXES[1]) for name in names)
  lm, vis = decoder_rows.PREFIXES[newer], vision_rows.PREFIXES[newer]
  layer, block, heads = f"{lm}layers.0.", f"{vis}blocks.0.", "times the head size"
  attn = f"{layer}self_attn."
  told: dict[str, list[tuple[str, int, str, int]]] = {
    "backbone": [
      ("vocab_size", text.vocab_size, f"{lm}embed_tokens.weight", 0),
      ("hidden_size", text.dim, f"{lm}embed_tokens.weight", 1),
      ("num_hidden_layers", text.depth, f"{lm}layers.{{}}.input_layernorm.weight", 0),
      ("intermediate_size", text.mlp_dim, f"{layer}mlp.gate_proj.weight", 0),
      (f"num_attention_heads {heads}", text.heads * text.head_dim, f"{attn}q_proj.weight", 0),
      (f"num_key_value_heads {heads}", text.kv_heads * text.head_dim, f"{attn}k_proj.weight", 0),
    ],
    "visual": [
      ("depth", vision.depth, f"{vis}blocks.{{}}.norm1.weight", 0),
      ("hidden_size", vision.dim, f"{vis}patch_embed.proj.weight", 0),
      ("patch_size", vision.patch_size, f"{vis}patch_embed.proj.weight", 3),
      ("intermediate_size", vision.mlp_dim, f"{block}mlp.gate_proj.weight", 0),
      ("out_hidden_size", vision.out_dim, f"{vis}merger.mlp.2.weight", 0),
    ],
  }
  places = {"backbone": ("", values.get("text_config", values), TEXT_DEFAULTS)}
  places["visual"] = ("vision_config ", values.get("vision_config", {}), VISION_DEFAULTS)
  out = []
  for module, lines in told.items():
    group, place, defaults = places[module]
    for name, value, tensor, axis in lines:
      absent = name.split()[0] not in place and name.split()[0] in defaults
      label = f"config.json {group}{name}{ABSENT if absent else ''}"
      out.append(layout.Field(label, value, tensor, axis, module))
  return out


def text_json(cfg: decoder_lm.Config) -> Json:
  """The fields of a flat config.json that tell the language model."""
  return {
    "vocab_size": cfg.vocab_size,
    "hidden_size": cfg.dim,
    "num_hidden_layers": cfg.depth,
    "num_attention_heads": cfg.heads,
    "num_key_value_heads": cfg.kv_heads,
    "intermediate_size": cfg.mlp_dim,
    "rope_theta": cfg.rope_theta,
    "rope_scaling": {
      "type": "default",
      "rope_type": "default",
      "mrope_section": list(cfg.mrope_section),
    },
    "rms_norm_eps": cfg.norm_eps,
    "hidden_act": "silu",
    "initializer_range": cfg.init_std,
    "max_position_embeddings": 128000,
    "use_sliding_window": False,
    "tie_word_embeddings": cfg.tie_embeddings,
  }


def vision_json(cfg: qwen_vision.Config) -> Json:
  """The group `vision_config` of a vision tower."""
  return {
    "model_type": "qwen2_5_vl",
    "hidden_act": "silu",
    "initializer_range": cfg.init_std,
    "in_channels": qwen_vision.CHANNELS,
    "hidden_size": cfg.dim,
    "depth": cfg.depth,
    "num_heads": cfg.heads,
    "intermediate_size": cfg.mlp_dim,
    "out_hidden_size": cfg.out_dim,
    "patch_size": cfg.patch_size,
    "temporal_patch_size": cfg.temporal_patch_size,
    "spatial_merge_size": cfg.merge,
    "window_size": cfg.window_size,
    "tokens_per_second": 2,
    "fullatt_block_indexes": list(cfg.full_layers),
  }


# Pictures ----------------------------------------------------------------------------------------


def limits(directory: Path) -> dict[str, int]:
  """{"min_pixels", "max_pixels"} of the pictures in a prompt, as the directory's files say them.

  {} without a file. A file that leaves one out has the class's, 3136 and 1003520.

  Raises:
    ValueError: two files that differ, and see `pictures`.
  """
  told = {file: _limits(file, group) for file, group in pictures(directory).items()}
  (first, found), *rest = told.items() or [("", {})]
  for file, other in rest:
    if other != found:
      raise ValueError(f"{directory}: {first} says {found}, but {file} {other}; remove one of them")
  return found


def pictures(directory: Path) -> dict[str, Json]:
  """{file: its fields} of the files that say how a picture becomes patches.

  Raises:
    ValueError: a field of the wrong kind, not built or unknown, by file and name.
  """
  out = {}
  for name in FILES:
    path = directory / name
    values = files.read_json(path) if path.is_file() else {}
    # processor_config.json holds a group for pictures, or nothing of them.
    values = values.get("image_processor", {}) if name == FILES[1] else values
    if values:
      out[name] = PICTURES.check(str(path), values)
      SIZE.check(f"{path} size", out[name].get("size", {}))
  return out


def check_pictures(directory: Path, visual: qwen_vision.Config) -> None:
  """Refuses files that cut pictures into other patches than the vision tower takes.

  Raises:
    ValueError: by file and field.
  """
  mine = {
    "patch_size": visual.patch_size,
    "temporal_patch_size": visual.temporal_patch_size,
    "merge_size": visual.merge,
  }
  for file, values in pictures(directory).items():
    for name, value in mine.items():
      if values.get(name, value) != value:
        raise ValueError(
          f"{directory / file}: {name} {values[name]}, but the vision tower's is {value}"
        )


def _limits(file: str, values: Json) -> dict[str, int]:
  out = dict(LIMIT_DEFAULTS)
  for name, names in LIMITS.items():
    said = [group[n] for group in (values, values.get("size", {})) for n in names if n in group]
    if said:
      out[name] = said[0]
  if not 0 < out["min_pixels"] <= out["max_pixels"]:
    raise ValueError(
      f"{file}: min_pixels {out['min_pixels']} and max_pixels {out['max_pixels']} are no limits"
    )
  return out
