"""Every parameter of every full-size network: path, shape, dtype, axes, spec, as committed.

A change of one of these lines changes the checkpoint format. `pytest tests/golden --update-golden`
writes them anew; the difference is reviewed like code.
"""

from collections import Counter
from collections.abc import Callable
from collections.abc import Mapping
import functools
import json
import math
from pathlib import Path
import runpy
from typing import Any

from flax import nnx
import jax
from jax.sharding import AbstractMesh
from jax.sharding import AxisType
import pytest

from blip3o_jax import sharding
from blip3o_jax import trees
from blip3o_jax.models import autoencoder
from blip3o_jax.models import decoder_lm
from blip3o_jax.models import eva_vit
from blip3o_jax.models import flux
from blip3o_jax.models import next_dit
from blip3o_jax.models import qwen_vision
from blip3o_jax.models import unet
from blip3o_jax.systems import SYSTEMS
from blip3o_jax.systems import blip3o
from blip3o_jax.systems.blip3o import sizes as released_sizes
from blip3o_jax.train import run
from blip3o_jax.train import state

HERE = Path(__file__).parent
FOLDER = HERE.parents[1] / "configs"
REQUIRED = {f"blip3o_{size}_{stage}" for size in ("4b", "8b") for stage in ("pretrain", "sft")}
REQUIRED |= {f"nexus_gen_{stage}_train" for stage in ("ar", "generation", "editing")}
NAMED = ("blip3o_*.py", "nexus_gen_*.py")
CONFIGS = sorted(REQUIRED | {file.stem for name in NAMED for file in FOLDER.glob(name)})
MAKERS: Mapping[str, tuple[Mapping[str, Any], Callable[..., nnx.Module]]] = {
  "decoder_lm": (decoder_lm.VARIANTS, decoder_lm.DecoderLM),
  "qwen_vision": (qwen_vision.VARIANTS, qwen_vision.QwenVision),
  "eva_vit": (eva_vit.VARIANTS, eva_vit.EvaVit),
  "next_dit": (next_dit.VARIANTS, next_dit.NextDiT),
  "flux": (flux.VARIANTS, flux.Flux),
  "unet": (unet.VARIANTS, unet.UNet),
  "autoencoder": (autoencoder.VARIANTS, autoencoder.Autoencoder),
}
NETWORKS = [f"{model}_{variant}" for model, (sizes, _) in MAKERS.items() for variant in sizes]
# Spec sections 1 to 5: the counts of the released files.
COUNTS = {
  ("decoder_lm_qwen2_5_vl_7b", "qwen_vision_qwen2_5_vl_7b"): 8_289_328_128,
  ("decoder_lm_qwen2_5_vl_3b", "qwen_vision_qwen2_5_vl_3b"): 3_754_074_112,
  ("next_dit_blip3o_8b",): 1_365_010_336,
  ("next_dit_blip3o_4b",): 1_362_257_824,
  ("eva_vit_eva_clip_e14plus",): 4_350_208_256,
  ("unet_emu2_gen",): 2_525_520_644,
  ("flux_flux_1_dev",): 11_901_408_320,
  ("autoencoder_sdxl",): 83_653_863,
}


@functools.cache
def network(name: str) -> nnx.Module:
  """The abstract module of a name in NETWORKS."""
  model = next(m for m in MAKERS if name.startswith(f"{m}_"))
  sizes, make = MAKERS[model]
  return nnx.eval_shape(lambda: make(sizes[name.removeprefix(f"{model}_")], rngs=nnx.Rngs(0)))


def run_leaves(name: str) -> state.Partition:
  """What a run of configs/<name>.py holds: trained leaves are float32, frozen ones as stored."""
  values = runpy.run_path(str(FOLDER / f"{name}.py"))["get_config"]()
  found = run.parse(values, SYSTEMS)
  train, mesh = found.train, sharding.make_mesh(devices=jax.devices()[:1])
  return state.partition(
    SYSTEMS[found.system], found.model, mesh, train.trainable, train.frozen_dtype
  )


def shapes(model: nnx.Module) -> dict[str, jax.ShapeDtypeStruct]:
  return trees.flatten(nnx.to_pure_dict(nnx.state(model, nnx.Param)))


def lines(
  leaves: Mapping[str, jax.ShapeDtypeStruct], axes: Mapping[str, tuple[str, ...]]
) -> list[str]:
  """One `path (d0, d1) dtype axes spec` for each parameter."""
  out = []
  for path in sorted(leaves):
    leaf = leaves[path]
    spec = tuple(sharding.to_spec(axes[path]))
    out.append(f"{path} {tuple(leaf.shape)} {leaf.dtype} {','.join(axes[path])} {spec}")
  return out


