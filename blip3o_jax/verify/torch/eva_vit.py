"""The EVA-CLIP tower in PyTorch (spec 2): attributes are named as the keys of the checkpoint."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

HEAD_WIDTH = 112  # of the release
NORM_EPS = 1e-6


class Attention(nn.Module):
  """Full attention of fused q, k, v, each with a bias."""

  def __init__(self, width: int, heads: int):
    super().__init__()
    self.qkv = nn.Linear(width, 3 * width)
    self.proj = nn.Linear(width, width)
    self.heads = heads

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    batch, count, width = x.shape
    fused = self.qkv(x).view(batch, count, 3, self.heads, width // self.heads)
    q, k, v = fused.permute(2, 0, 3, 1, 4).unbind(0)
    weights = torch.softmax(q @ k.mT * (width // self.heads) ** -0.5, -1)
    return self.proj((weights @ v).transpose(1, 2).reshape(batch, count, width))


class Mlp(nn.Module):
  """Two layers with the exact GELU between them."""

  def __init__(self, width: int, inner: int):
    super().__init__()
    self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
  """Each sub-layer's output is normalised and then added."""

  def __init__(self, width: int, heads: int, inner: int):
    super().__init__()
    self.attn, self.mlp = Attention(width, heads), Mlp(width, inner)
    self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
    self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    x = x + self.norm1(self.attn(x))
    return x + self.norm2(self.mlp(x))


class PatchEmbed(nn.Module):
  """The strided convolution that cuts an image into patches."""

  def __init__(self, width: int, patch: int):
    super().__init__()
    self.proj = nn.Conv2d(3, width, patch, stride=patch)

  def forward(self, images: torch.Tensor) -> torch.Tensor:
    return self.proj(images).flatten(2).mT


class EvaVit(nn.Module):
  """float (B, 3, H, W) -> patch features (B, P, C) of the last block, class token left out."""

  def __init__(self, width: int, depth: int, heads: int, inner: int, patch: int, tokens: int):
    super().__init__()
    self.patch_embed = PatchEmbed(width, patch)
    self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
    self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))
    self.blocks = nn.ModuleList(Block(width, heads, inner) for _ in range(depth))
    self.image_size = patch * round((tokens - 1) ** 0.5)

  def forward(self, images: torch.Tensor) -> torch.Tensor:
    patches = self.patch_embed(images)
    x = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], 1) + self.pos_embed
    for block in self.blocks:
      x = block(x)
    return x[:, 1:]


def build(state: dict[str, torch.Tensor], tiny: dict[str, Any]) -> EvaVit:
  """The tower of a state; all sizes but the head's width are in the shapes.

  Raises:
    KeyError, RuntimeError: tensors that are missing, unexpected or of another shape.
  """
  width = state["cls_token"].shape[-1]
  head = tiny.get("eva", {}).get("head_width", HEAD_WIDTH)
  depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
  with torch.device("meta"):
    tower = EvaVit(
      width=width,
      depth=depth,
      heads=width // head,
      inner=state["blocks.0.mlp.fc1.weight"].shape[0],
      patch=state["patch_embed.proj.weight"].shape[-1],
      tokens=state["pos_embed"].shape[1],
    )
  tower.load_state_dict(state, assign=True)
  return tower.eval().requires_grad_(False)


def pool(patches: torch.Tensor, stride: int) -> torch.Tensor:
  """(B, P, C) -> (B, C, h, w): means over squares of `stride` patches a side (spec 2.5)."""
  side = round(patches.shape[1] ** 0.5)
  return F.avg_pool2d(patches.mT.unflatten(2, (side, side)), stride)
