"""Rows of the language model (spec 1.4), relative to the prefix of the inner model."""

from collections.abc import Iterable

from blip3o_jax.weights.table import Row
from blip3o_jax.weights.table import linear
from blip3o_jax.weights.table import norm
from blip3o_jax.weights.table import row

# As released, and as transformers >= 4.52 names it.
PREFIXES = ("model.", "model.language_model.")


def prefix(names: Iterable[str]) -> str:
  """The one of `PREFIXES` under which tensor `names` hold the language model.

  Raises:
    ValueError: none of them.
  """
  present = set(names)
  for candidate in PREFIXES:
    if f"{candidate}embed_tokens.weight" in present:
      return candidate
  raise ValueError(f"no embed_tokens.weight under any of {', '.join(PREFIXES)}")


def rows() -> list[Row]:
  """Everything but the head; names after `prefix`, paths relative to `DecoderLM`."""
  layer, attn, mlp = "layers.{}.", "layers.{}.self_attn.", "layers.{}.mlp."
  out = [row("embed_tokens.weight", "embed_tokens/embedding")]
  for name in ("input_layernorm", "post_attention_layernorm"):
    out += norm(layer + name, f"layers/{name}", bias=False)
  for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
    out += linear(attn + name, f"layers/self_attn/{name}", bias=name != "o_proj")
  for name in ("gate_proj", "up_proj", "down_proj"):
    out += linear(mlp + name, f"layers/mlp/{name}", bias=False)
  return [*out, *norm("norm", "norm", bias=False)]


def head_rows() -> list[Row]:
  """The untied head; its name stands outside every prefix. A tied model has no such parameter."""
  return linear("lm_head", "lm_head", bias=False)
