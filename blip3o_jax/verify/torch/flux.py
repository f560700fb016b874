"""FLUX by diffusers, from the names of other files: the transformer and the 16-channel autoencoder.

Names are those of Nexus-Gen spec 8.3 and 8.4. A renamed tensor is a view of the file's, so a
gradient that reaches it reaches the file's.
"""

from collections.abc import Mapping
from pathlib import Path
import re
from typing import Any

import diffusers
import torch
from torch import nn

from blip3o_jax.verify.torch import decoder

State = dict[str, torch.Tensor]
AXES = (16, 56, 56)  # of the release's heads
# Parts of the names in DiffSynth's files, and of diffusers'; a and b are image and context.
BLOCK = {
  "norm1_a.linear": "norm1.linear",
  "norm1_b.linear": "norm1_context.linear",
  "attn.norm_q_a": "attn.norm_q",
  "attn.norm_k_a": "attn.norm_k",
  "attn.norm_q_b": "attn.norm_added_q",
  "attn.norm_k_b": "attn.norm_added_k",
  "attn.a_to_out": "attn.to_out.0",
  "attn.b_to_out": "attn.to_add_out",
  "ff_a.0": "ff.net.0.proj",
  "ff_a.2": "ff.net.2",
  "ff_b.0": "ff_context.net.0.proj",
  "ff_b.2": "ff_context.net.2",
}
SINGLE = {
  "norm.linear": "norm.linear",
  "norm_q_a": "attn.norm_q",
  "norm_k_a": "attn.norm_k",
  "proj_out": "proj_out",
}
EMBEDDERS = {
  "time_embedder.timestep_embedder": "timestep_embedder",
  "guidance_embedder.timestep_embedder": "guidance_embedder",
  "pooled_text_embedder": "text_embedder",
}
FUSED = {
  "attn.a_to_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
  "attn.b_to_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
  "to_qkv_mlp": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
}
WHOLE = {"final_norm_out": "norm_out", "final_proj_out": "proj_out"}


def renamed(state: Mapping[str, torch.Tensor]) -> State:
  """A transformer's tensors, in DiffSynth's names, in those of diffusers."""
  dim, out = state["x_embedder.weight"].shape[0], State()
  for name, value in state.items():
    stem, _, leaf = name.rpartition(".")
    found = re.fullmatch(r"(single_)?blocks\.(\d+)\.(.*)", stem)
    if found is None:
      out[f"{_outside(stem)}.{leaf}"] = value
      continue
    single, index, part = found.groups()
    home = f"{'single_' if single else ''}transformer_blocks.{index}."
    if part in FUSED:
      sizes = [dim] * 3 + [len(value) - 3 * dim] * (part == "to_qkv_mlp")
      pieces = torch.split(value, sizes)
      out |= {f"{home}{n}.{leaf}": piece for n, piece in zip(FUSED[part], pieces, strict=True)}
    else:
      out[f"{home}{(SINGLE if single else BLOCK)[part]}.{leaf}"] = value
  return out


def _outside(stem: str) -> str:
  for old, new in EMBEDDERS.items():
    if stem.startswith(old):
      number = 1 if stem.endswith(".0") else 2
      return f"time_text_embed.{new}.linear_{number}"
  head, dot, rest = stem.partition(".")
  return f"{WHOLE.get(head, head)}{dot}{rest}"


def _any(kind: Any) -> Any:
  """A class of diffusers, whose types do not say that it is a module."""
  return kind


class Given(nn.Module):
  """In place of the embedding of time: a vector that was made of the exact time."""

  value: torch.Tensor

  def forward(self, *ignored: Any) -> torch.Tensor:
    return self.value


class Transformer:
  """diffusers' transformer over tensors in DiffSynth's names, which may carry gradients."""

  def __init__(self, state: State, tiny: Mapping[str, Any]):
    heads = state["x_embedder.weight"].shape[0] // state["blocks.0.attn.norm_q_a.weight"].shape[0]
    self.state, make = state, _any(diffusers.FluxTransformer2DModel)
    with torch.device("meta"):
      self.net = make(
        in_channels=state["x_embedder.weight"].shape[1],
        num_layers=_count(state, "blocks"),
        num_single_layers=_count(state, "single_blocks"),
        attention_head_dim=state["blocks.0.attn.norm_q_a.weight"].shape[0],
        num_attention_heads=heads,
        joint_attention_dim=state["context_embedder.weight"].shape[1],
        pooled_projection_dim=state["pooled_text_embedder.0.weight"].shape[1],
        guidance_embeds="guidance_embedder.timestep_embedder.0.weight" in state,
        axes_dims_rope=tuple(tiny.get("axes_dims_rope", AXES)),
      )
    self.net.eval()
    self.embed, self.net.time_text_embed = self.net.time_text_embed, Given()
    own = renamed(state)
    lost = {n for n, _ in self.net.named_parameters()} - set(own)
    if lost:
      raise ValueError(f"a FLUX transformer without {', '.join(sorted(lost)[:3])}")

  def conditioning(
    self, t: torch.Tensor, guidance: torch.Tensor, pooled: torch.Tensor
  ) -> torch.Tensor:
    """(B, dim) of times in 0..1000 and of guidance before its factor of 1000."""
    own, prefix = renamed(self.state), "time_text_embed."
    state = {n.removeprefix(prefix): v for n, v in own.items() if n.startswith(prefix)}
    arguments = (t, guidance * 1000, pooled)
    return torch.func.functional_call(self.embed, state, arguments)

  def waves(self, values: torch.Tensor) -> torch.Tensor:
    """The sinusoids (B, 256) of numbers in thousands."""
    return self.embed.time_proj(values)

  def __call__(self, x: torch.Tensor, t: torch.Tensor, condition: Mapping[str, Any]) -> Any:
    """The velocity (B, C, h, w) at latents of that shape.

    Args:
      condition: context (B, S, C), pooled (B, P), guidance (B,), text_ids (S, 3).
    """
    height, width = x.shape[-2:]
    vector = self.conditioning(t, condition["guidance"], condition["pooled"])
    self.net.time_text_embed.value = vector
    own = {n: v for n, v in renamed(self.state).items() if not n.startswith("time_text_embed.")}
    found = torch.func.functional_call(
      self.net,
      own,
      kwargs=dict(
        hidden_states=patchify(x),
        encoder_hidden_states=condition["context"],
        pooled_projections=condition["pooled"],
        timestep=t / 1000,
        guidance=condition["guidance"],
        img_ids=image_ids(height, width),
        txt_ids=condition["text_ids"],
        return_dict=False,
      ),
    )[0]
    return unpatchify(found, height, width)


