"""Rows of the conditional UNet (spec 5.2): names of diffusers' UNet2DConditionModel."""

from collections.abc import Sequence

from blip3o_jax.weights.table import Row
from blip3o_jax.weights.table import conv
from blip3o_jax.weights.table import linear
from blip3o_jax.weights.table import norm


def rows(
  channels: Sequence[int],
  depths: Sequence[int],
  *,
  mid_depth: int,
  resnets: int,
  time_ids: bool = True,
) -> list[Row]:
  """The whole UNet; arguments as in `models.unet.Config`, `time_ids` where time_ids_dim > 0."""
  last = len(channels) - 1
  out = conv("conv_in", "conv_in")
  for part in ("time_embedding", "add_embedding") if time_ids else ("time_embedding",):
    out += linear(f"{part}.linear_1", f"{part}/linear_1")
    out += linear(f"{part}.linear_2", f"{part}/linear_2")
  for i, depth in enumerate(depths):
    for j in range(resnets):
      changes = i > 0 and j == 0 and channels[i] != channels[i - 1]
      out += _resnet(f"down_blocks.{i}.resnets.{j}", shortcut=changes)
      out += _transformer(f"down_blocks.{i}.attentions.{j}", depth)
    if i < last:
      out += _conv(f"down_blocks.{i}.downsamplers.0.conv")
  for j in range(2):
    out += _resnet(f"mid_block.resnets.{j}", shortcut=False)
  out += _transformer("mid_block.attentions.0", mid_depth)
  for i, depth in enumerate(reversed(depths)):
    for j in range(resnets + 1):
      # Its input is a concatenation, wider than its output.
      out += _resnet(f"up_blocks.{i}.resnets.{j}", shortcut=True)
      out += _transformer(f"up_blocks.{i}.attentions.{j}", depth)
    if i < last:
      out += _conv(f"up_blocks.{i}.upsamplers.0.conv")
  out += norm("conv_norm_out", "conv_norm_out", bias=True)
  return out + conv("conv_out", "conv_out")


def _conv(name: str) -> list[Row]:
  return conv(name, name.replace(".", "/"))


def _resnet(name: str, *, shortcut: bool) -> list[Row]:
  path = name.replace(".", "/")
  out = norm(f"{name}.norm1", f"{path}/norm1", bias=True) + _conv(f"{name}.conv1")
  out += linear(f"{name}.time_emb_proj", f"{path}/time_emb_proj")
  out += norm(f"{name}.norm2", f"{path}/norm2", bias=True) + _conv(f"{name}.conv2")
  return out + (_conv(f"{name}.conv_shortcut") if shortcut else [])


def _transformer(name: str, depth: int) -> list[Row]:
  if not depth:
    return []
  path = name.replace(".", "/")
  out = norm(f"{name}.norm", f"{path}/norm", bias=True)
  out += linear(f"{name}.proj_in", f"{path}/proj_in")
  out += linear(f"{name}.proj_out", f"{path}/proj_out")
  block, ours = f"{name}.transformer_blocks.{{}}", f"{path}/transformer_blocks"
  for i in (1, 2, 3):
    out += norm(f"{block}.norm{i}", f"{ours}/norm{i}", bias=True)
  for i in (1, 2):
    for part in ("to_q", "to_k", "to_v"):
      out += linear(f"{block}.attn{i}.{part}", f"{ours}/attn{i}/{part}", bias=False)
    out += linear(f"{block}.attn{i}.to_out.0", f"{ours}/attn{i}/to_out")
  # One fused matrix in the file: the value half first, then the gate.
  out += linear(f"{block}.ff.net.0.proj", f"{ours}/ff/value", f"{ours}/ff/gate")
  return out + linear(f"{block}.ff.net.2", f"{ours}/ff/out")
