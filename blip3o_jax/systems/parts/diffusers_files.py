"""Config files of diffusers and our configs, both ways: UNet, autoencoder, schedule.

A field that is absent or null has its documented default. One with a value that this package does
not build is an error, and so is one that no table has.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blip3o_jax.diffusion import eps
from blip3o_jax.layers import Dtype
from blip3o_jax.models import autoencoder
from blip3o_jax.models import unet
from blip3o_jax.systems.parts import layout
from blip3o_jax.systems.parts.known import Known

Json = dict[str, Any]
FOLDER = "diffusion-decoder"
FOLDERS = {"unet": "unet", "autoencoder": "vae"}  # network -> folder
STEM = "diffusion_pytorch_model"
ATTENTION_DOWN, PLAIN_DOWN = "CrossAttnDownBlock2D", "DownBlock2D"
ATTENTION_UP, PLAIN_UP = "CrossAttnUpBlock2D", "UpBlock2D"
MID_BLOCKS = ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D")

# The only values that are built.
UNET_FIXED: Json = {
  "act_fn": "silu",
  "attention_type": "default",
  "center_input_sample": False,
  "class_embed_type": None,
  "class_embeddings_concat": False,
  "conv_in_kernel": 3,
  "conv_out_kernel": 3,
  "cross_attention_norm": None,
  "downsample_padding": 1,
  "dual_cross_attention": False,
  "encoder_hid_dim": None,
  "encoder_hid_dim_type": None,
  "flip_sin_to_cos": True,
  "freq_shift": 0,
  "mid_block_only_cross_attention": None,
  "mid_block_scale_factor": 1,
  "num_class_embeds": None,
  "only_cross_attention": False,
  "resnet_out_scale_factor": 1.0,
  "resnet_skip_time_act": False,
  "resnet_time_scale_shift": "default",
  "reverse_transformer_layers_per_block": None,
  "time_cond_proj_dim": None,
  "time_embedding_act_fn": None,
  "time_embedding_dim": None,
  "time_embedding_type": "positional",
  "timestep_post_act": None,
  "use_linear_projection": True,
}
VAE_FIXED: Json = {"act_fn": "silu", "latents_mean": None, "latents_std": None}
SCHEDULE_FIXED: Json = {
  "final_sigmas_type": "zero",
  "interpolation_type": "linear",
  "prediction_type": "epsilon",
  "rescale_betas_zero_snr": False,
  "timestep_type": "discrete",
  "trained_betas": None,
  "use_beta_sigmas": False,
  "use_exponential_sigmas": False,
  "use_karras_sigmas": False,
}
FREE = ("_*", "sample_size")  # the sizes of what training saw; `painter_files` reads the UNet's


def _table(read: Mapping[str, type], fixed: Json, name: str, free: Sequence[str]) -> Known:
  """The table of a class of diffusers, whose config names it."""
  return Known(read, {"_class_name": (name,)} | {k: (v,) for k, v in fixed.items()}, (*FREE, *free))


UNET = _table(
  {
    **dict.fromkeys(("in_channels", "out_channels", "norm_num_groups", "place_channels"), int),
    **dict.fromkeys(("block_out_channels", "down_block_types", "up_block_types"), list),
    **dict.fromkeys(("addition_embed_type", "mid_block_type"), str),
    **dict.fromkeys(("addition_time_embed_dim", "projection_class_embeddings_input_dim"), int),
    "norm_eps": float,
  },
  UNET_FIXED,
  "UNet2DConditionModel",
  # Some are one number or a list, which `_each` looks at. Dropout is of training; more precision in
  # attention is what float32 has; and the number of heads of an embedding that is not built.
  free=(
    *("attention_head_dim", "num_attention_heads", "transformer_layers_per_block"),
    *("cross_attention_dim", "layers_per_block"),
    *("dropout", "upcast_attention", "addition_embed_type_num_heads"),
  ),
)
VAE = _table(
  {
    **dict.fromkeys(("in_channels", "out_channels", "latent_channels", "layers_per_block"), int),
    **dict.fromkeys(("block_out_channels", "down_block_types", "up_block_types"), list),
    **dict.fromkeys(("norm_num_groups", "patch_size"), int),
    **dict.fromkeys(("mid_block_add_attention", "use_post_quant_conv", "use_quant_conv"), bool),
    **dict.fromkeys(("scaling_factor", "shift_factor"), float),
  },
  VAE_FIXED,
  "AutoencoderKL",
  free=("force_upcast",),  # it always computes in float32
)
SCHEDULE = _table(
  {
    **dict.fromkeys(("beta_end", "beta_start"), float),
    **dict.fromkeys(("beta_schedule", "timestep_spacing"), str),
    **dict.fromkeys(("num_train_timesteps", "steps_offset"), int),
  },
  SCHEDULE_FIXED,
  "EulerDiscreteScheduler",
  # Ends of the table for sigmas that are not built, and what other schedulers leave behind, which
  # Euler's does not read.
  free=(
    *("sigma_max", "sigma_min", "clip_sample", "clip_sample_range", "sample_max_value"),
    *("set_alpha_to_one", "skip_prk_steps", "thresholding", "dynamic_thresholding_ratio"),
  ),
)
SCHEDULER = "scheduler/scheduler_config.json"


def home(directory: str | Path) -> Path:
  """The folder that holds `unet` and `vae`: `diffusion-decoder` of a model, or the directory.

  Raises:
    FileNotFoundError: neither is there.
  """
  for found in (Path(directory) / FOLDER, Path(directory)):
    if any((found / folder).is_dir() for folder in FOLDERS.values()):
      return found
  raise FileNotFoundError(f"{directory}: no {FOLDER}/unet or {FOLDER}/vae in it")


def check_classes(files: layout.Files) -> None:
  """Refuses a schedule that is not built, and a pipeline of other networks, as far as files say.

  Args:
    files: of the folder that holds `unet` and `vae`.

  Raises:
    ValueError: by file, field and value.
  """
  if files.has(SCHEDULER):
    schedule_config(files.json(SCHEDULER))
  told = files.json("model_index.json")
  for name, table in (("scheduler", SCHEDULE), ("unet", UNET), ("vae", VAE)):
    built = table.fixed["_class_name"][0]
    found = told.get(name, [built])
    if not isinstance(found, list) or not found or found[-1] != built:
      raise ValueError(
        f"{files.directory / 'model_index.json'}: {name} {found!r} is not built, only {built!r}"
      )


def unet_config(values: Mapping[str, Any], *, dtype: Dtype = "float32") -> unet.Config:
  """A UNet2DConditionModel's config.json as our config.

  Raises:
    ValueError: a value that is not built, by name.
  """
  where = "unet/config.json"
  values = UNET.check(where, values)
  get = values.get
  channels = tuple(get("block_out_channels", (320, 640, 1280, 1280)))
  count = len(channels)
  down = tuple(get("down_block_types", (ATTENTION_DOWN,) * 3 + (PLAIN_DOWN,)))
  up = tuple(get("up_block_types", (PLAIN_UP,) + (ATTENTION_UP,) * 3))
  if len(down) != count or set(down) - {ATTENTION_DOWN, PLAIN_DOWN}:
    raise ValueError(f"{where}: down_block_types {list(down)} is not built")
  if up != tuple(t.replace("Down", "Up") for t in reversed(down)):
    raise ValueError(f"{where}: up_block_types {list(up)} does not mirror down_block_types")
  mid = get("mid_block_type", MID_BLOCKS[0])
  if mid not in MID_BLOCKS:
    raise ValueError(f"{where}: mid_block_type {mid!r} is not one of {MID_BLOCKS}")
  blocks = _each(
    where, "transformer_layers_per_block", get("transformer_layers_per_block", 1), count
  )
  # What diffusers calls attention_head_dim is the number of heads.
  heads = get("num_attention_heads")
  heads = get("attention_head_dim", 8) if heads is None else heads
  context = get("cross_attention_dim", 1280)
  if not isinstance(context, int) or not isinstance(get("layers_per_block", 2), int):
    raise ValueError(f"{where}: cross_attention_dim and layers_per_block must be one number each")
  out = unet.Config(
    in_channels=get("in_channels", 4),
    out_channels=get("out_channels", 4),
    channels=channels,
    heads=_each(where, "attention_head_dim", heads, count),
    depths=tuple(n if t == ATTENTION_DOWN else 0 for n, t in zip(blocks, down, strict=True)),
    mid_depth=blocks[-1] if mid == MID_BLOCKS[0] else 0,
    resnets=get("layers_per_block", 2),
    context_dim=context,
    time_ids_dim=_time_ids_dim(where, values),
    groups=get("norm_num_groups", 32),
    norm_eps=get("norm_eps", 1e-5),
    dtype=dtype,
  )
  width = out.context_dim + unet.TIME_IDS * out.time_ids_dim
  if out.time_ids_dim and get("projection_class_embeddings_input_dim", width) != width:
    raise ValueError(
      f"{where}: projection_class_embeddings_input_dim "
      f"{values['projection_class_embeddings_input_dim']}, but {context} pooled channels and six "
      f"time ids make {width}"
    )
  return out


def unet_json(cfg: unet.Config, *, grid: int) -> Json:
  """The config.json of our UNet, for latents of `grid` cells a side.

  Raises:
    ValueError: a middle that the format cannot express beside the last level.
  """
  if cfg.mid_depth and cfg.depths[-1] and cfg.mid_depth != cfg.depths[-1]:
    raise ValueError(f"mid_depth {cfg.mid_depth} differs from the last of depths {cfg.depths}")
  blocks = [n or 1 for n in cfg.depths[:-1]] + [cfg.mid_depth or cfg.depths[-1] or 1]
  down = [ATTENTION_DOWN if n else PLAIN_DOWN for n in cfg.depths]
  out: Json = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": grid,
    "in_channels": cfg.in_channels,
    "out_channels": cfg.out_channels,
    "block_out_channels": list(cfg.channels),
    "down_block_types": down,
    "mid_block_type": MID_BLOCKS[0 if cfg.mid_depth else 1],
    "up_block_types": [t.replace("Down", "Up") for t in reversed(down)],
    "layers_per_block": cfg.resnets,
    "transformer_layers_per_block": blocks,
    "attention_head_dim": list(cfg.heads),
    "cross_attention_dim": cfg.context_dim,
    "norm_num_groups": cfg.groups,
    "norm_eps": cfg.norm_eps,
    "addition_embed_type": "text_time" if cfg.time_ids_dim else None,
  }
  if cfg.time_ids_dim:
    out["addition_time_embed_dim"] = cfg.time_ids_dim
    out["projection_class_embeddings_input_dim"] = (
      cfg.context_dim + unet.TIME_IDS * cfg.time_ids_dim
    )
  return out | UNET_FIXED


def vae_config(values: Mapping[str, Any], *, dtype: Dtype = "float32") -> autoencoder.Config:
  """An AutoencoderKL's config.json as our config; `patch_size` is a field of ours.

  Raises:
    ValueError: a value that is not built, by name.
  """
  where = "vae/config.json"
  values = VAE.check(where, values)
  get = values.get
  channels = tuple(get("block_out_channels", (64,)))
  for name, kind in (
    ("down_block_types", "DownEncoderBlock2D"),
    ("up_block_types", "UpDecoderBlock2D"),
  ):
    types = list(get(name, [kind] * len(channels)))
    if types != [kind] * len(channels):
      raise ValueError(f"{where}: {name} {types} is not {len(channels)} x {kind!r}")
  images = get("in_channels", 3)
  if get("out_channels", 3) != images:
    raise ValueError(f"{where}: in_channels {images} and out_channels {values['out_channels']}")
  return autoencoder.Config(
    image_channels=images,
    latent_channels=get("latent_channels", 4),
    channels=channels,
    depth=get("layers_per_block", 1),
    groups=get("norm_num_groups", 32),
    patch_size=get("patch_size", 1),
    mid_attention=get("mid_block_add_attention", True),
    quant_conv=get("use_quant_conv", True),
    post_quant_conv=get("use_post_quant_conv", True),
    scaling_factor=float(get("scaling_factor", 0.18215)),
    shift_factor=float(get("shift_factor") or 0.0),
    dtype=dtype,
  )


def vae_json(cfg: autoencoder.Config, *, size: int) -> Json:
  """The config.json of our autoencoder, for images of `size` pixels a side."""
  out: Json = {
    "_class_name": "AutoencoderKL",
    "sample_size": size,
    "in_channels": cfg.image_channels,
    "out_channels": cfg.image_channels,
    "latent_channels": cfg.latent_channels,
    "block_out_channels": list(cfg.channels),
    "down_block_types": ["DownEncoderBlock2D"] * len(cfg.channels),
    "up_block_types": ["UpDecoderBlock2D"] * len(cfg.channels),
    "layers_per_block": cfg.depth,
    "norm_num_groups": cfg.groups,
    "mid_block_add_attention": cfg.mid_attention,
    "use_quant_conv": cfg.quant_conv,
    "use_post_quant_conv": cfg.post_quant_conv,
    "scaling_factor": cfg.scaling_factor,
    "shift_factor": cfg.shift_factor or None,
    "force_upcast": True,
  }
  if cfg.patch_size != 1:
    out["patch_size"] = cfg.patch_size
  return out | VAE_FIXED


def schedule_config(values: Mapping[str, Any]) -> eps.Schedule:
  """An EulerDiscreteScheduler's scheduler_config.json as our schedule.

  Raises:
    ValueError: a value that is not built, by name.
  """
  where = SCHEDULER
  values = SCHEDULE.check(where, values)
  betas, spacing = values.get("beta_schedule", "linear"), values.get("timestep_spacing", "linspace")
  if betas not in ("linear", "scaled_linear"):
    raise ValueError(f"{where}: beta_schedule {betas!r} is not built")
  if spacing not in ("leading", "trailing", "linspace"):
    raise ValueError(f"{where}: timestep_spacing {spacing!r} is not built")
  return eps.Schedule(
    beta_start=float(values.get("beta_start", 0.0001)),
    beta_end=float(values.get("beta_end", 0.02)),
    betas=betas,
    train_steps=values.get("num_train_timesteps", 1000),
    spacing=spacing,
    steps_offset=values.get("steps_offset", 0),
  )


def schedule_json(schedule: eps.Schedule) -> Json:
  """The scheduler_config.json of our schedule."""
  return {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": schedule.beta_start,
    "beta_end": schedule.beta_end,
    "beta_schedule": schedule.betas,
    "num_train_timesteps": schedule.train_steps,
    "timestep_spacing": schedule.spacing,
    "steps_offset": schedule.steps_offset,
  } | SCHEDULE_FIXED


def _each(where: str, name: str, value: Any, count: int) -> tuple[int, ...]:
  """One whole number a level, from one for all or a list."""
  out = (value,) * count if isinstance(value, int) else tuple(value)
  if len(out) != count or not all(isinstance(n, int) for n in out):
    raise ValueError(f"{where}: {name} {value!r} is not one number for each of {count} levels")
  return out


def _time_ids_dim(where: str, values: Mapping[str, Any]) -> int:
  kind = values.get("addition_embed_type")
  if kind is None:
    return 0
  dim = values.get("addition_time_embed_dim")
  if kind != "text_time" or not isinstance(dim, int):
    raise ValueError(f"{where}: addition_embed_type {kind!r} of dim {dim!r} is not built")
  return dim
