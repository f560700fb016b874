"""FLUX's tables: the released manifest, three namings, the two orders of the final modulation."""

import json
import math
from pathlib import Path
from typing import Any

from flax import nnx
import numpy as np
import pytest
import tables

from blip3o_jax import layers
from blip3o_jax import trees
from blip3o_jax.models import flux
from blip3o_jax.weights import table
from blip3o_jax.weights.rows import flux as rows

MANIFESTS = Path(__file__).parents[2] / "data" / "manifests"
SMALL = flux.Config(
  dim=16,
  heads=1,
  axes=(4, 6, 6),
  double_depth=2,
  single_depth=3,
  context_dim=12,
  pooled_dim=10,
  in_channels=8,
  mlp_ratio=3,
)
NAMINGS: tuple[rows.Naming, ...] = ("diffsynth", "diffusers", "bfl")


def leaves(cfg: flux.Config) -> dict[str, Any]:
  model = layers.abstract(lambda rngs: flux.Flux(cfg, rngs=rngs))
  return trees.flatten(nnx.to_pure_dict(nnx.state(model)))


@pytest.fixture(scope="module")
def params() -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)
  return {p: rng.normal(size=a.shape).astype(np.float32) for p, a in leaves(SMALL).items()}


def exported(params: dict[str, np.ndarray], which: rows.Naming, **other: Any) -> dict[str, Any]:
  return dict(table.export(rows.rows(which, **other), params))


def read(tensors: dict[str, Any], found: list[table.Row]) -> dict[str, Any]:
  shapes = {n: v.shape for n, v in tensors.items()}
  wanted = leaves(SMALL)
  plan = table.plan(found, shapes, {p: v.shape for p, v in wanted.items()})
  return tables.filled(plan, lambda name, index: tensors[name][index], wanted)


@pytest.mark.parametrize("name", ["nexus_gen_generation_decoder", "nexus_gen_edit_decoder"])
def test_released_manifest(name: str) -> None:
  """Every tensor of the released transformers, by name and shape; and their count (spec 1)."""
  manifest = json.loads((MANIFESTS / f"{name}.json").read_text())
  prefix = "pipe.dit."
  held = {n.removeprefix(prefix): tuple(s) for n, s in manifest.items() if n.startswith(prefix)}
  params = {p: v.shape for p, v in leaves(flux.VARIANTS["flux_1_dev"]).items()}
  table.plan(rows.rows(rows.naming(held)), held, params, where=name)
  for counted in (held, params):
    assert sum(math.prod(shape) for shape in counted.values()) == 11_901_408_320


@pytest.mark.parametrize("which", NAMINGS)
def test_round_trip(params: dict[str, np.ndarray], which: rows.Naming) -> None:
  tensors = exported(params, which)
  assert rows.naming(tensors) == which
  back = read(tensors, rows.rows(which))
  for path, value in params.items():
    np.testing.assert_array_equal(back[path], value, err_msg=path)


def test_fused_tensors_by_hand(params: dict[str, np.ndarray]) -> None:
  """Rows q, k, v and then the MLP's, which are of another number (spec 8.3)."""
  parts = [f"single/{n}/kernel" for n in ("attn/to_q", "attn/to_k", "attn/to_v", "linear_1")]
  fused = np.concatenate([params[p][1].T for p in parts])
  assert fused.shape == (16 * 3 + 48, 16)
  np.testing.assert_array_equal(
    exported(params, "diffsynth")["single_blocks.1.to_qkv_mlp.weight"], fused
  )
  np.testing.assert_array_equal(exported(params, "bfl")["single_blocks.1.linear1.weight"], fused)


def test_the_order_of_the_final_modulation(params: dict[str, np.ndarray]) -> None:
  scale, shift = (params[f"norm_out/{half}/bias"] for half in ("scale", "shift"))
  names = {
    "diffsynth": "final_norm_out.linear.bias",
    "diffusers": "norm_out.linear.bias",
    "bfl": "final_layer.adaLN_modulation.1.bias",
  }
  for which in NAMINGS:
    order = (shift, scale) if which == "bfl" else (scale, shift)
    np.testing.assert_array_equal(
      exported(params, which)[names[which]], np.concatenate(order), err_msg=which
    )
  converted = exported(params, "diffsynth", final="shift_scale")
  np.testing.assert_array_equal(converted[names["diffsynth"]], np.concatenate([shift, scale]))
  told = read(converted, rows.rows("diffsynth", final="shift_scale"))
  np.testing.assert_array_equal(told["norm_out/scale/bias"], scale)
  untold = read(converted, rows.rows("diffsynth"))
  np.testing.assert_array_equal(untold["norm_out/scale/bias"], shift)


@pytest.mark.parametrize(("which", "final"), [("bfl", "scale_shift"), ("diffusers", "shift_scale")])
def test_an_order_that_a_naming_cannot_have(which: rows.Naming, final: rows.Order) -> None:
  with pytest.raises(ValueError, match=f"final '{final}': files of '{which}' names have"):
    rows.rows(which, final=final)


@pytest.mark.parametrize("which", NAMINGS)
def test_without_guidance(which: rows.Naming) -> None:
  all_, fewer = rows.rows(which), rows.rows(which, guidance=False)
  gone = [r for r in all_ if r not in fewer]
  assert len(gone) == 4
  assert all("guidance" in r.name for r in gone)


def test_names_of_no_naming_or_two(params: dict[str, np.ndarray]) -> None:
  names = list(exported(params, "bfl"))
  with pytest.raises(ValueError, match=r"found none among .* names; give the prefix"):
    rows.naming([f"model.diffusion_model.{name}" for name in names])
  with pytest.raises(ValueError, match="found diffusers and bfl"):
    rows.naming([*names, *exported(params, "diffusers")])
