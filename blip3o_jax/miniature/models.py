"""The models that a working folder holds: put together of its frozen parts and of its runs."""

from collections.abc import Sequence
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from flax import nnx
import jax
import numpy as np

from blip3o_jax import layers
from blip3o_jax import trees
from blip3o_jax.data import shapes
from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.miniature import parts as frozen_parts
from blip3o_jax.miniature import sizes
from blip3o_jax.systems import blip3o
from blip3o_jax.systems.blip3o import released
from blip3o_jax.systems.blip3o import verbs
from blip3o_jax.systems.parts import loading
from blip3o_jax.systems.parts import painter
from blip3o_jax.systems.parts import painter_files
from blip3o_jax.systems.parts.network import Network
from blip3o_jax.train import distributed
from blip3o_jax.weights import table

SETTINGS = released.Settings(
  null="zeros",
  pixel_scale=1.5,
  pixel_steps=16,
  min_pixels=sizes.SHAPES_IMAGE**2,
  max_pixels=sizes.SHAPES_IMAGE**2,
  steps=20,
  scale=2.0,
  words=shapes.WORDS,
)
STORED: table.Stored = "float16"  # what the exported model's tensors are in its files


def assemble(work: Path, generator: str, step: int = -1) -> verbs.Model:
  """The model of the frozen parts of `work` and the generator of one of its runs.

  `step` is that of a checkpoint which the generator's run kept; -1 is its last.

  Raises:
    FileNotFoundError, ValueError: a part that is absent, or that does not fit the configs.
  """
  parts, cfg = frozen_parts.read(work), config_of(work)
  at = "" if step < 0 else f"@{step}"
  entries = [parts.encoder, parts.reader, f"{work / generator}#ema{at}"]
  system = filled(blip3o, cfg, entries)
  if parts.kind == "shipped":
    decoder_cfg: painter.Config = painter_files.read_config(parts.home, feature_grid=cfg.grid)
  else:
    scale = json.loads((work / "done" / "autoencoder.json").read_text())["scale"]
    decoder_cfg = sizes.pixels_shapes(scale)
  decoder = filled(painter, decoder_cfg, parts.decoder)
  return verbs.Model(
    cfg,
    SETTINGS,
    _split(blip3o, cfg, system),
    _split(painter, decoder_cfg, decoder),
    Tokenizer.load(work, blip3o.SPECIAL),
  )


def frozen_hash(model: verbs.Model) -> str:
  """sha256 of the bytes of the leaves that the generator's training must not touch."""
  digest = hashlib.sha256()
  for path, value in sorted(trees.flatten(model.system.params).items()):
    if path.startswith(("backbone/", "visual/")):
      digest.update(path.encode() + np.asarray(value, np.float32).tobytes())
  return digest.hexdigest()


def before_generation(work: Path, model: verbs.Model) -> verbs.Model:
  """The exported `model` with backbone and vision tower as they were before the generator.

  They are rounded as the export rounds, so that training alone can make a difference.
  """
  _, reads = _reading(work)
  rounded = {path: value.astype(STORED).astype(value.dtype) for path, value in reads.items()}
  params = trees.flatten(model.system.params) | rounded
  system = Network(model.system.graphdef, trees.unflatten(params))
  return verbs.Model(model.cfg, model.settings, system, model.decoder, model.tokenizer)


def reader(work: Path, step: int = -1, run: str = "") -> verbs.Model:
  """The model that answers questions and draws nothing, after `step` steps of a run in `work`."""
  cfg, params = _reading(work, step, run)
  return verbs.Model(
    cfg, SETTINGS, _split(blip3o, cfg, params), None, Tokenizer.load(work, blip3o.SPECIAL)
  )


def _reading(
  work: Path, step: int = -1, run: str = ""
) -> tuple[blip3o.Config, dict[str, jax.Array]]:
  cfg = dataclasses.replace(
    config_of(work), parts=("visual", "head"), loss=blip3o.Loss(image=0.0, text=1.0)
  )
  at = "" if step < 0 else f"#params@{step}"
  source = str(work / run) if run else frozen_parts.read(work).reader
  return cfg, filled(blip3o, cfg, [f"{source}{at}"])


def config_of(work: Path) -> blip3o.Config:
  """Sizes of the miniature with the tokenizer of a working folder."""
  return sizes.blip3o_shapes(Tokenizer.load(work, blip3o.SPECIAL).image_pad)


def filled(system: Any, cfg: Any, entries: Sequence[str], prefix: str = "") -> dict[str, jax.Array]:
  """All leaves of a system under a prefix (which is cut off), from runs and directories.

  Raises:
    ValueError: leaves that none of them fills.
  """
  only = (prefix.removesuffix("/"),) if prefix else ()
  found = loading.load(system, cfg, entries, dtype=None, only=only, mesh=mesh())
  return {p.removeprefix(prefix): v for p, v in trees.flatten(found.params).items()}


def mesh() -> jax.sharding.Mesh:
  """Every device takes its share of a batch."""
  return distributed.make_mesh(distributed.Mesh(replica=jax.device_count(), fsdp=1))


def _split(system: Any, cfg: Any, params: dict[str, jax.Array]) -> Network:
  module = layers.abstract(lambda rngs: system.build(cfg, rngs))
  return Network(nnx.split(module)[0], trees.unflatten(params))
