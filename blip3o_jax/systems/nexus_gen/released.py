"""The released directory: config.json and tiny.json to sizes, and back. Reads no tensor.

`config.json` is a Qwen2.5-VL's and tells nothing of the slots and the decoders. Those are the
release's, or what a `tiny.json` beside it says. `tiny.json` also carries, under "blip3o_jax", what
only this package has. A FLUX.1 folder of diffusers tells its sizes in its own config.json files.
"""

from collections.abc import Mapping
import dataclasses
from pathlib import Path
from typing import Any

from blip3o_jax import config
from blip3o_jax import files
from blip3o_jax import layers
from blip3o_jax.models import autoencoder
from blip3o_jax.models import flux
from blip3o_jax.systems.nexus_gen import decoders
from blip3o_jax.systems.nexus_gen import prompts
from blip3o_jax.systems.nexus_gen import sizes
from blip3o_jax.systems.nexus_gen.model import Config
from blip3o_jax.systems.parts import known
from blip3o_jax.systems.parts import qwen_files
from blip3o_jax.systems.parts.known import Json
from blip3o_jax.systems.parts.known import Known


@dataclasses.dataclass(frozen=True)
class Settings:
  """What inference needs beside the networks, as the released scripts have it.

  Attributes:
    min_pixels, max_pixels: bounds of a picture in a prompt (Nexus-Gen spec 4).
    steps: of the sampler of pixels. scale, edit_scale: of guidance, for each decoder (spec 7).
    size: pixels a side of what is painted. penalty: on tokens that were there before (spec 2.7).
    words: all that a model of few words knows, in small letters; empty for a model of any words.
    pictures: where those of an instruction stand that has no marks, see `prompts.Form`.
  """

  min_pixels: int = 3136
  max_pixels: int = 262_640
  steps: int = 50
  scale: float = 3.0
  edit_scale: float = 1.0
  size: int = 512
  penalty: float = 1.05
  words: tuple[str, ...] = ()
  pictures: prompts.Order = "before"


# config.json beside the fields of the language model, which `qwen_files` knows.
TOKENS = {
  "image_token_id": "image_token",
  "vision_start_token_id": "boi",
  "vision_end_token_id": "eoi",
}
ROOT = Known(
  read={
    **dict.fromkeys(TOKENS, int),
    **dict.fromkeys(("text_config", "vision_config"), dict),
    "tie_word_embeddings": bool,
  },
  # Some versions of transformers repeat fields of `text_config` at the top.
  free=(
    *known.TRANSFORMERS,
    *known.TRANSFORMERS_FIXED,
    *qwen_files.TEXT.read,
    *qwen_files.TEXT.fixed,
    *qwen_files.TEXT.free,
  ),
)
TINY = Known(
  read={
    **dict.fromkeys(("adapter", "blip3o_jax", "dit", "merger", "sampler", "vae"), dict),
    **dict.fromkeys(("merger_base_grid", "reference_grid", "target_grid"), list),
    **dict.fromkeys(("negative_context_tokens", "reference_pixels", "slots"), int),
    **dict.fromkeys(("target_pixels",), int),
    "embedded_guidance": float,
  },
  free=("_*", "special_token_ids"),
)
ADAPTER = Known(read=dict.fromkeys(("in", "out"), int), fixed={"layer_norm_eps": (1e-5,)})
MERGER = Known(read=dict.fromkeys(("num_layers", "expand_ratio", "out"), int))
DIT_FIELDS = {
  "dim": "dim",
  "num_heads": "heads",
  "axes_dims_rope": "axes",
  "rope_theta": "rope_theta",
  "num_double_blocks": "double_depth",
  "num_single_blocks": "single_depth",
  "context_dim": "context_dim",
  "pooled_dim": "pooled_dim",
  "in_channels": "in_channels",
  "mlp_ratio": "mlp_ratio",
  "sinusoid_dim": "sinusoid_dim",
  "guidance": "guidance",
}
ORDERS = ("scale_shift", "shift_scale")  # of the halves of `final_norm_out`, see `rows.final_order`
DIT = Known(
  read={
    **dict.fromkeys(DIT_FIELDS, int),
    "axes_dims_rope": list,
    "guidance": bool,
    "rope_theta": float,
  },
  fixed={"final_norm_out": ORDERS, "norm_eps": (flux.NORM_EPS,), "patch": (flux.PATCH,)},
)
VAE_FIELDS = {
  "num_res_blocks": "depth",
  "z_channels": "latent_channels",
  "norm_groups": "groups",
  "scaling_factor": "scaling_factor",
  "shift_factor": "shift_factor",
}
VAE = Known(
  read={
    **dict.fromkeys(("ch", "num_res_blocks", "z_channels", "norm_groups"), int),
    **dict.fromkeys(("scaling_factor", "shift_factor"), float),
    "ch_mult": list,
  },
  fixed={"norm_eps": (autoencoder.EPS,)},
)
SAMPLER = Known(
  read={},
  fixed={
    "num_train_timesteps": (1000,),
    "shift": (decoders.SHIFT,),
    "sigma_max": (1.0,),
    "sigma_min_denominator": (1.002,),
    "sigma_min_numerator": (0.003,),
  },
)
OURS = Known(read={}, free=[f.name for f in dataclasses.fields(Settings)])
# transformer/config.json of diffusers' FluxTransformer2DModel.
TRANSFORMER = "FluxTransformer2DModel"
TRANSFORMER_FIELDS = {
  "in_channels": "in_channels",
  "num_layers": "double_depth",
  "num_single_layers": "single_depth",
  "num_attention_heads": "heads",
  "joint_attention_dim": "context_dim",
  "pooled_projection_dim": "pooled_dim",
  "guidance_embeds": "guidance",
  "axes_dims_rope": "axes",
}
TRANSFORMER_KNOWN = Known(
  read={
    **dict.fromkeys(TRANSFORMER_FIELDS, int),
    **dict.fromkeys(("attention_head_dim", "out_channels"), int),
    "axes_dims_rope": list,
    "guidance_embeds": bool,
  },
  fixed={"_class_name": (TRANSFORMER,), "patch_size": (1,)},
  free=("_*",),
)


