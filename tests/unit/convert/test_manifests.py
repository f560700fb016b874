"""Every full-size manifest maps completely in both directions: names and shapes, no weights."""

import dataclasses
import functools
import json
from pathlib import Path

from flax import nnx
import pytest

from blip3o_jax import trees
from blip3o_jax.systems import blip3o
from blip3o_jax.systems import nexus_gen
from blip3o_jax.systems import pixels
from blip3o_jax.systems.blip3o import sizes as released_sizes
from blip3o_jax.systems.nexus_gen import sizes as nexus_sizes
from blip3o_jax.systems.parts import diffusers_files
from blip3o_jax.systems.parts import features
from blip3o_jax.systems.parts import layout
from blip3o_jax.weights import table

MANIFESTS = Path(__file__).parents[2] / "data" / "manifests"
VOCABULARY = {"qwen2_5_vl_3b": 151936, "qwen2_5_vl_7b": 152064}
ALL = ("visual", "head", "denoiser", "encoder")
# Of Nexus-Gen: the kind of the part, and the modules that it fills.
NEXUS = {
  "nexus_gen_ar": ("model", ("backbone", "visual", "vision_head", "slots")),
  "nexus_gen_generation_decoder": ("generator", ("generator",)),
  "nexus_gen_edit_decoder": ("editor", ("editor",)),
  "nexus_gen_vae": ("ae", ("autoencoder",)),
}


def shapes(make) -> dict[str, tuple[int, ...]]:
  flat = trees.flatten(nnx.to_pure_dict(nnx.state(nnx.eval_shape(make))))
  return {path: tuple(v.shape) for path, v in flat.items()}


@functools.cache
def nexus() -> dict[str, tuple[int, ...]]:
  """{path: shape} of the released Nexus-Gen."""
  return layout.shapes(lambda rngs: nexus_gen.build(nexus_sizes.released(), rngs))()


def params(name: str) -> dict[str, tuple[int, ...]]:
  """{path: shape} of what a manifest fills."""
  if name in NEXUS:
    return {p: s for p, s in nexus().items() if trees.top(p) in NEXUS[name][1]}
  if name == "eva_clip_e14plus":
    tower = released_sizes.released("4b").features
    made = shapes(lambda: features.FeatureEncoder(tower, rngs=nnx.Rngs(0)))
    return {f"encoder/{p}": s for p, s in made.items()}
  if name.startswith("sdxl"):
    network = "unet" if "unet" in name else "autoencoder"
    made = shapes(lambda: pixels.build(pixels.VARIANTS["emu2_gen"], nnx.Rngs(0)))
    return {p: s for p, s in made.items() if p.startswith(network)}
  cfg = released_sizes.released("4b" if "3b" in name else "8b")
  parts = ALL if name.startswith("blip3o") else ALL[:2]
  rows = VOCABULARY.get(name, cfg.backbone.vocab_size)
  backbone = dataclasses.replace(cfg.backbone, vocab_size=rows)
  cfg = dataclasses.replace(cfg, backbone=backbone, parts=parts)
  return shapes(lambda: blip3o.build(cfg, nnx.Rngs(0)))


def rows_of(name: str, tensors: dict, home: Path) -> list[table.Row]:
  """The table in use, through the same door as a conversion."""
  if name in NEXUS:
    return nexus_gen.rows_of(NEXUS[name][0], tensors, home)
  if name == "eva_clip_e14plus":
    return blip3o.rows_of("tower", tensors, home)
  if not name.startswith("sdxl"):
    return blip3o.rows_of("model", tensors, home)
  cfg = pixels.VARIANTS["emu2_gen"]
  made = (
    diffusers_files.unet_json(cfg.unet, grid=cfg.grid)
    if "unet" in name
    else diffusers_files.vae_json(cfg.autoencoder, size=cfg.size)
  )
  (home / "config.json").write_text(json.dumps(made))
  return blip3o.rows_of("unet" if "unet" in name else "autoencoder", tensors, home)


@pytest.mark.parametrize("name", sorted(p.stem for p in MANIFESTS.glob("*.json")))
def test_a_manifest_maps_completely_both_ways(name, tmp_path):
  tensors = {k: tuple(v) for k, v in json.loads((MANIFESTS / f"{name}.json").read_text()).items()}
  wanted = params(name)
  rows = [r for r in rows_of(name, tensors, tmp_path) if any(p in wanted for p in r.paths)]
  plan = table.plan(rows, tensors, wanted, where=name)
  assert {n for source in plan.values() for n in source.names} == set(tensors)
  assert set(plan) == set(wanted)
  targets = table.targets(rows, wanted)
  assert {n: t.shape for n, t in targets.items()} == tensors
  assert {p for t in targets.values() for p in t.paths} == set(wanted)
