"""The names of a whole BLIP3-o checkpoint (spec 1.4, 2.3, 3.7), put together from its networks.

`Row.name` prefixes are those of the release; paths are those of `systems.blip3o.Blip3o`.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from pathlib import Path

import jax

from blip3o_jax.weights import store
from blip3o_jax.weights import table
from blip3o_jax.weights.rows import decoder_lm
from blip3o_jax.weights.rows import eva_vit
from blip3o_jax.weights.rows import next_dit
from blip3o_jax.weights.rows import qwen_vision
from blip3o_jax.weights.safetensors import Tensors

TOWER = "model.gen_vision_tower.vision_tower.model."
# Tensors that may be in the files and are not read: a FLUX autoencoder left over from an earlier
# design (spec 3.8), and buffers that older versions of transformers saved (spec 12).
LEFTOVERS = (r"model\.vae\..*", r".*rotary_emb\.inv_freq")


def rows(names: Iterable[str] = ()) -> list[table.Row]:
  """Every row of the system; a reader keeps those whose parameters it wants.

  Args:
    names: of the tensors at hand, which tell the older from the newer transformers prefix;
      without them the release's.
  """
  names = list(names)
  newer = any(n.startswith(decoder_lm.PREFIXES[1]) for n in names)
  text, visual = decoder_lm.PREFIXES[newer], qwen_vision.PREFIXES[newer]
  return [
    *table.prefixed(decoder_lm.rows(), text, "backbone/"),
    *table.prefixed(decoder_lm.head_rows(), "", "backbone/"),
    *table.prefixed(qwen_vision.rows(), visual, "visual/"),
    table.row("model.latent_queries", "slots/embedding"),
    *table.prefixed(next_dit.rows(), "model.dit.model.", "denoiser/"),
    *table.prefixed(eva_vit.rows(names), TOWER, "encoder/tower/"),
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


def load(
  directory: str | Path, abstract: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
  """Reads parameters of the main files of a released-layout directory, or of a converted one.

  Args:
    abstract: {path: ShapeDtypeStruct} of what is wanted, whole modules.

  Returns:
    {path: array} of those modules that the directory holds.

  Raises:
    WeightsError: see `table.plan` and `store.load`.
  """
  if store.is_converted(directory):
    return store.load(directory, abstract)
  tensors = Tensors(directory)
  found, where = rows(tensors), str(directory)
  return table.read_parts(found, tensors, abstract, ignore=LEFTOVERS, where=where)
