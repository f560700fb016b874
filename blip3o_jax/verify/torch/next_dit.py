"""The Lumina-Next DiT of BLIP3-o in PyTorch (spec 3): attributes are named as checkpoint keys.

Released form: patch 1, rotary positions of rows and columns, no masks.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

SINUSOID = 256
BLOCK_EPS, FINAL_EPS = 1e-5, 1e-6


class RMSNorm(nn.Module):
  """x / rms(x), times a weight."""

  def __init__(self, width: int):
    super().__init__()
    self.weight = nn.Parameter(torch.ones(width))

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + BLOCK_EPS)
    return (x.float() * scale).to(x.dtype) * self.weight


def rotation(side: int, head: int) -> torch.Tensor:
  """complex (P, head / 2): even pairs turn with the row, odd ones with the column (spec 3.4)."""
  frequencies = 10000.0 ** (-4 * torch.arange(head // 4, dtype=torch.float64) / head)
  place = torch.arange(side, dtype=torch.float64)
  row = place.repeat_interleave(side)[:, None] * frequencies
  column = place.repeat(side)[:, None] * frequencies
  angles = torch.stack([row, column], -1).flatten(1)
  return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)


def rotate(x: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
  """(B, heads, P, head): neighbouring channels as one complex number, turned."""
  pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
  return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)


class Attention(nn.Module):
  """Projections and norms of one attention; the block mixes two of them."""

  def __init__(self, dim: int, kv_dim: int, out: bool):
    super().__init__()
    self.to_q = nn.Linear(dim, dim, bias=False)
    self.to_k = nn.Linear(dim, kv_dim, bias=False)
    self.to_v = nn.Linear(dim, kv_dim, bias=False)
    self.norm_q = nn.LayerNorm(dim, eps=BLOCK_EPS)
    self.norm_k = nn.LayerNorm(kv_dim, eps=BLOCK_EPS)
    if out:
      self.to_out = nn.ModuleList([nn.Linear(dim, dim, bias=False)])

  def forward(
    self, x: torch.Tensor, context: torch.Tensor, turn: torch.Tensor, turn_keys: bool, heads: int
  ) -> torch.Tensor:
    """What x reads in the context: (B, heads, P, head)."""
    head = x.shape[-1] // heads
    q = self.norm_q(self.to_q(x)).unflatten(-1, (-1, head)).transpose(1, 2)
    k = self.norm_k(self.to_k(context)).unflatten(-1, (-1, head)).transpose(1, 2)
    v = self.to_v(context).unflatten(-1, (-1, head)).transpose(1, 2)
    q = rotate(q, turn)
    k = rotate(k, turn) if turn_keys else k
    share = heads // k.shape[1]
    k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
    return torch.softmax(q @ k.mT * head**-0.5, -1) @ v


class FeedForward(nn.Module):
  """silu(x W1) * (x W3), times W2."""

  def __init__(self, dim: int, inner: int):
    super().__init__()
    self.linear_1 = nn.Linear(dim, inner, bias=False)
    self.linear_2 = nn.Linear(inner, dim, bias=False)
    self.linear_3 = nn.Linear(dim, inner, bias=False)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return self.linear_2(F.silu(self.linear_1(x)) * self.linear_3(x))


class ModulatedNorm(nn.Module):
  """A norm, and the layer that makes two scales and two gates of the time and caption vector."""

  def __init__(self, dim: int, width: int):
    super().__init__()
    self.linear = nn.Linear(width, 4 * dim)
    self.norm = RMSNorm(dim)


class Block(nn.Module):
  """Self- and cross-attention side by side with one output projection, then the feed-forward."""

  def __init__(self, dim: int, kv_dim: int, heads: int, inner: int, width: int):
    super().__init__()
    self.gate = nn.Parameter(torch.zeros(heads))
    self.attn1 = Attention(dim, kv_dim, out=False)
    self.attn2 = Attention(dim, kv_dim, out=True)
    self.feed_forward = FeedForward(dim, inner)
    self.norm1 = ModulatedNorm(dim, width)
    self.norm1_context, self.norm2 = RMSNorm(dim), RMSNorm(dim)
    self.ffn_norm1, self.ffn_norm2 = RMSNorm(dim), RMSNorm(dim)

  def forward(
    self, x: torch.Tensor, c: torch.Tensor, temb: torch.Tensor, turn: torch.Tensor
  ) -> torch.Tensor:
    heads = len(self.gate)
    made = self.norm1.linear(F.silu(temb))[:, None]
    scale_msa, gate_msa, scale_mlp, gate_mlp = made.chunk(4, -1)
    n = self.norm1.norm(x) * (1 + scale_msa)
    own = self.attn1(n, n, turn, True, heads)
    across = self.attn2(n, self.norm1_context(c), turn, False, heads)
    mixed = own + torch.tanh(self.gate)[:, None, None] * across
    out = self.attn2.to_out[0](mixed.transpose(1, 2).flatten(2))
    x = x + torch.tanh(gate_msa) * self.norm2(out)
    m = self.ffn_norm1(x) * (1 + scale_mlp)
    return x + torch.tanh(gate_mlp) * self.ffn_norm2(self.feed_forward(m))


class TwoLinear(nn.Module):
  """linear_1, an activation of the caller's, linear_2."""

  def __init__(self, d_in: int, inner: int, d_out: int):
    super().__init__()
    self.linear_1, self.linear_2 = nn.Linear(d_in, inner), nn.Linear(inner, d_out)


