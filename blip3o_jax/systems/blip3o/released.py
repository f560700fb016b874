"""The released directory: config.json and tiny.json to sizes, and back. Reads no tensor.

`config.json` lacks the sizes of the DiT and the EVA tower; they are the release's, or those of a
`tiny.json` beside it (spec 3.8). `tiny.json` also carries, under "blip3o_jax", what only this
package has: whitened features, projector, objective, and how the pixel decoder's null is made.
"""

from collections.abc import Mapping
import dataclasses
from pathlib import Path
from typing import Any
from typing import Literal

from blip3o_jax import config
from blip3o_jax import layers
from blip3o_jax.models import autoencoder
from blip3o_jax.models import decoder_lm
from blip3o_jax.models import next_dit
from blip3o_jax.models import qwen_vision
from blip3o_jax.systems.blip3o.model import Config
from blip3o_jax.systems.parts import features
from blip3o_jax.systems.parts import features_files
from blip3o_jax.systems.parts import layout

Null = Literal["space", "zeros", "black"]
Json = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Settings:
  """What inference needs beside the networks.

  Attributes:
    null: the absence of the pixel decoder's condition: a generated picture of the prompt " " as
      released (spec 5.5-2), zeros, or the features of a black image.
    pixel_scale, pixel_steps: guidance and steps of the pixel decoder.
    min_pixels, max_pixels: bounds of an image in a prompt (spec 1.8).
    prompt_form: whether the assistant header of a generation prompt is closed (spec 10.2 F1).
    steps, scale: of the feature sampler.
  """

  null: Null = "space"
  pixel_scale: float = 3.0
  pixel_steps: int = 50
  min_pixels: int = 3136
  max_pixels: int = 12_845_056
  prompt_form: Literal["inference", "training"] = "inference"
  steps: int = 30
  scale: float = 3.0


def read(directory: str | Path, dtype: layers.Dtype) -> tuple[Config, Settings]:
  """Sizes and settings of a released-layout directory, computing in `dtype`.

  Raises:
    FileNotFoundError: no config.json.
    ValueError: a field that is absent or of the wrong kind, by file and name.
  """
  directory = Path(directory)
  if not (directory / "config.json").is_file():
    raise FileNotFoundError(f"{directory}: no config.json; not a model in the released layout")
  values = layout.read_json(directory / "config.json")
  tiny = layout.read_json(directory / "tiny.json") if (directory / "tiny.json").exists() else {}
  ours = tiny.get("blip3o_jax", {})
  try:
    cfg = _config(values, tiny, ours, dtype)
  except KeyError as error:
    raise ValueError(f"{directory}: config.json or tiny.json lacks the field {error}") from None
  return cfg, read_settings(directory)


def whole(cfg: Config, dtype: layers.Dtype) -> Config:
  """A run's config as that of the whole model, all parts built, computing in `dtype`."""

  def computing(part: Any) -> Any:
    return dataclasses.replace(part, dtype=dtype, remat="none")

  tower = dataclasses.replace(cfg.features, tower=computing(cfg.features.tower))
  return dataclasses.replace(
    cfg,
    backbone=computing(cfg.backbone),
    visual=computing(cfg.visual),
    denoiser=computing(cfg.denoiser),
    features=tower,
    parts=("visual", "head", "denoiser", "encoder"),
  )


def read_settings(directory: Path) -> Settings:
  """The settings of tiny.json and preprocessor_config.json; the release's where they say nothing.

  Raises:
    ValueError: a value of the wrong kind, by field.
  """
  known = {f.name for f in dataclasses.fields(Settings)}
  found: dict[str, Any] = {}
  tiny, processor = directory / "tiny.json", directory / "preprocessor_config.json"
  if tiny.exists():
    found |= {k: v for k, v in layout.read_json(tiny).get("blip3o_jax", {}).items() if k in known}
  if processor.exists():
    found |= {
      k: v for k, v in layout.read_json(processor).items() if k in ("min_pixels", "max_pixels")
    }
  return config.build(Settings, found, str(directory))


def _config(values: Json, tiny: Json, ours: Json, dtype: layers.Dtype) -> Config:
  text = values.get("text_config", values)  # newer transformers nest the text model
  heads = text["num_attention_heads"]
  rope = text.get("rope_scaling") or text.get("rope_parameters") or {}
  backbone = decoder_lm.Config(
    vocab_size=text["vocab_size"],
    dim=text["hidden_size"],
    depth=text["num_hidden_layers"],
    heads=heads,
    kv_heads=text["num_key_value_heads"],
    head_dim=text.get("head_dim") or text["hidden_size"] // heads,
    mlp_dim=text["intermediate_size"],
    rope_theta=float(text.get("rope_theta", rope.get("rope_theta", 1e6))),
    mrope_section=tuple(rope["mrope_section"]),
    norm_eps=text.get("rms_norm_eps", 1e-6),
    tie_embeddings=values.get("tie_word_embeddings", False),
    init_std=text.get("initializer_range", 0.02),
    dtype=dtype,
  )
  vision = values["vision_config"]
  visual = qwen_vision.Config(
    dim=vision["hidden_size"],
    depth=vision["depth"],
    heads=vision["num_heads"],
    mlp_dim=vision["intermediate_size"],
    out_dim=vision["out_hidden_size"],
    patch_size=vision.get("patch_size", 14),
    temporal_patch_size=vision.get("temporal_patch_size", 2),
    merge=vision.get("spatial_merge_size", 2),
    init_std=vision.get("initializer_range", 0.02),
    window_size=vision.get("window_size", 112),
    full_layers=tuple(vision["fullatt_block_indexes"]),
    dtype=dtype,
  )
  pool = int(
    tiny.get("gen_pool_stride", values.get("gen_pooling", "early_pool2d_4").split("_")[-1])
  )
  space = features.Config(features_files.config(tiny, dtype), pool, ours.get("whiten", 0))
  latents = autoencoder.Config(**ours["latents"]) if "latents" in ours else autoencoder.Config()
  return Config(
    backbone=backbone,
    visual=visual,
    denoiser=_denoiser(tiny, backbone.dim, dtype),
    features=space,
    latents=latents,
    slots=tiny.get("n_query", values.get("n_query", 64)),
    projector=ours.get("projector", "identity"),
    image_token=values.get("image_token_id", 151655),
    objective=ours.get("objective", "flow"),
    target=ours.get("target", "features"),
  )