def compare(name: str, found: list[str], update: bool) -> None:
  """Fails with the lines that differ; writes the file instead with `update`."""
  file = HERE / f"params_{name}.txt"
  if update:
    file.write_text("\n".join(found) + "\n")
    return
  assert file.exists(), f"{file.name} is not there: pytest tests/golden --update-golden writes it"
  expected = file.read_text().splitlines()
  gone = [f"- {line}" for line in expected if line not in set(found)]
  new = [f"+ {line}" for line in found if line not in set(expected)]
  assert not gone + new, "\n".join([f"{file.name} differs:", *(gone + new)[:40]])
  assert found == expected


def config_text(name: str, arg: str) -> str:
  """The resolved config as JSON."""
  values = runpy.run_path(str(FOLDER / f"{name}.py"))["get_config"](arg)
  return json.dumps(values.to_dict(), indent=1, sort_keys=True) + "\n"


@pytest.mark.parametrize("arg", ["", "reference"])
@pytest.mark.parametrize("name", CONFIGS)
def test_resolved_config(name, arg, update_golden):
  """A default that changes somewhere changes a line here."""
  file = HERE / f"config_{name}{'_' * bool(arg)}{arg}.json"
  if update_golden:
    file.write_text(config_text(name, arg))
  assert file.exists(), f"{file.name} is not there: pytest tests/golden --update-golden writes it"
  assert config_text(name, arg) == file.read_text(), f"{file.name} differs"


@pytest.mark.parametrize("name", NETWORKS)
def test_network(name, update_golden):
  model = network(name)
  compare(name, lines(shapes(model), sharding.param_axes(model)), update_golden)


@pytest.mark.parametrize("name", CONFIGS)
def test_config(name, update_golden):
  held = run_leaves(name)
  assert held.trained
  compare(name, lines(held.leaves, held.axes), update_golden)


@pytest.mark.parametrize(("names", "count"), COUNTS.items(), ids=lambda x: str(x))
def test_count(names, count):
  found = sum(math.prod(leaf.shape) for name in names for leaf in shapes(network(name)).values())
  assert found == count


@pytest.mark.parametrize(
  ("size", "understanding", "slots", "denoiser"),
  [
    ("4b", 3_754_074_112, 131_072, 1_362_257_824),
    ("8b", 8_289_328_128, 229_376, 1_365_010_336),
  ],
)
def test_count_of_the_whole_system(size, understanding, slots, denoiser):
  """Spec 0, row by row: what the released file holds, and what a run trains and keeps frozen."""
  model = nnx.eval_shape(lambda: blip3o.build(released_sizes.released(size), nnx.Rngs(0)))
  found: Counter[str] = Counter()
  for path, leaf in shapes(model).items():
    found[path.split("/")[0]] += math.prod(leaf.shape)
  assert found["backbone"] + found["visual"] == understanding
  assert (found["slots"], found["denoiser"]) == (slots, denoiser)
  assert found["encoder"] == 4_350_208_256
  assert set(found) == {"backbone", "visual", "slots", "denoiser", "encoder"}
  held = run_leaves(f"blip3o_{size}_pretrain")
  assert sum(math.prod(leaf.shape) for leaf in held.trained.values()) == slots + denoiser
  assert {path.split("/")[0] for path in held.frozen} == {"backbone"}


@pytest.mark.parametrize("mesh", [(1, 64, 1), (1, 16, 4), (4, 8, 2)], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_full_sizes_divide(name, mesh):
  """Over the meshes that the released sizes are trained on; a remainder would raise."""
  described = AbstractMesh(mesh, sharding.MESH_AXES, axis_types=(AxisType.Auto,) * 3)
  assert sharding.shardings(network(name), described)


def test_no_golden_file_is_left_over():
  known = {f"params_{name}.txt" for name in NETWORKS + CONFIGS}
  assert {file.name for file in HERE.glob("params_*.txt")} <= known


def test_a_changed_line_is_found(tmp_path, monkeypatch):
  monkeypatch.setattr(f"{__name__}.HERE", tmp_path)
  before = ["a/kernel (2, 3) float32 embed,mlp ('fsdp', 'tensor')"]
  compare("x", before, update=True)
  compare("x", before, update=False)
  with pytest.raises(AssertionError, match=r"- a/kernel \(2, 3\)(.|\n)*\+ a/kernel \(3, 2\)"):
    compare("x", [before[0].replace("(2, 3)", "(3, 2)")], update=False)
  with pytest.raises(AssertionError, match="params_y"):
    compare("y", before, update=False)
