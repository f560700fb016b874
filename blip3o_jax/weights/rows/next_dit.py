"""The names of the released DiT. Rows only; relative to `model.dit.model.` and to the module."""

from blip3o_jax.weights import table


def rows() -> list[table.Row]:
  """The table of `models.next_dit` (spec 3.7)."""
  time, caption = "time_caption_embed.timestep_embedder", "time_caption_embed.caption_embedder"
  return [
    *_linears("patch_embedder.proj", "caption_projection.linear_1", "caption_projection.linear_2"),
    *_linears(f"{time}.linear_1", f"{time}.linear_2"),
    *table.norm(f"{caption}.0", "time_caption_embed/caption_embedder/norm", bias=True),
    *table.linear(f"{caption}.1", "time_caption_embed/caption_embedder/linear"),
    *table.prefixed(_block(), "layers.{}.", "layers/"),
    *_linears("norm_out.linear_1", "norm_out.linear_2"),
  ]


def _linears(*names: str, bias: bool = True) -> list[table.Row]:
  """Linear layers whose path is their name."""
  return [r for n in names for r in table.linear(n, n.replace(".", "/"), bias=bias)]


def _block() -> list[table.Row]:
  out = [table.row("gate", "gate")]
  for attn in ("attn1", "attn2"):
    out += _linears(f"{attn}.to_q", f"{attn}.to_k", f"{attn}.to_v", bias=False)
    out += table.norm(f"{attn}.norm_q", f"{attn}/norm_q", bias=True)
    out += table.norm(f"{attn}.norm_k", f"{attn}/norm_k", bias=True)
  out += table.linear("attn2.to_out.0", "attn2/to_out", bias=False)
  out += _linears(*(f"feed_forward.linear_{i}" for i in (1, 2, 3)), bias=False)
  out += _linears("norm1.linear")
  out += table.norm("norm1.norm", "norm1/norm", bias=False)
  for name in ("norm1_context", "norm2", "ffn_norm1", "ffn_norm2"):
    out += table.norm(name, name, bias=False)
  return out
