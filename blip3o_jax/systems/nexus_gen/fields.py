"""What config.json and tiny.json say of the tensors, part by part: `layout.Field`s."""

from collections.abc import Collection
from collections.abc import Mapping
import dataclasses
from typing import Any

from blip3o_jax.models import autoencoder
from blip3o_jax.models import flux
from blip3o_jax.systems.nexus_gen import prefill
from blip3o_jax.systems.nexus_gen import rows
from blip3o_jax.systems.nexus_gen.model import Config
from blip3o_jax.systems.parts import decoder_files
from blip3o_jax.systems.parts import qwen_files
from blip3o_jax.systems.parts.layout import Field
from blip3o_jax.weights import table
from blip3o_jax.weights.rows import autoencoder as autoencoder_rows
from blip3o_jax.weights.rows import flux as flux_rows

TINY = "tiny.json (or the release)"


def main(cfg: Config, names: Collection[str], values: Mapping[str, Any]) -> tuple[Field, ...]:
  """Of the main files; `names` of their tensors, `values` of config.json."""
  return (
    *qwen_files.fields(cfg.backbone, cfg.visual, names, values),
    Field(f"{TINY} slots", cfg.slots, prefill.NAME, 0, "slots"),
  )


def decoder(cfg: Config, which: rows.Module, names: Collection[str]) -> tuple[Field, ...]:
  """Of a decoder's file; `names` of its tensors."""
  bare = not any(name.startswith(rows.DIT) for name in names)
  own, dit = ("", "") if bare else (rows.OWN[which][0], rows.DIT)
  wide, out = cfg.backbone.dim, cfg.flux.context_dim
  if which == "generator":
    mine = [
      Field("config.json hidden_size", wide, f"{own}0.weight", 1),
      Field(f"{TINY} dit context_dim", out, f"{own}0.weight", 0),
    ]
  else:
    layer, norm, middle = f"{own}layers.0.", "input_layernorm.weight", cfg.merger_expand * out
    mine = [
      Field(
        f"{TINY} merger num_layers", cfg.merger_depth, f"{own}layers.{{}}.input_layernorm.weight"
      ),
      Field("config.json hidden_size", wide, f"{layer}{norm}"),
      Field("config.json intermediate_size", cfg.backbone.mlp_dim, f"{layer}mlp.gate_proj.weight"),
      Field(
        f"{TINY} dit context_dim times merger expand_ratio", middle, f"{own}projector.1.weight"
      ),
      Field(f"{TINY} dit context_dim", out, f"{own}projector.4.weight"),
    ]
  return (*mine, *_transformer(cfg.flux, f"{TINY} dit", flux_rows.rows("diffsynth"), dit))


def transformer(cfg: flux.Config, names: Collection[str], where: str) -> tuple[Field, ...]:
  """Of a FLUX transformer's file; `names` of its tensors. `where`: what says the sizes."""
  return _transformer(cfg, where, flux_rows.rows(rows.transformer_naming(names)), "")


def _transformer(
  cfg: flux.Config, where: str, found: list[table.Row], prefix: str
) -> tuple[Field, ...]:
  """Of a FLUX transformer in the naming of the rows, behind a prefix."""
  name_of = {path: prefix + r.name for r in found for path in r.paths}
  counts = (
    ("double blocks", cfg.double_depth, "double/image/modulation/kernel"),
    ("single blocks", cfg.single_depth, "single/modulation/kernel"),
  )
  told = (
    ("dim", cfg.dim, "x_embedder/kernel", 0),
    ("in_channels", cfg.in_channels, "x_embedder/kernel", 1),
    ("context_dim", cfg.context_dim, "context_embedder/kernel", 1),
    ("pooled_dim", cfg.pooled_dim, "pooled_embedder/linear_1/kernel", 1),
    ("sinusoid_dim", cfg.sinusoid_dim, "time_embedder/linear_1/kernel", 1),
    ("head size, the sum of axes", cfg.head_dim, "double/image/attn/norm_q/scale", 0),
    ("dim times mlp_ratio", cfg.mlp_dim, "double/image/linear_1/kernel", 0),
  )
  return (
    *(Field(f"{where} {what}", value, name_of[path]) for what, value, path in counts),
    *(
      Field(f"{where} {what}", value, name_of[path].replace("{}", "0"), axis)
      for what, value, path, axis in told
    ),
  )


def pixels(cfg: autoencoder.Config, names: Collection[str]) -> tuple[Field, ...]:
  """Of the autoencoder's file in BFL's naming or diffusers'; `names` of its tensors."""
  told = decoder_files.vae_fields(cfg, f"{TINY} vae")
  levels = decoder_files.vae_table(cfg)  # with them the levels are counted
  found = autoencoder_rows.adapt([*levels, *(table.row(f.tensor, "") for f in told)], names)
  renamed = found[len(levels) :]
  return tuple(dataclasses.replace(f, tensor=r.name) for f, r in zip(told, renamed, strict=True))


def null(cfg: Config) -> tuple[Field, ...]:
  """Of the file of the null condition."""
  return (
    Field(f"{TINY} negative_context_tokens", cfg.null_tokens, "context", 0),
    Field(f"{TINY} dit context_dim", cfg.flux.context_dim, "context", 1),
    Field(f"{TINY} dit pooled_dim", cfg.flux.pooled_dim, "pooled", 0),
  )
