"""The released directory: config.json and tiny.json to sizes, and back. Reads no tensor.

`config.json` lacks the sizes of the DiT and the EVA tower; they are the release's, or those of a
`tiny.json` beside it (spec 3.8). `tiny.json` also carries, under "blip3o_jax", what only this
package has: whitened features, projector, objective, and how the pixel decoder's null is made.
"""

from collections.abc import Mapping
import dataclasses
from pathlib import Path
import re
from typing import Any
from typing import Literal

from blip3o_jax import config
from blip3o_jax import files
from blip3o_jax import layers
from blip3o_jax.models import autoencoder
from blip3o_jax.models import next_dit
from blip3o_jax.systems.blip3o.model import Config
from blip3o_jax.systems.blip3o.prompts import SPECIAL
from blip3o_jax.systems.parts import features
from blip3o_jax.systems.parts import features_files
from blip3o_jax.systems.parts import known
from blip3o_jax.systems.parts import qwen_files
from blip3o_jax.systems.parts.known import Known

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
    words: all that a model of few words knows, in small letters; empty for a model of any words.
  """

  null: Null = "space"
  pixel_scale: float = 3.0
  pixel_steps: int = 50
  min_pixels: int = 3136
  max_pixels: int = 12_845_056
  prompt_form: Literal["inference", "training"] = "inference"
  steps: int = 30
  scale: float = 3.0
  words: tuple[str, ...] = ()


EVA = "eva-clip"
TOKENS = {"image_token_id": "image_pad", "vision_start_token_id": "vision_start"}
SLOTS, POOL, IMAGE_TOKEN = 64, 4, 151655  # the release's, where config.json does not say
# config.json beside the fields of the language model, which `qwen_files` knows.
ROOT = Known(
  read={
    "gen_hidden_size": int,
    "gen_pooling": str,
    "gen_vision_tower": str,
    "image_token_id": int,
    "n_query": int,
    "text_config": dict,
    "tie_word_embeddings": bool,
    "vision_config": dict,
  },
  # The released trainer writes how it was called; some versions of transformers repeat fields of
  # `text_config` at the top, where nothing reads them.
  free=(
    *known.TRANSFORMERS,
    *known.TRANSFORMERS_FIXED,
    *qwen_files.TEXT.read,
    *qwen_files.TEXT.fixed,
    *qwen_files.TEXT.free,
    *("freeze_*", "image_aspect_ratio", "image_crop_resolution", "image_grid_pinpoints"),
    *("image_split_resolution", "mm_*", "n_und_query", "pretrain_*", "tokenizer_*", "tune_*"),
    *("unfreeze_*", "use_mm_proj", "vision_tower*", "gen_projector_type", "gen_vision_tower_*"),
  ),
)
TINY = Known(
  read={
    **dict.fromkeys(("blip3o_jax", "dit", "eva"), dict),
    **dict.fromkeys(("gen_pool_stride", "n_query"), int),
  },
  free=("_*", "special_token_ids"),
)
OURS = Known(
  read={
    "latents": dict,
    **dict.fromkeys(("objective", "projector", "target"), str),
    "whiten": int,
  },
  free=[f.name for f in dataclasses.fields(Settings)],  # checked by `read_settings`
)
DIT = Known(
  read={
    **dict.fromkeys(("in_channels", "input_size", "latent_embedding_size", "dim"), int),
    **dict.fromkeys(("n_layers", "n_heads", "n_kv_heads", "patch_size", "multiple_of"), int),
    "rope_axes": list,
  },
  fixed={
    "ffn_dim_multiplier": (None,),
    "learn_sigma": (False,),
    "norm_eps": (1e-5,),
    "qk_norm": (True,),
    "rope": ("2d", "3d"),
  },
  free=("_*",),
)


def read(directory: str | Path, dtype: layers.Dtype) -> tuple[Config, Settings]:
  """Sizes and settings of a released-layout directory, computing in `dtype`.

  Raises:
    FileNotFoundError: no config.json.
    ValueError: a field that is absent or of the wrong kind, by file and name.
  """
  directory = Path(directory)
  if not (directory / "config.json").is_file():
    raise FileNotFoundError(f"{directory}: no config.json; not a model in the released layout")
  values, path = files.read_json(directory / "config.json"), directory / "tiny.json"
  tiny = TINY.check(str(path), files.read_json(path)) if path.exists() else {}
  try:
    cfg = _config(values, tiny, str(directory / "config.json"), dtype)
  except KeyError as error:
    raise ValueError(f"{directory}: config.json or tiny.json lacks the field {error}") from None
  qwen_files.check_pictures(directory, cfg.visual)
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
  """The settings of tiny.json and of the files about pictures; else the release's.

  Raises:
    ValueError: a value of the wrong kind, by field.
  """
  path = directory / "tiny.json"
  ours = files.read_json(path).get("blip3o_jax", {}) if path.exists() else {}
  known_here = {f.name for f in dataclasses.fields(Settings)}
  found = {k: v for k, v in ours.items() if k in known_here}
  return config.build(Settings, found | qwen_files.limits(directory), str(directory))


def check_tokens(directory: Path, ids: Mapping[str, int]) -> None:
  """Refuses a config.json whose ids of a picture's tokens are not the tokenizer's.

  Args:
    ids: {attribute of the tokenizer: id}.

  Raises:
    ValueError: by field, with both ids.
  """
  values = files.read_json(directory / "config.json")
  for name, token in TOKENS.items():
    said = values.get(name, IMAGE_TOKEN if token == "image_pad" else ids[token])
    if said != ids[token]:
      raise ValueError(
        f"{directory / 'config.json'}: {name} is {said}, but {SPECIAL[token]} of the tokenizer has "
        f"the id {ids[token]}; the two are of different models"
      )


def _config(values: Json, tiny: Json, where: str, dtype: layers.Dtype) -> Config:
  nested = "text_config" in values
  rest = {k: v for k, v in values.items() if nested or k not in qwen_files.of_text(values)}
  given = ROOT.check(where, rest)
  ours = OURS.check(f"{tiny_of(where)} blip3o_jax", tiny.get("blip3o_jax", {}))
  backbone = qwen_files.text_config(values, where, dtype)
  visual = qwen_files.vision_config(given["vision_config"], f"{where} vision_config", dtype)
  tower = features_files.config(tiny, tiny_of(where), dtype)
  latents = autoencoder.Config(**ours["latents"]) if "latents" in ours else autoencoder.Config()
  if not str(given.get("gen_vision_tower", EVA)).startswith(EVA):
    raise ValueError(
      f"{where}: gen_vision_tower {given['gen_vision_tower']!r} is not built, only an EVA tower, "
      f"{EVA}..."
    )
  # Without sizes of the tower the release's stand, which the tensors are held against.
  width = given.get("gen_hidden_size") if "eva" in tiny else None
  _agreed("gen_hidden_size", width, tower.dim, where)
  return Config(
    backbone=backbone,
    visual=visual,
    denoiser=_denoiser(tiny, tiny_of(where), backbone.dim, dtype),
    features=features.Config(tower, _pool(given, tiny, where), ours.get("whiten", 0)),
    latents=latents,
    slots=_agreed("n_query", given.get("n_query"), tiny.get("n_query"), where) or SLOTS,
    projector=ours.get("projector", "identity"),
    image_token=given.get("image_token_id", IMAGE_TOKEN),
    objective=ours.get("objective", "flow"),
    target=ours.get("target", "features"),
  )


def tiny_of(where: str) -> str:
  """The name of the tiny.json beside a config.json."""
  return where.removesuffix("config.json") + "tiny.json"


def _pool(given: Json, tiny: Json, where: str) -> int:
  """Cells of the tower that make one target, a side: as the release pools, before all else.

  Raises:
    ValueError: another pooling, none, or one that tiny.json contradicts.
  """
  name = given.get("gen_pooling")
  said = None if name is None else re.fullmatch(r"early_pool2d_([1-9]\d*)", name)
  if name is not None and said is None:
    raise ValueError(
      f"{where}: gen_pooling {name!r} is not built, only 'early_pool2d_N', which takes the mean of "
      "N by N cells of the tower before they become targets (released: early_pool2d_4)"
    )
  stride = None if said is None else int(said[1])
  return _agreed("gen_pooling's N", stride, tiny.get("gen_pool_stride"), where) or POOL


def _agreed(name: str, one: int | None, other: int | None, where: str) -> int | None:
  """What config.json and tiny.json say, or one of them; ValueError where they differ."""
  if one is not None and other is not None and one != other:
    raise ValueError(f"{where}: {name} is {one}, but tiny.json beside it has {other}")
  return one if other is None else other


def _denoiser(tiny: Json, where: str, dim: int, dtype: layers.Dtype) -> next_dit.Config:
  if "dit" not in tiny:
    released = next_dit.VARIANTS["blip3o_8b"]
    return dataclasses.replace(released, condition_dim=dim, dtype=dtype, remat="none")
  dit = DIT.check(f"{where} dit", tiny["dit"])
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
  return {
    "architectures": ["blip3oQwenForCausalLM"],
    "model_type": "blip3o_qwen",
    **qwen_files.text_json(cfg.backbone),
    "image_token_id": cfg.image_token,
    "bos_token_id": pad,  # as released: no text begins with it
    "eos_token_id": eos,
    "pad_token_id": pad,
    "n_query": cfg.slots,
    "gen_vision_tower": "eva-clip",
    "gen_hidden_size": cfg.features.tower.dim,
    "gen_pooling": f"early_pool2d_{cfg.features.pool}",
    "vision_config": qwen_files.vision_json(cfg.visual),
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
