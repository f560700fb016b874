"""Rows of T5's encoder: names of transformers' T5EncoderModel."""

from blip3o_jax.weights import table

# The token table once more, where a file holds it twice.
TIES = {"encoder.embed_tokens.weight": "shared.weight"}


def rows() -> list[table.Row]:
  """The table of `models.t5_encoder`; the table of distances is stored with the first layer."""
  attention, mlp = "layer.0.SelfAttention", "layer.1.DenseReluDense"
  block = [
    *table.norm("layer.0.layer_norm", "norm1", bias=False),
    *(r for n in "qkvo" for r in table.linear(f"{attention}.{n}", f"attention/{n}", bias=False)),
    *table.norm("layer.1.layer_norm", "norm2", bias=False),
    *(
      r for n in ("wi_0", "wi_1", "wo") for r in table.linear(f"{mlp}.{n}", f"mlp/{n}", bias=False)
    ),
  ]
  distances = f"encoder.block.0.{attention}.relative_attention_bias.weight"
  return [
    table.row("shared.weight", "embedding"),
    table.row(distances, "distances"),
    *table.prefixed(block, "encoder.block.{}.", "layers/"),
    *table.norm("encoder.final_layer_norm", "norm", bias=False),
  ]