def read(directory: str | Path, dtype: layers.Dtype) -> tuple[Config, Settings]:
  """Sizes and settings of a released-layout directory, computing in `dtype`, as of all parts.

  Raises:
    FileNotFoundError: no config.json.
    ValueError: a field that is absent, of the wrong kind or not built, by file and name.
  """
  directory = Path(directory)
  path = directory / "config.json"
  if not path.is_file():
    raise FileNotFoundError(f"{directory}: no config.json; not a model in the released layout")
  values = files.read_json(path)
  if "vision_config" not in values:
    raise ValueError(f"{path}: no vision_config; not the config of a Qwen2.5-VL")
  cfg = _language(computing(sizes.released(), dtype), values, str(path), dtype)
  cfg = told(directory, cfg)
  qwen_files.check_pictures(directory, cfg.visual)
  return cfg, read_settings(directory)


def computing(cfg: Config, dtype: layers.Dtype) -> Config:
  """A config that computes in `dtype`, the autoencoder in float32, nothing recomputed."""

  def part(found: Any) -> Any:
    return dataclasses.replace(found, dtype=dtype, remat="none")

  pixels = dataclasses.replace(cfg.autoencoder, dtype="float32", remat="none")
  return dataclasses.replace(
    cfg,
    backbone=part(cfg.backbone),
    visual=part(cfg.visual),
    flux=part(cfg.flux),
    autoencoder=pixels,
  )


def read_settings(directory: Path) -> Settings:
  """The settings of tiny.json; else the release's.

  The released scripts bound pictures by themselves, whatever preprocessor_config.json says.

  Raises:
    ValueError: a value of the wrong kind, by field.
  """
  path = directory / "tiny.json"
  ours = files.read_json(path).get("blip3o_jax", {}) if path.exists() else {}
  return config.build(Settings, ours, str(directory))


