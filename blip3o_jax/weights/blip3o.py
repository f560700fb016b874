"""The names of a whole BLIP3-o checkpoint (spec 1.4, 2.3, 3.7), put together from its networks.

Rows only. `Row.name` prefixes are those of the release; paths are those of `systems.blip3o.Blip3o`.
"""

from collections.abc import Iterable

from blip3o_jax.weights import decoder_lm
from blip3o_jax.weights import eva_vit
from blip3o_jax.weights import next_dit
from blip3o_jax.weights import qwen_vision
from blip3o_jax.weights import table

TOWER = "model.gen_vision_tower.vision_tower.model."
# A FLUX autoencoder left over from an earlier design; nothing reads it (spec 3.8).
LEFTOVERS = (r"model\.vae\..*",)


def rows(names: Iterable[str] = ()) -> list[table.Row]:
  """Every row of the system; a reader keeps those whose parameters it wants.

  Args:
    names: of the tensors at hand, which tell the older from the newer transformers prefix;
      without them the release's.
  """
  newer = any(n.startswith(decoder_lm.PREFIXES[1]) for n in names)
  text, visual = decoder_lm.PREFIXES[newer], qwen_vision.PREFIXES[newer]
  return [
    *table.prefixed(decoder_lm.rows(), text, "backbone/"),
    *table.prefixed(decoder_lm.head_rows(), "", "backbone/"),
    *table.prefixed(qwen_vision.rows(), visual, "visual/"),
    table.row("model.latent_queries", "slots/embedding"),
    *table.prefixed(next_dit.rows(), "model.dit.model.", "denoiser/"),
    *table.prefixed(eva_vit.rows(), TOWER, "encoder/tower/"),
    *ours(),
  ]


def ours() -> list[table.Row]:
  """Rows of the options that the release has not; a released checkpoint holds none of them."""
  return [
    table.row("model.gen_feature_whiten.mean", "encoder/whiten/mean"),
    table.row("model.gen_feature_whiten.weight", "encoder/whiten/kernel", perm=table.LINEAR),
    *table.linear("model.down_projector.linear_1", "projector/linear_1"),
    *table.linear("model.down_projector.linear_2", "projector/linear_2"),
    *table.linear("model.regressor", "regressor"),
  ]
