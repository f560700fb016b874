"""The names of the FLUX transformer, in three namings, relative to it (Nexus-Gen spec 8.3).

Rows only. The namings say the same of a block; they differ in what is one tensor, and in the order
of the final modulation's halves.
"""

from collections.abc import Collection
from typing import Literal

from blip3o_jax.weights.table import Row
from blip3o_jax.weights.table import linear
from blip3o_jax.weights.table import norm
from blip3o_jax.weights.table import prefixed
from blip3o_jax.weights.table import row

# Of DiffSynth, which the released decoders have; of diffusers; of Black Forest Labs' own files.
Naming = Literal["diffsynth", "diffusers", "bfl"]
Order = Literal["scale_shift", "shift_scale"]  # of the final modulation's halves

# A tensor that only this naming has.
_TELLING: dict[str, Naming] = {
  "final_norm_out.linear.weight": "diffsynth",
  "norm_out.linear.weight": "diffusers",
  "final_layer.adaLN_modulation.1.weight": "bfl",
}
ORDERS: dict[Naming, Order] = {
  "diffsynth": "scale_shift",
  "diffusers": "scale_shift",
  "bfl": "shift_scale",
}
_QKV = ("to_q", "to_k", "to_v")


def naming(names: Collection[str]) -> Naming:
  """Which of the namings these tensors have, relative to the transformer.

  Raises:
    ValueError: none of them, or more than one.
  """
  found = [which for name, which in _TELLING.items() if name in names]
  if len(found) != 1:
    raise ValueError(
      f"the tensors of a FLUX transformer: expected one of {', '.join(_TELLING)}, found "
      f"{' and '.join(found) or f'none among {len(names)} names'}; give the prefix before its names"
    )
  return found[0]


def rows(which: Naming, *, guidance: bool = True, final: Order | None = None) -> list[Row]:
  """The table of `models.flux`.

  Args:
    which: the naming. guidance: as in `models.flux.Config`.
    final: the order of the halves of `final_norm_out` in a DiffSynth file, which nothing in it
      tells. None: scale before shift, as in the released decoders (and in every diffusers file);
      "shift_scale" for what newer DiffSynth versions converted. BFL has shift before scale.

  Raises:
    ValueError: another order than a naming can have.
  """
  order = final or ORDERS[which]
  if which != "diffsynth" and order != ORDERS[which]:
    raise ValueError(f"final {order!r}: files of {which!r} names have {ORDERS[which]!r}")
  make = {"diffsynth": _diffsynth, "diffusers": _diffusers, "bfl": _bfl}[which]
  halves = [f"norm_out/{half}" for half in order.split("_")]
  out = make(halves)
  return [r for r in out if guidance or not r.paths[0].startswith("guidance_embedder/")]


def _diffsynth(halves: list[str]) -> list[Row]:
  out = [*linear("x_embedder", "x_embedder"), *linear("context_embedder", "context_embedder")]
  for name, path in (
    ("time_embedder.timestep_embedder", "time_embedder"),
    ("guidance_embedder.timestep_embedder", "guidance_embedder"),
    ("pooled_text_embedder", "pooled_embedder"),
  ):
    out += linear(f"{name}.0", f"{path}/linear_1") + linear(f"{name}.2", f"{path}/linear_2")
  for s, stream in (("a", "image"), ("b", "context")):
    part = linear(f"norm1_{s}.linear", "modulation")
    part += linear(f"attn.{s}_to_qkv", *_attn()) + linear(f"attn.{s}_to_out", "to_out")
    part += norm(f"attn.norm_q_{s}", "attn/norm_q", bias=False)
    part += norm(f"attn.norm_k_{s}", "attn/norm_k", bias=False)
    part += linear(f"ff_{s}.0", "linear_1") + linear(f"ff_{s}.2", "linear_2")
    out += prefixed(part, "blocks.{}.", f"double/{stream}/")
  part = linear("norm.linear", "modulation") + linear("to_qkv_mlp", *_attn(), "linear_1")
  part += norm("norm_q_a", "attn/norm_q", bias=False) + norm("norm_k_a", "attn/norm_k", bias=False)
  out += prefixed(part + linear("proj_out", "linear_2"), "single_blocks.{}.", "single/")
  return [
    *out,
    *linear("final_norm_out.linear", *halves),
    *linear("final_proj_out", "norm_out/linear"),
  ]


