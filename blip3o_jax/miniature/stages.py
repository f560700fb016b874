"""The stages of the miniature that are no training run, and what its runs leave for each other.

A working folder holds tokenizer.json, one run directory a stage, `features/` and, in the end,
`model/` in the released layout. Its frozen parts are trained there or the shipped ones, as
`miniature_parts` says. `launch/quickstart.py` calls these in order.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
from pathlib import Path
import platform
from typing import Any

from absl import logging
from flax import nnx
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from blip3o_jax import config
from blip3o_jax import experiment
from blip3o_jax import sharding
from blip3o_jax import trees
from blip3o_jax.data import images as pictures
from blip3o_jax.data import shapes
from blip3o_jax.data.pipeline import Data
from blip3o_jax.data.shapes import source as embedded
from blip3o_jax.data.text import chat
from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.data.text.tokenizer import train_bpe
from blip3o_jax.miniature import parts as frozen_parts
from blip3o_jax.miniature import scores as evaluate
from blip3o_jax.miniature import shipped
from blip3o_jax.miniature import sizes
from blip3o_jax.models import autoencoder
from blip3o_jax.systems import blip3o
from blip3o_jax.systems import contrast
from blip3o_jax.systems import pixels
from blip3o_jax.systems.blip3o import released
from blip3o_jax.systems.blip3o import save
from blip3o_jax.systems.blip3o import verbs
from blip3o_jax.systems.parts import features
from blip3o_jax.systems.parts import loading
from blip3o_jax.systems.parts import painter
from blip3o_jax.train import distributed
from blip3o_jax.train import state as train_state
from blip3o_jax.weights import table

CHUNK = 32  # pictures that a device encodes at once: what they take stays in a core's cache
# Nothing is trained where networks are only read; these are leaves that every system may train.
FREE = ("(?!backbone/|encoder/).*",)
SETTINGS = released.Settings(
  null="zeros",
  pixel_scale=1.5,
  pixel_steps=16,
  min_pixels=sizes.SHAPES_IMAGE**2,
  max_pixels=sizes.SHAPES_IMAGE**2,
  steps=20,
  scale=2.0,
)
STORED: table.Stored = "float16"  # what the exported model's tensors are in its files
PROBE_SEED = 10_000  # of drawings that choose what to tune on, apart from the report's


@dataclasses.dataclass(frozen=True)
class Amounts:
  """How much the stages that are no training run work on.

  Attributes:
    words: scenes whose texts train the tokenizer. whiten: scenes that measure the whitening.
    probe: drawings a category that choose what to tune on.
    asked: test questions a kind, prompts a category, and pictures to reconstruct.
  """

  words: int = 4000
  whiten: int = 6000
  probe: int = 40
  asked: int = 100


ALL = Amounts()


def train(cfg: ConfigDict, work: Path, name: str) -> dict[str, Any]:
  """Runs a stage's config in work/name on every device; returns its last metrics."""
  cfg.mesh.replica, cfg.mesh.fsdp = jax.device_count(), 1
  cfg.checkpoint.every_minutes = 5.0
  done = experiment.run(cfg, work / name)
  if done.interrupted:
    raise SystemExit(f"{name}: interrupted at step {done.step}; the next call goes on from there")
  facts: dict[str, Any] = {"step": done.step, "metrics": done.metrics}
  if name == "autoencoder":
    sample = jnp.asarray(pictures.signed(shapes.render_many(_scenes("world", 512))))
    module: Any = done.module
    facts["scale"] = autoencoder.latent_scale(module.autoencoder, sample)
  return facts


def train_tokenizer(work: Path, amounts: Amounts = ALL) -> dict[str, Any]:
  """Trains the tokenizer on captions, questions and the words of the templates."""
  texts = [
    chat.SYSTEM,
    chat.GENERATE,
    embedded.DESCRIBE,
    "system",
    "user",
    "assistant",
  ] * 3000
  for scene in _scenes("world", amounts.words):
    texts += [shapes.caption(scene), shapes.long_caption(scene)]
    # An answer begins a message, without a space before it: its words are tokens of their own.
    texts += [text for q in shapes.questions(scene) for text in (q.question, q.answer)]
  tokenizer = train_bpe(texts, sizes.SHAPES_VOCAB, work)
  return {"vocabulary": tokenizer.size}


