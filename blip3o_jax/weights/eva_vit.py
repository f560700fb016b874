"""The names of the released EVA tower. Rows only; relative to the tower and to the module."""

from blip3o_jax.weights import table


def rows() -> list[table.Row]:
  """The table of `models.eva_vit` (spec 2.3); the fused qkv splits into three by rows."""
  attn = [f"attn/{n}_proj" for n in "qkv"]
  block = [
    *table.linear("attn.qkv", *attn),
    *table.linear("attn.proj", "attn/proj"),
    *table.norm("norm1", "norm1", bias=True),
    *table.linear("mlp.fc1", "mlp/fc1"),
    *table.linear("mlp.fc2", "mlp/fc2"),
    *table.norm("norm2", "norm2", bias=True),
  ]
  return [
    table.row("cls_token", "cls_token"),
    table.row("pos_embed", "pos_embed"),
    *table.conv("patch_embed.proj", "patch_embed"),
    *table.prefixed(block, "blocks.{}.", "blocks/"),
  ]