def _diffusers(halves: list[str]) -> list[Row]:
  out = [*linear("x_embedder", "x_embedder"), *linear("context_embedder", "context_embedder")]
  for name, path in (
    ("timestep_embedder", "time_embedder"),
    ("guidance_embedder", "guidance_embedder"),
    ("text_embedder", "pooled_embedder"),
  ):
    for i in ("linear_1", "linear_2"):
      out += linear(f"time_text_embed.{name}.{i}", f"{path}/{i}")
  for stream, to, added, end, other in (
    ("image", "to_{}", "norm_{}", "to_out.0", ""),
    ("context", "add_{}_proj", "norm_added_{}", "to_add_out", "_context"),
  ):
    part = linear(f"norm1{other}.linear", "modulation")
    for x in "qkv":
      part += linear(f"attn.{to.format(x)}", f"attn/to_{x}")
    for x in "qk":
      part += norm(f"attn.{added.format(x)}", f"attn/norm_{x}", bias=False)
    part += linear(f"attn.{end}", "to_out")
    part += linear(f"ff{other}.net.0.proj", "linear_1") + linear(f"ff{other}.net.2", "linear_2")
    out += prefixed(part, "transformer_blocks.{}.", f"double/{stream}/")
  part = linear("norm.linear", "modulation")
  for x in "qkv":
    part += linear(f"attn.to_{x}", f"attn/to_{x}")
  for x in "qk":
    part += norm(f"attn.norm_{x}", f"attn/norm_{x}", bias=False)
  part += linear("proj_mlp", "linear_1") + linear("proj_out", "linear_2")
  out += prefixed(part, "single_transformer_blocks.{}.", "single/")
  return [*out, *linear("norm_out.linear", *halves), *linear("proj_out", "norm_out/linear")]


def _bfl(halves: list[str]) -> list[Row]:
  out = [*linear("img_in", "x_embedder"), *linear("txt_in", "context_embedder")]
  for name, path in (
    ("time_in", "time_embedder"),
    ("guidance_in", "guidance_embedder"),
    ("vector_in", "pooled_embedder"),
  ):
    out += linear(f"{name}.in_layer", f"{path}/linear_1")
    out += linear(f"{name}.out_layer", f"{path}/linear_2")
  for s, stream in (("img", "image"), ("txt", "context")):
    part = linear(f"{s}_mod.lin", "modulation")
    part += linear(f"{s}_attn.qkv", *_attn()) + linear(f"{s}_attn.proj", "to_out")
    part += _bfl_norms(f"{s}_attn.")
    part += linear(f"{s}_mlp.0", "linear_1") + linear(f"{s}_mlp.2", "linear_2")
    out += prefixed(part, "double_blocks.{}.", f"double/{stream}/")
  part = linear("modulation.lin", "modulation") + linear("linear1", *_attn(), "linear_1")
  part += _bfl_norms("") + linear("linear2", "linear_2")
  out += prefixed(part, "single_blocks.{}.", "single/")
  return [
    *out,
    *linear("final_layer.adaLN_modulation.1", *halves),
    *linear("final_layer.linear", "norm_out/linear"),
  ]


def _attn() -> list[str]:
  return [f"attn/{name}" for name in _QKV]


def _bfl_norms(prefix: str) -> list[Row]:
  return [
    row(f"{prefix}norm.{name}_norm.scale", f"attn/norm_{name[0]}/scale")
    for name in ("query", "key")
  ]