def _count(state: Mapping[str, torch.Tensor], part: str) -> int:
  found = [re.match(rf"{part}\.(\d+)\.", name) for name in state]
  return 1 + max(int(match[1]) for match in found if match)


def patchify(x: torch.Tensor) -> torch.Tensor:
  """(B, C, h, w) -> (B, hw/4, 4C), channel-major inside a patch."""
  b, c, h, w = x.shape
  cells = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
  return cells.reshape(b, h * w // 4, 4 * c)


def unpatchify(x: torch.Tensor, h: int, w: int) -> torch.Tensor:
  """The inverse of `patchify`."""
  cells = x.reshape(len(x), h // 2, w // 2, -1, 2, 2).permute(0, 3, 1, 4, 2, 5)
  return cells.reshape(len(x), -1, h, w)


def image_ids(h: int, w: int) -> torch.Tensor:
  """(hw/4, 3): 0, row and column of each patch."""
  row, column = torch.meshgrid(torch.arange(h // 2), torch.arange(w // 2), indexing="ij")
  return torch.stack([torch.zeros_like(row), row, column], -1).reshape(-1, 3).float()


# The autoencoder ---------------------------------------------------------------------------------


class Autoencoder:
  """diffusers' autoencoder of a folder of its own, or of BFL's file.

  Attributes:
    scale, shift: of the latents that the transformer paints.
  """

  def __init__(self, found: Path | State, tiny: Mapping[str, Any]):
    if isinstance(found, Path):
      self.net = decoder.load(diffusers.AutoencoderKL, found)
      self.scale, self.shift = self.net.config.scaling_factor, self.net.config.shift_factor
      return
    levels = _count({n.removeprefix("encoder."): v for n, v in found.items()}, "down")
    widths = [found[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)]
    depth = sum(bool(re.fullmatch(r"encoder\.down\.0\.block\.\d+\.conv1\.bias", n)) for n in found)
    self.scale = tiny.get("scaling_factor", 0.3611)
    self.shift = tiny.get("shift_factor", 0.1159)
    with torch.device("meta"):
      self.net = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(widths),
        layers_per_block=depth,
        latent_channels=found["decoder.conv_in.weight"].shape[1],
        norm_num_groups=tiny.get("norm_groups", 32),
        use_quant_conv=False,
        use_post_quant_conv=False,
      )
    state = {_pixels(name, levels): _linear(name, value) for name, value in found.items()}
    self.net.load_state_dict(state, assign=True)
    self.net.eval().requires_grad_(False)

  def moments(self, images: torch.Tensor) -> torch.Tensor:
    """Mean, then log-variance, (B, 2C, h, w), of images in [-1, 1]."""
    return self.net.encode(images).latent_dist.parameters

  def latents(self, images: torch.Tensor) -> torch.Tensor:
    """The latents that the transformer paints, without sampling."""
    mean, _ = self.moments(images).chunk(2, 1)
    return (mean - self.shift) * self.scale

  def decode(self, latents: torch.Tensor) -> torch.Tensor:
    """Images, about [-1, 1], of such latents."""
    return self.net.decode(latents / self.scale + self.shift, return_dict=False)[0]


def _pixels(name: str, levels: int) -> str:
  """A name of BFL's file in diffusers' words; the decoder's levels are counted from the pixels."""
  changes = {
    r"\.down\.(\d+)\.block\.": r".down_blocks.\1.resnets.",
    r"\.down\.(\d+)\.downsample\.": r".down_blocks.\1.downsamplers.0.",
    r"\.mid\.block_1\.": ".mid_block.resnets.0.",
    r"\.mid\.block_2\.": ".mid_block.resnets.1.",
    r"\.mid\.attn_1\.norm\.": ".mid_block.attentions.0.group_norm.",
    r"\.mid\.attn_1\.([qkv])\.": r".mid_block.attentions.0.to_\1.",
    r"\.mid\.attn_1\.proj_out\.": ".mid_block.attentions.0.to_out.0.",
    r"\.nin_shortcut\.": ".conv_shortcut.",
    r"\.norm_out\.": ".conv_norm_out.",
  }

  def up(found: re.Match[str]) -> str:
    part = "resnets" if found[2] == "block" else "upsamplers.0"
    return f".up_blocks.{levels - 1 - int(found[1])}.{part}."

  name = re.sub(r"\.up\.(\d+)\.(block|upsample)\.", up, name)
  for old, new in changes.items():
    name = re.sub(old, new, name)
  return name


def _linear(name: str, value: torch.Tensor) -> torch.Tensor:
  """The 1x1 convolutions of the attention are linear layers in diffusers."""
  return value[..., 0, 0] if ".attn_1." in name and value.ndim == 4 else value
