"""Sizes as the config files say and as the tensors show: where they differ, both are shown."""

from collections.abc import Mapping
import dataclasses
import re

from blip3o_jax.models import autoencoder
from blip3o_jax.models import eva_vit
from blip3o_jax.models import unet
from blip3o_jax.systems import blip3o
from blip3o_jax.systems.blip3o import rows as names
from blip3o_jax.weights import table
from blip3o_jax.weights.rows import decoder_lm
from blip3o_jax.weights.rows import qwen_vision
from blip3o_jax.weights.table import Shape


@dataclasses.dataclass(frozen=True)
class Field:
  """One size that a config file tells.

  Attributes:
    field: its name, with the file. value: what it says. tensor: a name that shows the same size, or
      one with `{}` for an index that is counted. axis: of the tensor; unused for a count.
  """

  field: str
  value: int
  tensor: str
  axis: int = 0


def faults(fields: tuple[Field, ...], tensors: Mapping[str, Shape]) -> list[str]:
  """A line for each size that is not what the tensors show; absent tensors are not looked at."""
  out = []
  for f in fields:
    if "{}" in f.tensor:
      rx = re.compile(table.pattern(f.tensor))
      found = {int(m.group(1)) for name in tensors if (m := rx.fullmatch(name))}
      # Fewer than named is a missing layer, which the plan names; a count of 0 is an absent part.
      if found and len(found) != f.value and found == set(range(len(found))):
        out.append(f"{f.field} is {f.value}, but the tensors have {len(found)} ({f.tensor})")
    elif f.tensor in tensors:
      shape = tensors[f.tensor]
      if len(shape) > f.axis and shape[f.axis] != f.value:
        out.append(f"{f.field} is {f.value}, but {f.tensor} is {tuple(shape)}")
  return out


def of_model(
  cfg: blip3o.Config, tensors: Mapping[str, Shape], *, modules: set[str]
) -> tuple[Field, ...]:
  """What config.json and tiny.json say about the tensors of the main files."""
  newer = any(name.startswith(decoder_lm.PREFIXES[1]) for name in tensors)
  lm, vis = decoder_lm.PREFIXES[newer], qwen_vision.PREFIXES[newer]
  text, vision, dit, heads = cfg.backbone, cfg.visual, cfg.denoiser, cfg.backbone.head_dim
  main, tiny = "config.json", "tiny.json dit (or the release)"
  out: list[Field] = []
  if "backbone" in modules:
    layer = f"{lm}layers.0."
    out += [
      Field(f"{main} vocab_size", text.vocab_size, f"{lm}embed_tokens.weight", 0),
      Field(f"{main} hidden_size", text.dim, f"{lm}embed_tokens.weight", 1),
      Field(f"{main} num_hidden_layers", text.depth, f"{lm}layers.{{}}.input_layernorm.weight"),
      Field(f"{main} intermediate_size", text.mlp_dim, f"{layer}mlp.gate_proj.weight", 0),
      Field(
        f"{main} num_attention_heads times the head size",
        text.heads * heads,
        f"{layer}self_attn.q_proj.weight",
      ),
      Field(
        f"{main} num_key_value_heads times the head size",
        text.kv_heads * heads,
        f"{layer}self_attn.k_proj.weight",
      ),
    ]
  if "visual" in modules:
    block, name = f"{vis}blocks.0.", f"{main} vision_config"
    out += [
      Field(f"{name} depth", vision.depth, f"{vis}blocks.{{}}.norm1.weight"),
      Field(f"{name} hidden_size", vision.dim, f"{vis}patch_embed.proj.weight", 0),
      Field(f"{name} patch_size", vision.patch_size, f"{vis}patch_embed.proj.weight", 3),
      Field(f"{name} intermediate_size", vision.mlp_dim, f"{block}mlp.gate_proj.weight", 0),
      Field(f"{name} out_hidden_size", vision.out_dim, f"{vis}merger.mlp.2.weight", 0),
    ]
  if "slots" in modules:
    out.append(Field(f"{main} n_query", cfg.slots, "model.latent_queries", 1))
  if "denoiser" in modules:
    pre = "model.dit.model."
    out += [
      Field(f"{tiny} dim", dit.dim, f"{pre}patch_embedder.proj.weight", 0),
      Field(f"{tiny} in_channels", dit.in_channels, f"{pre}norm_out.linear_2.weight", 0),
      Field(f"{tiny} n_layers", dit.depth, f"{pre}layers.{{}}.gate"),
      Field(f"{tiny} n_heads", dit.heads, f"{pre}layers.0.gate", 0),
      Field(
        f"{tiny} latent_embedding_size",
        dit.condition_dim,
        f"{pre}caption_projection.linear_1.weight",
        1,
      ),
    ]
  if "encoder" in modules and cfg.target == "features":
    out += of_tower(cfg.features.tower, names.TOWER, "tiny.json eva (or the release)")
  return tuple(out)