def _language(cfg: Config, values: Json, where: str, dtype: layers.Dtype) -> Config:
  """The config with the sizes and ids of a config.json."""
  nested = "text_config" in values
  rest = {k: v for k, v in values.items() if nested or k not in qwen_files.of_text(values)}
  given = ROOT.check(where, rest)
  changes: dict[str, Any] = {ours: given[name] for name, ours in TOKENS.items() if name in given}
  changes["backbone"] = qwen_files.text_config(values, where, dtype)
  vision = given["vision_config"]
  changes["visual"] = qwen_files.vision_config(vision, f"{where} vision_config", dtype)
  return _replaced(cfg, changes, where)


def told(directory: Path, cfg: Config) -> Config:
  """The config with the sizes of a directory's tiny.json, if it has one.

  Raises:
    ValueError: a field of the wrong kind, not built or unknown, sizes that contradict one another.
  """
  path = directory / "tiny.json"
  if not path.is_file():
    return cfg
  where, values = str(path), files.read_json(path)
  tiny = TINY.check(where, values)
  checks = {"adapter": ADAPTER, "merger": MERGER, "sampler": SAMPLER, "blip3o_jax": OURS}
  group = {
    name: fields.check(f"{where} {name}", tiny.get(name, {})) for name, fields in checks.items()
  }
  changes: dict[str, Any] = {
    "flux": flux_told(values, where, cfg.flux),
    "autoencoder": vae_told(values, where, cfg.autoencoder),
  }
  for field, ours in (
    ("slots", "slots"),
    ("negative_context_tokens", "null_tokens"),
    ("embedded_guidance", "guidance"),
  ):
    changes |= {ours: tiny[field]} if field in tiny else {}
  for field, ours in (
    ("target_grid", "target_grid"),
    ("reference_grid", "reference_grid"),
    ("merger_base_grid", "base_grid"),
  ):
    changes |= {ours: _side(tiny[field], f"{where}: {field}")} if field in tiny else {}
  for field, ours in (("num_layers", "merger_depth"), ("expand_ratio", "merger_expand")):
    changes |= {ours: group["merger"][field]} if field in group["merger"] else {}
  out = _replaced(cfg, changes, where)
  inner, outer = out.backbone.dim, out.flux.context_dim
  target, reference = out.side(out.target_grid), out.side(out.reference_grid)
  for field, value, wanted, what in (
    ("adapter in", group["adapter"].get("in"), inner, "config.json's hidden_size"),
    ("adapter out", group["adapter"].get("out"), outer, "dit context_dim"),
    ("merger out", group["merger"].get("out"), outer, "dit context_dim"),
    ("target_pixels", tiny.get("target_pixels"), target, "target_grid in pixels"),
    ("reference_pixels", tiny.get("reference_pixels"), reference, "reference_grid in pixels"),
  ):
    if value not in (None, wanted):
      raise ValueError(f"{where}: {field} is {value}, but {what} is {wanted}")
  return out


def _side(value: Any, where: str) -> int:
  """Patches a side of [1, side, side]."""
  if len(value) != 3 or value[0] != 1 or value[1] != value[2] or not isinstance(value[1], int):
    raise ValueError(f"{where} {value!r}: expected [1, side, side], one square frame in patches")
  side: int = value[1]
  return side


def _replaced(cfg: Any, changes: Mapping[str, Any], where: str) -> Any:
  """A config with changes; sizes that do not fit one another are said with the file."""
  try:
    return dataclasses.replace(cfg, **changes)
  except (TypeError, ValueError) as error:
    raise ValueError(f"{where}: {error}") from None


# Parts -------------------------------------------------------------------------------------------


def flux_told(values: Json, where: str, cfg: flux.Config) -> flux.Config:
  """The transformer with the sizes under "dit" of a tiny.json.

  Raises:
    ValueError: a field of the wrong kind, not built or unknown, by name; sizes that do not divide.
  """
  found = DIT.check(f"{where} dit", values.get("dit", {}))
  changes = {ours: found[name] for name, ours in DIT_FIELDS.items() if name in found}
  changes |= {"axes": tuple(changes["axes"])} if "axes" in changes else {}
  return _replaced(cfg, changes, f"{where} dit")