def take_shipped(work: Path) -> dict[str, Any]:
  """Checks every shipped file against its sum, and copies the tokenizer into the folder.

  Raises:
    FileNotFoundError, ValueError: an absent or a damaged file, by name.
  """
  files = shipped.verify()
  save.copy_tokenizer(shipped.directory(), work)
  return {"files": len(files)}


def encode(work: Path, data: Sequence[ConfigDict], amounts: Amounts = ALL) -> dict[str, Any]:
  """Measures the whitening of the tower's features and caches those that stages' `data` ask for."""
  cfg = sizes.blip3o_shapes().features
  run = [str(work / "tower")]
  tower = _filled(contrast, sizes.contrast_shapes(), run, "encoder/")
  narrow = np.asarray(_filled(contrast, sizes.contrast_shapes(), run, "narrow/")["kernel"])
  plain = dataclasses.replace(cfg, whiten=0)
  encoder = _network(features.FeatureEncoder(plain, rngs=nnx.Rngs(0)), tower)
  world = _scenes("world", amounts.whiten)
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
  source = embedded.EmbeddedSource(asked.split, asked.records, asked.mixture)
  count = source.scenes
  cfg = sizes.blip3o_shapes().features
  found = _filled(blip3o, _full_config(work), [frozen_parts.read(work).encoder], "encoder/")
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


def probe(work: Path, amounts: Amounts = ALL) -> dict[str, Any]:
  """Draws other prompts than the report's, names the weakest categories.

  The prompts are training captions of each category, so no test prompt decides anything.
  """
  model = assemble(work, "generator")
  rates, _ = evaluate.generation(model, probe_prompts(amounts.probe), seed=PROBE_SEED)
  ranked = sorted(shapes.CATEGORIES, key=lambda c: rates[c]["rate"])
  failed = {c: 1 - rates[c]["rate"] for c in ranked}
  return {"weakest": shares(failed), "rates": {c: rates[c]["rate"] for c in ranked}}


def shares(failed: Mapping[str, float], places: int = 18) -> list[str]:
  """Categories in turn: each once, and the places that are left by the share of what failed.

  Args:
    failed: {category: rate of wrong drawings}. places: at least one for each category.

  Returns:
    `places` names, those of one category as far apart as they can be.
  """
  left = places - len(failed)
  whole = sum(failed.values()) or 1.0
  counts = dict.fromkeys(failed, 1)
  for _ in range(left):  # the next goes to whoever is farthest below its share
    due = {c: left * rate / whole - (counts[c] - 1) for c, rate in failed.items()}
    counts[max(due, key=lambda c: due[c])] += 1
  at = [((i + 0.5) / count, c) for c, count in counts.items() for i in range(count)]
  return [c for _, c in sorted(at)]


def probe_prompts(count: int) -> list[dict[str, Any]]:
  """`count` training captions worded like each category, with what must be drawn."""
  return [
    {"tag": c, "prompt": text, "include": shapes.category_include(scene, c), "unseen": False}
    for c in shapes.CATEGORIES
    for i in range(count)
    for scene, text in [shapes.category_caption(PROBE_SEED, i, c, "generator")]
  ]


def export_model(work: Path) -> dict[str, Any]:
  """Writes work/model in the released layout and in half precision; with what computed it."""
  save.save(assemble(work, "tuned"), work, work / "model", dtype=STORED)
  size = sum(f.stat().st_size for f in (work / "model").rglob("*") if f.is_file())
  versions = {name: importlib.metadata.version(name) for name in ("jax", "flax")}
  versions["python"] = platform.python_version()
  return {"bytes": size, "versions": versions, "cores": os.cpu_count()}


