"""The names of a Nexus-Gen checkpoint (Nexus-Gen spec 8), put together from its networks.

Paths are those of `systems.nexus_gen.model.NexusGen`.
"""

from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any
from typing import Literal

from blip3o_jax.weights import table
from blip3o_jax.weights.rows import decoder_lm
from blip3o_jax.weights.rows import flux
from blip3o_jax.weights.rows import qwen_vision

Module = Literal["generator", "editor"]
DIT = "pipe.dit."  # before the names of a decoder's transformer
# Before the names of what makes a decoder's context -> its path.
OWN: dict[Module, tuple[str, str]] = {
  "generator": ("adapter.", "adapter"),
  "editor": ("embedding_merger.", "merger"),
}


def language_rows(names: Iterable[str] = ()) -> list[table.Row]:
  """Rows of the language model's files: backbone, vision tower and the two additions (spec 8.1).

  Args:
    names: of the tensors at hand, which tell the older from the newer transformers prefix;
      without them the release's.
  """
  newer = any(n.startswith(decoder_lm.PREFIXES[1]) for n in names)
  return [
    *table.prefixed(decoder_lm.rows(), decoder_lm.PREFIXES[newer], "backbone/"),
    *table.prefixed(decoder_lm.head_rows(), "", "backbone/"),
    *table.prefixed(qwen_vision.rows(), qwen_vision.PREFIXES[newer], "visual/"),
    *table.linear("vision_head", "vision_head", bias=False),
    table.row("image_prefill_embeds.weight", "slots/embedding"),
  ]


def adapter_rows() -> list[table.Row]:
  """Rows of `decoders.Adapter`, relative to it (spec 8.2)."""
  return [
    *table.linear("0", "linear_in"),
    *table.norm("1", "norm_in", bias=True),
    *table.linear("3", "linear_out"),
    *table.norm("4", "norm_out", bias=True),
  ]


def merger_rows() -> list[table.Row]:
  """Rows of `decoders.Merger`, relative to it: layers as the language model's, and a projector."""
  return [
    *(r for r in decoder_lm.rows() if r.name.startswith("layers.")),
    *table.norm("projector.0", "norm_in", bias=False),
    *table.linear("projector.1", "linear_in"),
    *table.norm("projector.2", "norm_mid", bias=False),
    *table.linear("projector.4", "linear_out"),
    *table.norm("projector.5", "norm_out", bias=False),
  ]


def repeated(embedding: Any, image_token: int, slots: int) -> Any:
  """The prefill table [n, D] that V1 amounts to: the row of the slots' id, n times (spec 2.6).

  Args:
    embedding: [V, D], of the words.
  """
  return embedding[image_token : image_token + 1].repeat(slots, 0)


def decoder_rows(which: Module, names: Collection[str], guidance: bool = True) -> list[table.Row]:
  """Rows of a decoder's file, paths in full (spec 8.2).

  Args:
    which: of the two decoders. names: of the tensors at hand; V1's, of the generation decoder
      alone, have no prefixes (the release's without any). guidance: as in `models.flux.Config`.
  """
  bare = bool(names) and not any(name.startswith(DIT) for name in names)
  own = adapter_rows() if which == "generator" else merger_rows()
  mine, path = OWN[which]
  return [
    *table.prefixed(own, "" if bare else mine, f"{which}/{path}/"),
    *table.prefixed(
      flux.rows("diffsynth", guidance=guidance), "" if bare else DIT, f"{which}/dit/"
    ),
  ]


def transformer_rows(
  names: Collection[str], tiny: Mapping[str, Any], guidance: bool = True
) -> list[table.Row]:
  """Rows of a FLUX transformer, which either decoder can begin with; each tensor fills both.

  Args:
    names: of the tensors at hand, in any naming. tiny: the fields of tiny.json, which tell what
      `final_order` asks for. guidance: as in `models.flux.Config`.

  Raises:
    ValueError: see `final_order`.
  """
  naming = transformer_naming(names)
  found = flux.rows(naming, guidance=guidance, final=final_order(naming, tiny))
  return [r for which in OWN for r in table.prefixed(found, "", f"{which}/dit/")]


def transformer_naming(names: Collection[str]) -> flux.Naming:
  """The naming of a FLUX transformer's tensors; BFL's where they are none of it."""
  try:
    return flux.naming(names)
  except ValueError:
    return "bfl"


def final_order(naming: flux.Naming, tiny: Mapping[str, Any]) -> flux.Order | None:
  """The order of the halves of `final_norm_out`; None for a naming that has but one.

  Raises:
    ValueError: DiffSynth's naming, and no "dit" "final_norm_out" in tiny.json that tells it.
  """
  if naming != "diffsynth":
    return None
  order: flux.Order | None = tiny.get("dit", {}).get("final_norm_out")
  if order is None:
    raise ValueError(
      "a FLUX transformer in DiffSynth's names: its versions differ in which half of "
      "final_norm_out.linear comes first, and nothing in the file says which of them wrote it. "
      'Write tiny.json beside it: {"dit": {"final_norm_out": "scale_shift"}} for those of 2025, '
      'with which Nexus-Gen was trained, "shift_scale" for DiffSynth-Studio 2'
    )
  return order


def order_told(names: Collection[str], tiny: Mapping[str, Any]) -> str:
  """Says in which naming and order a FLUX transformer's file is read."""
  naming = transformer_naming(names)
  order = final_order(naming, tiny) or flux.ORDERS[naming]
  return f"a FLUX transformer in the names of {naming}, final modulation {order.replace('_', ', ')}"
