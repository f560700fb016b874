"""The names of the released EVA tower. Rows only; relative to the tower and to the module."""

from collections.abc import Iterable

from blip3o_jax.weights import table


def rows(names: Iterable[str] = ()) -> list[table.Row]:
  """The table of `models.eva_vit` (spec 2.3); the fused qkv splits into three by rows.

  Args:
    names: of the tensors at hand, which tell the release's fused bias from the two biases of the
      original EVA and Emu2 files, whose keys have none (spec 2.2); without them the release's.
  """
  attn = [f"attn/{n}_proj" for n in "qkv"]
  bias = [table.row("attn.qkv.bias", *(f"{path}/bias" for path in attn))]
  if any(name.endswith("blocks.0.attn.q_bias") for name in names):
    bias = [
      table.row("attn.q_bias", "attn/q_proj/bias"),
      table.Row("attn.k_bias", ("attn/k_proj/bias",), zero=True),
      table.row("attn.v_bias", "attn/v_proj/bias"),
    ]
  block = [
    *table.linear("attn.qkv", *attn, bias=False),
    *bias,
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
