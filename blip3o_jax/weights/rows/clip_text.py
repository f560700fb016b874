"""Names for the text tower: our own, of contrastive training, and those of CLIP's text encoder."""

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


def released_rows() -> list[table.Row]:
  """The table of `models.clip_text` under the names of transformers' CLIPTextModel."""
  attn = {**{f"{n}_proj": f"{n}_proj" for n in "qkv"}, "out_proj": "o_proj"}
  block = [
    *table.norm("layer_norm1", "norm1", bias=True),
    *(r for n, ours in attn.items() for r in table.linear(f"self_attn.{n}", f"attn/{ours}")),
    *table.norm("layer_norm2", "norm2", bias=True),
    *table.linear("mlp.fc1", "mlp/fc1"),
    *table.linear("mlp.fc2", "mlp/fc2"),
  ]
  return [
    table.row("embeddings.token_embedding.weight", "embed_tokens/embedding"),
    table.row("embeddings.position_embedding.weight", "embed_positions/embedding"),
    *table.prefixed(block, "encoder.layers.{}.", "layers/"),
    *table.norm("final_layer_norm", "norm", bias=True),
  ]