def flux_config(values: Json, where: str) -> flux.Config:
  """The transformer of diffusers' config.json; a field that is absent has its class's default.

  Raises:
    ValueError: a field of the wrong kind, not built or unknown, by name; sizes that do not divide.
  """
  found = TRANSFORMER_KNOWN.check(where, values)
  changes = {ours: found[name] for name, ours in TRANSFORMER_FIELDS.items() if name in found}
  changes |= {"axes": tuple(changes["axes"])} if "axes" in changes else {}
  changes.setdefault("guidance", False)
  heads = changes.setdefault("heads", 24)
  changes["dim"] = heads * found.get("attention_head_dim", 128)
  out = _replaced(dataclasses.replace(flux.VARIANTS["flux_1_dev"], dtype="float32"), changes, where)
  if found.get("out_channels", out.in_channels) != out.in_channels:
    raise ValueError(
      f"{where}: out_channels {found['out_channels']} is not built, only in_channels, "
      f"{out.in_channels}"
    )
  return out


def vae_told(values: Json, where: str, cfg: autoencoder.Config) -> autoencoder.Config:
  """The autoencoder with the sizes under "vae" of a tiny.json.

  Raises:
    ValueError: a field of the wrong kind, not built or unknown, by name; sizes that do not divide.
  """
  found = VAE.check(f"{where} vae", values.get("vae", {}))
  changes = {ours: found[name] for name, ours in VAE_FIELDS.items() if name in found}
  if ("ch" in found) != ("ch_mult" in found):
    raise ValueError(f"{where} vae: ch and ch_mult tell the widths together; one is absent")
  if "ch" in found:
    changes["channels"] = tuple(found["ch"] * n for n in found["ch_mult"])
  return _replaced(cfg, changes, f"{where} vae")


def with_autoencoder(cfg: Config, pixels: autoencoder.Config, where: str) -> Config:
  """The config with another autoencoder; ValueError, which names `where`, if it does not fit."""
  out: Config = _replaced(cfg, {"autoencoder": pixels}, where)
  return out


# Writing -----------------------------------------------------------------------------------------


def config_json(cfg: Config, eos: int, pad: int) -> dict[str, Any]:
  """The content of config.json for sizes `cfg`; `eos` and `pad` are token ids."""
  return {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    **qwen_files.text_json(cfg.backbone),
    **{name: getattr(cfg, ours) for name, ours in TOKENS.items()},
    "bos_token_id": pad,  # as released: no text begins with it
    "eos_token_id": eos,
    "pad_token_id": pad,
    "vision_config": qwen_files.vision_json(cfg.visual),
  }


def tiny_json(cfg: Config, settings: Settings, special: Mapping[str, int]) -> dict[str, Any]:
  """The content of tiny.json: sizes that config.json does not carry, and our settings."""
  pixels, first = cfg.autoencoder, cfg.autoencoder.channels[0]
  grids = {"target_grid": cfg.target_grid, "reference_grid": cfg.reference_grid}
  if any(width % first for width in pixels.channels):
    raise ValueError(f"tiny.json cannot tell the autoencoder's channels {pixels.channels}")
  return {
    "special_token_ids": dict(special),
    "slots": cfg.slots,
    **{name: [1, side, side] for name, side in grids.items()},
    "merger_base_grid": [1, cfg.base_grid, cfg.base_grid],
    "merger": {"num_layers": cfg.merger_depth, "expand_ratio": cfg.merger_expand},
    "dit": {
      **{name: getattr(cfg.flux, ours) for name, ours in DIT_FIELDS.items()},
      "axes_dims_rope": list(cfg.flux.axes),
    },
    "vae": {
      **{name: getattr(pixels, ours) for name, ours in VAE_FIELDS.items()},
      "ch": first,
      "ch_mult": [width // first for width in pixels.channels],
    },
    "negative_context_tokens": cfg.null_tokens,
    "embedded_guidance": cfg.guidance,
    "blip3o_jax": dataclasses.asdict(settings),
  }


def sizes_json(cfg: Config) -> dict[str, Any]:
  """What config.json and tiny.json tell about a model, ids of text and settings left out."""
  return config_json(cfg, eos=0, pad=0) | tiny_json(cfg, Settings(), {})
