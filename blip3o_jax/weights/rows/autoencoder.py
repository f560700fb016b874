"""Rows of the KL autoencoder (spec 5.3): diffusers' AutoencoderKL names, and others of its layers.

All names are relative to the network.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
import re
from typing import Literal

from blip3o_jax.weights.table import LINEAR
from blip3o_jax.weights.table import Row
from blip3o_jax.weights.table import conv
from blip3o_jax.weights.table import linear
from blip3o_jax.weights.table import norm

# The attention's linear layers, and what they are called in files of diffusers before 0.16.
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
# Parts of diffusers' names, and of those of the files that Black Forest Labs released, where the
# levels of the decoder are counted from the pixels and the attention's layers are 1x1 convolutions
# (Nexus-Gen spec 8.4).
BFL_NAMES = {
  r"\.down_blocks\.(\d+)\.resnets\.": r".down.\1.block.",
  r"\.down_blocks\.(\d+)\.downsamplers\.0\.": r".down.\1.downsample.",
  r"\.up_blocks\.(\d+)\.resnets\.": r".up.\1.block.",
  r"\.up_blocks\.(\d+)\.upsamplers\.0\.": r".up.\1.upsample.",
  r"\.mid_block\.resnets\.0\.": ".mid.block_1.",
  r"\.mid_block\.resnets\.1\.": ".mid.block_2.",
  r"\.mid_block\.attentions\.0\.group_norm\.": ".mid.attn_1.norm.",
  r"\.mid_block\.attentions\.0\.to_([qkv])\.": r".mid.attn_1.\1.",
  r"\.mid_block\.attentions\.0\.to_out\.0\.": ".mid.attn_1.proj_out.",
  r"\.conv_shortcut\.": ".nin_shortcut.",
  r"\.conv_norm_out\.": ".norm_out.",
}
Naming = Literal["diffusers", "diffusers before 0.16", "bfl"]


def rows(
  channels: Sequence[int],
  depth: int,
  *,
  mid_attention: bool = True,
  quant_conv: bool = True,
  post_quant_conv: bool = True,
) -> list[Row]:
  """The whole autoencoder; arguments as in `models.autoencoder.Config`."""
  out: list[Row] = []
  for side, blocks, widths, count, change in (
    ("encoder", "down_blocks", (channels[0], *channels), depth, "downsamplers"),
    ("decoder", "up_blocks", (channels[-1], *channels[::-1]), depth + 1, "upsamplers"),
  ):
    out += _same(conv, f"{side}.conv_in")
    for i in range(len(channels)):
      for j in range(count):
        changes = j == 0 and widths[i] != widths[i + 1]
        out += _resnet(f"{side}.{blocks}.{i}.resnets.{j}", shortcut=changes)
      if i < len(channels) - 1:
        out += _same(conv, f"{side}.{blocks}.{i}.{change}.0.conv")
    out += _resnet(f"{side}.mid_block.resnets.0", shortcut=False)
    out += _resnet(f"{side}.mid_block.resnets.1", shortcut=False)
    if mid_attention:
      out += _attention(f"{side}.mid_block.attentions.0")
    out += _norm(f"{side}.conv_norm_out") + _same(conv, f"{side}.conv_out")
  out += _same(conv, "quant_conv") if quant_conv else []
  return out + (_same(conv, "post_quant_conv") if post_quant_conv else [])


def naming(names: Iterable[str]) -> Naming:
  """Which naming tensors have; diffusers' where nothing speaks for another."""
  for name in names:
    if ".attentions.0.query." in name:
      return "diffusers before 0.16"
    if re.match(r"(encoder\.down|decoder\.up|(encoder|decoder)\.mid)\.", name):
      return "bfl"
  return "diffusers"


def adapt(rows: Sequence[Row], names: Iterable[str]) -> list[Row]:
  """The rows in the `naming` that `names` have."""
  found = naming(names)
  if found == "bfl":
    levels = 1 + max(int(n[0]) for r in rows if (n := re.findall(r"\.up_blocks\.(\d+)", r.name)))
    return [_bfl(r, levels) for r in rows]
  if found == "diffusers":
    return list(rows)
  out = []
  for r in rows:
    parts = {f".attentions.0.{new}.": f".attentions.0.{old}." for new, old in OLD_NAMES.items()}
    new = next((part for part in parts if part in r.name), None)
    out.append(r if new is None else dataclasses.replace(r, name=r.name.replace(new, parts[new])))
  return out


def _bfl(row: Row, levels: int) -> Row:
  """A row in the naming of `BFL_NAMES`."""
  name = row.name
  for old, new in BFL_NAMES.items():
    name = re.sub(old, new, name)
  name = re.sub(r"\.up\.(\d+)", lambda found: f".up.{levels - 1 - int(found[1])}", name)
  linear = row.perm == LINEAR
  return dataclasses.replace(row, name=name, ones=2 if linear else 0)


def _same(make: Callable[[str, str], list[Row]], name: str) -> list[Row]:
  return make(name, name.replace(".", "/"))


def _norm(name: str) -> list[Row]:
  return norm(name, name.replace(".", "/"), bias=True)


def _resnet(name: str, *, shortcut: bool) -> list[Row]:
  out = _norm(f"{name}.norm1") + _same(conv, f"{name}.conv1")
  out += _norm(f"{name}.norm2") + _same(conv, f"{name}.conv2")
  return out + (_same(conv, f"{name}.conv_shortcut") if shortcut else [])


def _attention(name: str) -> list[Row]:
  path = name.replace(".", "/")
  out = _norm(f"{name}.group_norm")
  for layer in OLD_NAMES:
    out += linear(f"{name}.{layer}", f"{path}/{layer.removesuffix('.0')}")
  return out
