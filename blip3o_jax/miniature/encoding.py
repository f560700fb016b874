"""The image tower's features of the miniature's training sets: their whitening, and their cache."""

from collections.abc import Sequence
import dataclasses
import functools
from pathlib import Path
from typing import Any

from absl import logging
from flax import nnx
import jax
from ml_collections import ConfigDict
import numpy as np

from blip3o_jax import config
from blip3o_jax import sharding
from blip3o_jax import trees
from blip3o_jax.data import images as pictures
from blip3o_jax.data import shapes
from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.shapes import source as embedded
from blip3o_jax.miniature import models
from blip3o_jax.miniature import parts as frozen_parts
from blip3o_jax.miniature import sizes
from blip3o_jax.systems import blip3o
from blip3o_jax.systems import contrast
from blip3o_jax.systems.blip3o import save
from blip3o_jax.systems.parts import features
from blip3o_jax.systems.parts.network import Network

CHUNK = 32  # pictures that a device encodes at once: what they take stays in a core's cache


def encode(work: Path, data: Sequence[ConfigDict], scenes: int) -> dict[str, Any]:
  """Measures the whitening of the tower's features and caches those that stages' `data` ask for.

  `scenes` of the training world measure it.
  """
  cfg = sizes.blip3o_shapes().features
  run = [str(work / "tower")]
  tower = models.filled(contrast, sizes.contrast_shapes(), run, "encoder/")
  narrow = np.asarray(models.filled(contrast, sizes.contrast_shapes(), run, "narrow/")["kernel"])
  plain = dataclasses.replace(cfg, whiten=0)
  encoder = _network(features.FeatureEncoder(plain, rngs=nnx.Rngs(0)), tower)
  world = [shapes.scene(0, i, "world") for i in range(scenes)]
  mean, kernel, share = features.fit_whitening(
    _encoded(encoder, shapes.render_many(world)), cfg.whiten, narrow, _factors(world)
  )
  logging.info(
    "whitening: %d of %d directions, %.4f of the variance", cfg.whiten, narrow.shape[1], share
  )
  params: dict[str, Any] = {f"encoder/{p}": v for p, v in tower.items()}
  params |= {"encoder/whiten/mean": mean, "encoder/whiten/kernel": kernel}
  save.write_weights(params, work / "features" / "encoder")
  for wanted in data:
    cache_features(work, wanted)
  return {"variance_kept": share}


def _factors(scenes: Sequence[shapes.Scene]) -> np.ndarray:
  """The colour and the shape in each cell: bool[n, 4, 4, 11]."""
  known = len(shapes.COLORS) + len(shapes.SHAPES)
  out = np.zeros((len(scenes), shapes.GRID, shapes.GRID, known), bool)
  for i, scene in enumerate(scenes):
    for o in scene.objects:
      out[i, o.row, o.col, shapes.COLORS.index(o.color)] = True
      out[i, o.row, o.col, len(shapes.COLORS) + shapes.SHAPES.index(o.shape)] = True
  return out


def cache_features(work: Path, data: ConfigDict) -> None:
  """Writes the features of a config's scenes where its `data.path` says, float16[n, h, w, C]."""
  asked = config.build(Data, data, "config.data")
  source = embedded.EmbeddedSource(asked.split, asked.records, asked.shapes)
  count = source.scenes
  cfg = sizes.blip3o_shapes().features
  tower = frozen_parts.read(work).encoder
  found = models.filled(blip3o, models.config_of(work), [tower], "encoder/")
  encoder = _network(features.FeatureEncoder(cfg, rngs=nnx.Rngs(0)), found)
  parts = []
  block = CHUNK * jax.device_count()
  for start in range(0, count, block):
    scenes = [source.scene(i) for i in range(start, min(start + block, count))]
    parts.append(_encoded(encoder, shapes.render_many(scenes), whitened=True).astype(np.float16))
  home = Path(asked.path)
  home.mkdir(parents=True, exist_ok=True)
  partial = home / f".{embedded.FEATURES}.partial.npy"
  np.save(partial, np.concatenate(parts))
  partial.replace(home / embedded.FEATURES)
  logging.info("features: %d scenes of %s in %s", count, asked.split, home)


def _encoded(encoder: Network, images: np.ndarray, *, whitened: bool = False) -> np.ndarray:
  """Features float32[n, h, w, C] of uint8[n, H, W, 3], `CHUNK` at a time on every device."""
  parts, size = [], CHUNK * jax.device_count()
  shared = sharding.batch_sharding(models.mesh())
  for start in range(0, len(images), size):
    part = images[start : start + size]
    whole = np.resize(part, (size, *part.shape[1:]))  # a short one repeats: one program compiles
    batch = jax.device_put(pictures.normalise(whole), shared)
    found = _run_encoder(encoder.graphdef, encoder.params, batch, whitened)
    parts.append(np.asarray(found)[: len(part)])
  return np.concatenate(parts)


def _network(module: nnx.Module, params: dict[str, Any]) -> Network:
  return Network(nnx.split(module)[0], trees.unflatten(params))


@functools.partial(jax.jit, static_argnums=(0, 3))
def _run_encoder(
  graphdef: nnx.GraphDef[Any], params: Any, batch: jax.Array, whitened: bool
) -> jax.Array:
  module: Any = nnx.merge(graphdef, params)
  return module(batch) if whitened else module.pooled(batch)