def assemble(work: Path, generator: str, step: int = -1) -> verbs.Model:
  """The model of the frozen parts of `work` and the generator of one of its runs.

  `step` is that of a checkpoint which the generator's run kept; -1 is its last.

  Raises:
    FileNotFoundError, ValueError: a part that is absent, or that does not fit the configs.
  """
  parts, cfg = frozen_parts.read(work), _full_config(work)
  at = "" if step < 0 else f"@{step}"
  entries = [parts.encoder, parts.reader, f"{work / generator}#ema{at}"]
  system = _filled(blip3o, cfg, entries)
  if parts.kind == "shipped":
    decoder_cfg: painter.Config = painter.read_config(parts.home, feature_grid=cfg.grid)
  else:
    scale = json.loads((work / "done" / "autoencoder.json").read_text())["scale"]
    decoder_cfg = sizes.pixels_shapes(scale)
  decoder = _filled(pixels, decoder_cfg, parts.decoder)
  return verbs.Model(
    cfg,
    SETTINGS,
    _split(blip3o, cfg, system),
    _split(pixels, decoder_cfg, decoder),
    Tokenizer.load(work),
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
  system = verbs.Network(model.system.graphdef, trees.unflatten(params))
  return verbs.Model(model.cfg, model.settings, system, model.decoder, model.tokenizer)


def reader(work: Path, step: int = -1, run: str = "") -> verbs.Model:
  """The model that answers questions and draws nothing, after `step` steps of a run in `work`."""
  cfg, params = _reading(work, step, run)
  return verbs.Model(cfg, SETTINGS, _split(blip3o, cfg, params), None, Tokenizer.load(work))


def _reading(
  work: Path, step: int = -1, run: str = ""
) -> tuple[blip3o.Config, dict[str, jax.Array]]:
  cfg = dataclasses.replace(
    _full_config(work), parts=("visual", "head"), loss=blip3o.Loss(image=0.0, text=1.0)
  )
  at = "" if step < 0 else f"#params@{step}"
  source = str(work / run) if run else frozen_parts.read(work).reader
  return cfg, _filled(blip3o, cfg, [f"{source}{at}"])


def _scenes(split: str, count: int) -> list[shapes.Scene]:
  return [shapes.scene(0, i, split) for i in range(count)]


def _mesh() -> jax.sharding.Mesh:
  return distributed.make_mesh(distributed.Mesh(replica=jax.device_count(), fsdp=1))


def _full_config(work: Path) -> blip3o.Config:
  return sizes.blip3o_shapes(Tokenizer.load(work).image_pad)


def _filled(
  system: Any, cfg: Any, entries: Sequence[str], prefix: str = ""
) -> dict[str, jax.Array]:
  """All leaves of a system under a prefix (which is cut off), from runs and directories.

  Raises:
    ValueError: leaves that none of them fills.
  """
  leaves = train_state.partition(system, cfg, _mesh(), FREE).leaves
  wanted = {p: v for p, v in leaves.items() if p.startswith(prefix)}
  found, left = loading.load(system, cfg, loading.resolve(entries), wanted, leaves)
  if left:
    raise ValueError(f"{', '.join(entries)}: nothing fills {len(left)} leaves, {next(iter(left))}")
  return {p.removeprefix(prefix): found[p] for p in wanted}


def _split(system: Any, cfg: Any, params: dict[str, jax.Array]) -> verbs.Network:
  module = nnx.eval_shape(lambda: system.build(cfg, nnx.Rngs(0)))
  return verbs.Network(nnx.split(module)[0], trees.unflatten(params))


def _network(module: nnx.Module, params: dict[str, Any]) -> verbs.Network:
  return verbs.Network(nnx.split(module)[0], trees.unflatten(params))


def _encoded(encoder: verbs.Network, images: np.ndarray, *, whitened: bool = False) -> np.ndarray:
  """Features float32[n, h, w, C] of uint8[n, H, W, 3], `CHUNK` at a time on every device."""
  parts, size = [], CHUNK * jax.device_count()
  shared = sharding.batch_sharding(_mesh())
  for start in range(0, len(images), size):
    part = images[start : start + size]
    whole = np.resize(part, (size, *part.shape[1:]))  # a short one repeats: one program compiles
    batch = jax.device_put(pictures.normalise(whole), shared)
    found = _run_encoder(encoder.graphdef, encoder.params, batch, whitened)
    parts.append(np.asarray(found)[: len(part)])
  return np.concatenate(parts)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _run_encoder(
  graphdef: nnx.GraphDef[Any], params: Any, batch: jax.Array, whitened: bool
) -> jax.Array:
  module: Any = nnx.merge(graphdef, params)
  return module(batch) if whitened else module.pooled(batch)
