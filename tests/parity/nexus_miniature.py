"""The recorded miniature of Nexus-Gen as its parity tests take it: sizes, weights, pictures."""

from collections.abc import Mapping
import dataclasses
from pathlib import Path
from typing import Any

from flax import nnx
import numpy as np
import tables

from blip3o_jax import trees
from blip3o_jax.models import qwen_vision
from blip3o_jax.systems.nexus_gen import model as nexus
from blip3o_jax.systems.nexus_gen import released
from blip3o_jax.systems.nexus_gen import rows as nexus_rows
from blip3o_jax.systems.parts.network import Network
from blip3o_jax.weights import table
from blip3o_jax.weights.safetensors import Tensors

TINY = Path(__file__).parents[1] / "data" / "tiny-nexus-gen"
WHOLE, _ = released.read(TINY, "float32")
CFG = dataclasses.replace(WHOLE, parts=("visual", "language"))
RECORDED = Tensors(TINY / "io.safetensors")


def recorded(name: str) -> np.ndarray:
  return RECORDED.read(name)


def load(cfg: nexus.Config, tensors: Mapping[str, Any], read: table.Read) -> Network:
  """The networks of named tensors, every one accounted for."""
  graph, state = nnx.split(nnx.eval_shape(lambda: nexus.build(cfg, nnx.Rngs(0))))
  params = trees.flatten(nnx.to_pure_dict(state))
  shapes = {path: leaf.shape for path, leaf in params.items()}
  plan = table.plan(nexus_rows.language_rows(tensors), tensors, shapes)
  return Network(graph, trees.unflatten(tables.filled(plan, read, params)))


def pictures(
  pixels: np.ndarray,
  grids: list[tuple[int, int]],
  rows: list[int],
  room: int,
  tower: qwen_vision.Config = CFG.visual,
) -> dict[str, np.ndarray]:
  """Arrays [B, I, N, ...] of pictures, so many in each row, the rest absent."""
  most = max(rows)
  patches = np.zeros((len(rows) * most, room, pixels.shape[1]), np.float32)
  layout = qwen_vision.layout(grids, room, tower)
  parts = np.split(pixels, np.cumsum([h * w for h, w in grids])[:-1])
  at = [b * most + i for b, count in enumerate(rows) for i in range(count)]
  for place, part in zip(at, parts, strict=True):
    patches[place, : len(part)] = part

  def spread(x: np.ndarray) -> np.ndarray:
    out = np.zeros((len(rows) * most, *x.shape[1:]), x.dtype)
    out[at] = x
    return out.reshape(len(rows), most, *x.shape[1:])

  return {
    "patches": patches.reshape(len(rows), most, *patches.shape[1:]),
    "patch_positions": spread(layout.positions),
    "patch_windows": spread(layout.windows),
    "patch_segments": spread(layout.segments),
  }


def grids_of(name: str) -> list[tuple[int, int]]:
  return [(int(h), int(w)) for _, h, w in recorded(f"{name}.image_grid_thw")]
