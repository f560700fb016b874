"""Rows of the Qwen vision tower (spec 1.4), relative to its prefix."""

from collections.abc import Iterable

from blip3o_jax.weights.table import Row
from blip3o_jax.weights.table import linear
from blip3o_jax.weights.table import norm
from blip3o_jax.weights.table import row

# As released, and as transformers >= 4.52 names it.
PREFIXES = ("visual.", "model.visual.")


def prefix(names: Iterable[str]) -> str:
  """The one of `PREFIXES` under which tensor `names` hold the tower.

  Raises:
    ValueError: none of them.
  """
  present = set(names)
  for candidate in PREFIXES:
    if f"{candidate}patch_embed.proj.weight" in present:
      return candidate
  raise ValueError(f"no patch_embed.proj.weight under any of {', '.join(PREFIXES)}")


def rows() -> list[Row]:
  """The whole tower; names after `prefix`, paths relative to `QwenVision`."""
  block = "blocks.{}."
  qkv = ("blocks/attn/q_proj", "blocks/attn/k_proj", "blocks/attn/v_proj")
  # (out, channel, frame, row, column) with the output last.
  out = [row("patch_embed.proj.weight", "patch_embed/kernel", perm=(1, 2, 3, 4, 0))]
  out += norm(f"{block}norm1", "blocks/norm1", bias=False)
  out += norm(f"{block}norm2", "blocks/norm2", bias=False)
  out += linear(f"{block}attn.qkv", *qkv)
  out += linear(f"{block}attn.proj", "blocks/attn/proj")
  for name in ("gate_proj", "up_proj", "down_proj"):
    out += linear(f"{block}mlp.{name}", f"blocks/mlp/{name}")
  out += norm("merger.ln_q", "merger/ln_q", bias=False)
  out += linear("merger.mlp.0", "merger/mlp_0")
  return [*out, *linear("merger.mlp.2", "merger/mlp_2")]
