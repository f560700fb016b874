"""The tables of the generator side against the full-size manifests; no weights are read."""

from collections.abc import Callable
import json
from pathlib import Path

from flax import nnx
import pytest

from blip3o_jax import trees
from blip3o_jax.models import eva_vit
from blip3o_jax.models import next_dit
from blip3o_jax.weights import table
from blip3o_jax.weights.rows import eva_vit as eva_rows
from blip3o_jax.weights.rows import next_dit as dit_rows

MANIFESTS = Path(__file__).parents[2] / "data" / "manifests"
TOWER = "model.gen_vision_tower.vision_tower.model."
EVA = eva_vit.VARIANTS["eva_clip_e14plus"]


def keys(name: str, prefix: str) -> dict[str, tuple[int, ...]]:
  manifest = json.loads((MANIFESTS / f"{name}.json").read_text())
  out = {k.removeprefix(prefix): tuple(v) for k, v in manifest.items() if k.startswith(prefix)}
  assert out
  return out


def paths(make: Callable[[], nnx.Module]) -> dict[str, tuple[int, ...]]:
  model = nnx.eval_shape(make)
  flat = trees.flatten(nnx.to_pure_dict(nnx.state(model)))
  return {p: v.shape for p, v in flat.items()}


def tower() -> nnx.Module:
  return eva_vit.EvaVit(EVA, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
  ("name", "variant"), [("blip3o_qwen_3b", "blip3o_4b"), ("blip3o_qwen_7b", "blip3o_8b")]
)
def test_dit_manifest(name: str, variant: str) -> None:
  cfg = next_dit.VARIANTS[variant]
  params = paths(lambda: next_dit.NextDiT(cfg, rngs=nnx.Rngs(0)))
  table.plan(dit_rows.rows(), keys(name, "model.dit.model."), params, where=name)


@pytest.mark.parametrize(
  ("name", "prefix"),
  [("blip3o_qwen_3b", TOWER), ("blip3o_qwen_7b", TOWER), ("eva_clip_e14plus", "")],
)
def test_tower_manifest(name: str, prefix: str) -> None:
  plan = table.plan(eva_rows.rows(), keys(name, prefix), paths(tower), where=name)
  source = plan["blocks/attn/v_proj/kernel"]
  assert (source.start, source.rows, source.shape) == (3584, 1792, (5376, 1792))


def test_the_wrong_size_is_told() -> None:
  cfg = next_dit.VARIANTS["blip3o_8b"]
  params = paths(lambda: next_dit.NextDiT(cfg, rngs=nnx.Rngs(0)))
  with pytest.raises(table.WeightsError, match=r"caption_projection.linear_1.weight: expected"):
    table.plan(dit_rows.rows(), keys("blip3o_qwen_3b", "model.dit.model."), params)