def of_tower(cfg: eva_vit.Config, prefix: str, where: str) -> tuple[Field, ...]:
  """What `where` says about the tensors of an EVA tower, which begin with `prefix`."""
  return (
    Field(f"{where} width", cfg.dim, f"{prefix}cls_token", 2),
    Field(f"{where} layers", cfg.depth, f"{prefix}blocks.{{}}.norm1.weight"),
    Field(f"{where} patch_size", cfg.patch_size, f"{prefix}patch_embed.proj.weight", 2),
    Field(f"{where} width times mlp_ratio", cfg.mlp_dim, f"{prefix}blocks.0.mlp.fc1.weight"),
    Field(
      f"{where} image_size in patches, squared, plus one",
      (cfg.image_size // cfg.patch_size) ** 2 + 1,
      f"{prefix}pos_embed",
      1,
    ),
  )


def of_unet(cfg: unet.Config) -> tuple[Field, ...]:
  """What unet/config.json says about its tensors."""
  where = "unet config.json"
  out = [
    Field(f"{where} in_channels", cfg.in_channels, "conv_in.weight", 1),
    Field(f"{where} out_channels", cfg.out_channels, "conv_out.weight", 0),
    Field(
      f"{where} block_out_channels", len(cfg.channels), "down_blocks.{}.resnets.0.conv1.weight"
    ),
  ]
  for i, (width, depth) in enumerate(zip(cfg.channels, cfg.depths, strict=True)):
    block = f"down_blocks.{i}."
    attention = f"{block}attentions.0.transformer_blocks."
    out += [
      Field(f"{where} block_out_channels[{i}]", width, f"{block}resnets.0.conv1.weight"),
      Field(f"{where} layers_per_block", cfg.resnets, f"{block}resnets.{{}}.conv1.weight"),
      Field(
        f"{where} transformer_layers_per_block[{i}]", depth, f"{attention}{{}}.attn1.to_q.weight"
      ),
      Field(f"{where} cross_attention_dim", cfg.context_dim, f"{attention}0.attn2.to_k.weight", 1),
    ]
  return tuple(out)


def of_autoencoder(cfg: autoencoder.Config) -> tuple[Field, ...]:
  """What vae/config.json says about its tensors."""
  where = "vae config.json"
  return (
    Field(
      f"{where} in_channels", cfg.image_channels * cfg.patch_size**2, "encoder.conv_in.weight", 1
    ),
    Field(f"{where} latent_channels", cfg.latent_channels, "decoder.conv_in.weight", 1),
    *(
      Field(
        f"{where} block_out_channels[{i}]",
        width,
        f"encoder.down_blocks.{i}.resnets.0.conv1.weight",
      )
      for i, width in enumerate(cfg.channels)
    ),
    Field(f"{where} layers_per_block", cfg.depth, "encoder.down_blocks.0.resnets.{}.conv1.weight"),
  )