def _denoiser(tiny: Json, dim: int, dtype: layers.Dtype) -> next_dit.Config:
  if "dit" not in tiny:
    released = next_dit.VARIANTS["blip3o_8b"]
    return dataclasses.replace(released, condition_dim=dim, dtype=dtype, remat="none")
  dit = tiny["dit"]
  return next_dit.Config(
    in_channels=dit["in_channels"],
    grid=dit["input_size"],
    condition_dim=dit["latent_embedding_size"],
    dim=dit["dim"],
    depth=dit["n_layers"],
    heads=dit["n_heads"],
    kv_heads=dit["n_kv_heads"],
    patch_size=dit.get("patch_size", 1),
    multiple_of=dit.get("multiple_of", 256),
    rope=dit.get("rope", "2d"),
    rope_axes=tuple(dit.get("rope_axes", (16, 24, 24))),
    dtype=dtype,
  )


def config_json(cfg: Config, eos: int, pad: int) -> dict[str, Any]:
  """The content of config.json for sizes `cfg`; `eos` and `pad` are token ids."""
  text, vision = cfg.backbone, cfg.visual
  return {
    "architectures": ["blip3oQwenForCausalLM"],
    "model_type": "blip3o_qwen",
    "vocab_size": text.vocab_size,
    "hidden_size": text.dim,
    "num_hidden_layers": text.depth,
    "num_attention_heads": text.heads,
    "num_key_value_heads": text.kv_heads,
    "intermediate_size": text.mlp_dim,
    "rope_theta": text.rope_theta,
    "rope_scaling": {
      "type": "default",
      "rope_type": "default",
      "mrope_section": list(text.mrope_section),
    },
    "rms_norm_eps": text.norm_eps,
    "hidden_act": "silu",
    "initializer_range": text.init_std,
    "max_position_embeddings": 128000,
    "use_sliding_window": False,
    "tie_word_embeddings": text.tie_embeddings,
    "image_token_id": cfg.image_token,
    "bos_token_id": pad,  # as released: no text begins with it
    "eos_token_id": eos,
    "pad_token_id": pad,
    "n_query": cfg.slots,
    "gen_vision_tower": "eva-clip",
    "gen_hidden_size": cfg.features.tower.dim,
    "gen_pooling": f"early_pool2d_{cfg.features.pool}",
    "vision_config": {
      "model_type": "qwen2_5_vl",
      "hidden_act": "silu",
      "initializer_range": vision.init_std,
      "in_channels": 3,
      "hidden_size": vision.dim,
      "depth": vision.depth,
      "num_heads": vision.heads,
      "intermediate_size": vision.mlp_dim,
      "out_hidden_size": vision.out_dim,
      "patch_size": vision.patch_size,
      "temporal_patch_size": vision.temporal_patch_size,
      "spatial_merge_size": vision.merge,
      "window_size": vision.window_size,
      "tokens_per_second": 2,
      "fullatt_block_indexes": list(vision.full_layers),
    },
  }


def tiny_json(cfg: Config, settings: Settings, special: Mapping[str, int]) -> dict[str, Any]:
  """The content of tiny.json: sizes that config.json does not carry, and our options."""
  dit, eva = cfg.denoiser, cfg.features.tower
  return {
    "special_token_ids": dict(special),
    "dit": {
      "input_size": dit.grid,
      "in_channels": dit.in_channels,
      "latent_embedding_size": dit.condition_dim,
      "dim": dit.dim,
      "n_layers": dit.depth,
      "n_heads": dit.heads,
      "n_kv_heads": dit.kv_heads,
      "patch_size": dit.patch_size,
      "multiple_of": dit.multiple_of,
      "rope": dit.rope,
      "rope_axes": list(dit.rope_axes),
    },
    "eva": {
      "image_size": eva.image_size,
      "patch_size": eva.patch_size,
      "width": eva.dim,
      "layers": eva.depth,
      "head_width": eva.dim // eva.heads,
      # Half a unit more survives the truncation of width * ratio.
      "mlp_ratio": (eva.mlp_dim + 0.5) / eva.dim,
    },
    "gen_pool_stride": cfg.features.pool,
    "n_query": cfg.slots,
    "blip3o_jax": {
      "whiten": cfg.features.whiten,
      "projector": cfg.projector,
      "objective": cfg.objective,
      "target": cfg.target,
      **dataclasses.asdict(settings),
    },
  }


def sizes_json(cfg: Config) -> dict[str, Any]:
  """What config.json and tiny.json tell about a model, ids and settings left out."""
  return config_json(cfg, eos=0, pad=0) | tiny_json(cfg, Settings(), {})
