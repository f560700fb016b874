"""The names of a whole BLIP3-o checkpoint (spec 1.4, 2.3, 3.7), put together from its networks.

`Row.name` prefixes are those of the release; paths are those of `systems.blip3o.Blip3o`.
"""

from collections.abc import Iterable
from pathlib import Path

from blip3o_jax.systems.parts import decoder_files
from blip3o_jax.systems.parts import features_files
from blip3o_jax.weights import table
from blip3o_jax.weights.rows import decoder_lm
from blip3o_jax.weights.rows import next_dit
from blip3o_jax.weights.rows import qwen_vision


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
    *features_files.rows(features_files.INSIDE, names),
    *ours(),
  ]


def ours() -> list[table.Row]:
  """Rows of options of generation that the release has not; its checkpoints hold none of them."""
  return [
    *table.linear("model.down_projector.linear_1", "projector/linear_1"),
    *table.linear("model.down_projector.linear_2", "projector/linear_2"),
    *table.linear("model.regressor", "regressor"),
  ]


def rows_of(kind: str, names: Iterable[str], home: Path) -> list[table.Row]:
  """The table of a part of a directory; see `systems.System.rows_of`."""
  if kind == features_files.INSIDE:
    return rows(names)
  if kind == features_files.ALONE:
    return features_files.rows(kind, names)
  return decoder_files.rows_of(kind, list(names), home)