class TimeCaptionEmbed(nn.Module):
  """The vector that modulates every block: of the time, and of the mean caption token."""

  def __init__(self, dim: int, width: int):
    super().__init__()
    self.timestep_embedder = TwoLinear(SINUSOID, width, width)
    self.caption_embedder = nn.Sequential(nn.LayerNorm(dim, eps=BLOCK_EPS), nn.Linear(dim, width))

  def forward(self, timesteps: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    half = SINUSOID // 2
    exponent = torch.arange(half, dtype=torch.float64) / half
    omega = (10000.0**-exponent).float()
    angles = timesteps.float()[:, None] * omega
    waves = torch.cat([angles.cos(), angles.sin()], -1).to(c.dtype)
    time = self.timestep_embedder
    tau = time.linear_2(F.silu(time.linear_1(waves)))
    return tau + self.caption_embedder(c.float().mean(1).to(c.dtype))


class PatchEmbedder(nn.Module):
  """One linear layer a cell."""

  def __init__(self, channels: int, dim: int):
    super().__init__()
    self.proj = nn.Linear(channels, dim)


class NextDiT(nn.Module):
  """x (B, C, h, h), timesteps (B,), z (B, Q, hidden) -> velocity (B, C, h, h)."""

  def __init__(self, state: dict[str, torch.Tensor]):
    super().__init__()
    dim, channels = state["patch_embedder.proj.weight"].shape
    first = "layers.0."
    heads = state[f"{first}gate"].shape[0]
    kv_dim = state[f"{first}attn1.to_k.weight"].shape[0]
    inner = state[f"{first}feed_forward.linear_1.weight"].shape[0]
    width = state["norm_out.linear_1.weight"].shape[1]
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("layers."))
    self.patch_embedder = PatchEmbedder(channels, dim)
    condition = state["caption_projection.linear_1.weight"].shape[1]
    self.caption_projection = TwoLinear(condition, dim, dim)
    self.time_caption_embed = TimeCaptionEmbed(dim, width)
    self.layers = nn.ModuleList(Block(dim, kv_dim, heads, inner, width) for _ in range(depth))
    self.norm_out = TwoLinear(width, dim, channels)  # apart: a scale, and the output
    self.channels, self.head = channels, dim // heads

  def forward(self, x: torch.Tensor, timesteps: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    side = x.shape[-1]
    tokens = self.patch_embedder.proj(x.flatten(2).mT)
    caption = self.caption_projection
    c = caption.linear_2(F.gelu(caption.linear_1(z), approximate="tanh"))
    temb = self.time_caption_embed(timesteps, c)
    turn = rotation(side, self.head)
    for block in self.layers:
      tokens = block(tokens, c, temb, turn)
    final = self.norm_out
    tokens = F.layer_norm(tokens, tokens.shape[-1:], eps=FINAL_EPS)
    tokens = tokens * (1 + final.linear_1(F.silu(temb))[:, None])
    return final.linear_2(tokens).mT.unflatten(2, (side, side))


def build(state: dict[str, torch.Tensor], tiny: dict[str, Any]) -> NextDiT:
  """The DiT of a state, whose shapes tell all sizes (the gate has one number a head).

  Raises:
    KeyError, RuntimeError: tensors that are missing, unexpected or of another shape.
    ValueError: a form that is not the released one.
  """
  sizes = tiny.get("dit", {})
  for name, only in (("patch_size", 1), ("rope", "2d")):
    if sizes.get(name, only) != only:
      raise ValueError(f"tiny.json: dit.{name} {sizes[name]!r}: only {only!r} can be recorded")
  with torch.device("meta"):
    dit = NextDiT(state)
  dit.load_state_dict(state, assign=True)
  return dit.eval().requires_grad_(False)
