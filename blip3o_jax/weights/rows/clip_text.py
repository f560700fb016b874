"""Names for the text tower of contrastive training. Rows only; the names are our own."""

from blip3o_jax.weights import table


def rows() -> list[table.Row]:
  """The table of `models.clip_text`."""
  block = [
    *table.norm("norm1", "norm1", bias=True),
    *(r for n in "qkvo" for r in table.linear(f"attn.{n}_proj", f"attn/{n}_proj")),
    *table.norm("norm2", "norm2", bias=True),
    *table.linear("mlp.fc1", "mlp/fc1"),
    *table.linear("mlp.fc2", "mlp/fc2"),
  ]
  return [
    table.row("embed_tokens.weight", "embed_tokens/embedding"),
    table.row("embed_positions.weight", "embed_positions/embedding"),
    *table.prefixed(block, "layers.{}.", "layers/"),
    *table.norm("norm", "norm", bias=True),
  ]
