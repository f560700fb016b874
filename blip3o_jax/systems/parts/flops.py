"""Floating-point operations of networks that systems share (spec 11); a multiply-add is two.

Each function counts one sample's forward pass: its matmuls, convolutions and attention, and nothing
that costs a share of a percent beside them.
"""

from blip3o_jax.models import autoencoder
from blip3o_jax.models import clip_text
from blip3o_jax.models import decoder_lm
from blip3o_jax.models import eva_vit
from blip3o_jax.models import qwen_vision
from blip3o_jax.models import unet


def eva(cfg: eva_vit.Config) -> float:
  """The tower on one picture."""
  patches = cfg.grid**2
  tokens = patches + 1
  blocks = cfg.depth * (4 * cfg.dim**2 + 2 * cfg.dim * cfg.mlp_dim)
  embedding = 2 * patches * 3 * cfg.patch_size**2 * cfg.dim
  return 2 * tokens * blocks + cfg.depth * 4 * tokens**2 * cfg.dim + embedding


def qwen(cfg: qwen_vision.Config, patches: int) -> float:
  """The understanding tower on one picture of so many patches."""
  blocks = 2 * patches * cfg.depth * (4 * cfg.dim**2 + 3 * cfg.dim * cfg.mlp_dim)
  window = min(patches, (cfg.window_size // cfg.patch_size) ** 2)
  whole = len(cfg.full_layers)
  seen = whole * patches + (cfg.depth - whole) * window
  wide = cfg.dim * cfg.merge**2
  merger = 2 * (patches // cfg.merge**2) * (wide**2 + wide * cfg.out_dim)
  return blocks + 4 * patches * seen * cfg.dim + merger + 2 * patches * cfg.patch_dim * cfg.dim


def text(cfg: clip_text.Config, length: int) -> float:
  """The text tower on one text of so many positions."""
  weights = 4 * cfg.dim**2 + 2 * cfg.dim * cfg.mlp_dim
  pairs = length**2 / (2 if cfg.causal else 1)
  return cfg.depth * (2 * length * weights + 4 * pairs * cfg.dim)


def decoder(cfg: decoder_lm.Config, tokens: int, before: int = 0) -> float:
  """The causal language model on `tokens` positions that see `before` earlier ones; no head."""
  weights = 2 * cfg.dim * (cfg.heads + cfg.kv_heads) * cfg.head_dim + 3 * cfg.dim * cfg.mlp_dim
  pairs = tokens * before + tokens**2 / 2
  return cfg.depth * (2 * tokens * weights + 4 * pairs * cfg.heads * cfg.head_dim)


def head(cfg: decoder_lm.Config, tokens: int) -> float:
  """Logits of `tokens` hidden vectors."""
  return 2 * tokens * cfg.dim * cfg.vocab_size


def read_slots(cfg: decoder_lm.Config, prompt: int, slots: int, backward: int, full: bool) -> float:
  """Forward and backward passes of slots after a prompt.

  Args:
    prompt, slots: positions. backward: what the backward pass costs beside the forward one: 1
      through frozen weights, 2 with their gradients. full: the prompt has a backward pass too.
  """
  if full:
    return (1 + backward) * decoder(cfg, prompt + slots)
  return decoder(cfg, prompt) + (1 + backward) * decoder(cfg, slots, prompt)


def encode(cfg: autoencoder.Config, side: int) -> float:
  """The autoencoder's encoder on a picture of `side` x `side` pixels."""
  side //= cfg.patch_size
  width = cfg.channels[0]
  total = _conv(side, cfg.image_channels * cfg.patch_size**2, width)
  for level, wide in enumerate(cfg.channels):
    for _ in range(cfg.depth):
      total += _resnet(side, width, wide)
      width = wide
    if level < len(cfg.channels) - 1:
      side //= 2
      total += _conv(side, width, width)
  total += 2 * _resnet(side, width, width) + _conv(side, width, 2 * cfg.latent_channels)
  if cfg.mid_attention:
    total += 4 * _conv(side, width, width, 1) + 4 * side**4 * width
  if cfg.quant_conv:
    total += _conv(side, 2 * cfg.latent_channels, 2 * cfg.latent_channels, 1)
  return total


def decode(cfg: autoencoder.Config, side: int) -> float:
  """The autoencoder's decoder of a picture of `side` x `side` pixels."""
  side //= cfg.factor
  width = cfg.channels[-1]
  total = _conv(side, cfg.latent_channels, width) + 2 * _resnet(side, width, width)
  if cfg.mid_attention:
    total += 4 * _conv(side, width, width, 1) + 4 * side**4 * width
  if cfg.post_quant_conv:
    total += _conv(side, cfg.latent_channels, cfg.latent_channels, 1)
  for level, wide in enumerate(reversed(cfg.channels)):
    for _ in range(cfg.depth + 1):
      total += _resnet(side, width, wide)
      width = wide
    if level < len(cfg.channels) - 1:
      side *= 2
      total += _conv(side, width, width)
  return total + _conv(side, width, cfg.image_channels * cfg.patch_size**2)


def paint_condition(cfg: unet.Config, tokens: int) -> float:
  """What the UNet makes of `tokens` vectors, once for all times: keys and values of each block."""
  wide = [(depth, width) for depth, width, count in _levels(cfg) for _ in range(count)]
  return sum(2 * tokens * depth * 2 * cfg.context_dim * width for depth, width in wide)


def paint(cfg: unet.Config, side: int, tokens: int) -> float:
  """One call of the UNet on `side` x `side` cells, with the keys and values of `tokens` vectors."""
  c, last = cfg.channels, len(cfg.channels) - 1
  total = _conv(side, cfg.in_channels, c[0]) + _conv(side, c[0], cfg.out_channels)
  total += 2 * (c[0] + cfg.time_dim) * cfg.time_dim
  if cfg.time_ids_dim:
    pooled = cfg.context_dim + unet.TIME_IDS * cfg.time_ids_dim
    total += 2 * (pooled + cfg.time_dim) * cfg.time_dim
  width = c[0]
  for level, wide in enumerate(c):
    cells = side // 2**level
    for _ in range(cfg.resnets):
      total += _resnet(cells, width, wide, cfg.time_dim)
      total += _blocks(cfg.depths[level], wide, cells, tokens)
      width = wide
    if level < last:
      total += _conv(cells // 2, wide, wide)
  total += 2 * _resnet(side // 2**last, width, width, cfg.time_dim)
  total += _blocks(cfg.mid_depth, width, side // 2**last, tokens)
  for level in reversed(range(len(c))):
    cells, wide = side // 2**level, c[level]
    skips = [wide] * cfg.resnets + [c[max(level - 1, 0)]]
    for skip in skips:
      total += _resnet(cells, width + skip, wide, cfg.time_dim)
      total += _blocks(cfg.depths[level], wide, cells, tokens)
      width = wide
    if level:
      total += _conv(2 * cells, wide, wide)
  return total


def _levels(cfg: unet.Config) -> list[tuple[int, int, int]]:
  """(transformer blocks, width, how many such transformers) of the UNet's levels and middle."""
  both = 2 * cfg.resnets + 1  # on the way down and up
  levels = zip(cfg.depths, cfg.channels, strict=True)
  return [(cfg.mid_depth, cfg.channels[-1], 1), *((d, w, both) for d, w in levels)]


def _blocks(depth: int, dim: int, side: int, tokens: int) -> float:
  """A transformer of `depth` blocks over `side` x `side` cells; none costs nothing."""
  if not depth:
    return 0
  cells = side**2
  weights = 4 * dim**2 + 2 * dim**2 + 12 * dim**2  # self, cross without keys and values, gated MLP
  each = 2 * cells * weights + 4 * cells * (cells + tokens) * dim
  return depth * each + 4 * cells * dim**2


def _resnet(side: int, d_in: int, d_out: int, d_time: int = 0) -> float:
  total = _conv(side, d_in, d_out) + _conv(side, d_out, d_out) + 2 * d_time * d_out
  return total + (_conv(side, d_in, d_out, 1) if d_in != d_out else 0)


def _conv(side: int, d_in: int, d_out: int, size: int = 3) -> float:
  """A convolution whose output has `side` x `side` cells."""
  return 2 * side**2 * size**2 * d_in * d_out
