"""The stages of the miniature that are no training run, and what its runs leave for each other.

A working folder holds tokenizer.json, one run directory a stage, `features/` and, in the end,
`model/` in the released layout. Its frozen parts are trained there or the shipped ones, as `parts`
says. The system's plan has the order.
"""

from collections.abc import Mapping
import importlib.metadata
import os
from pathlib import Path
import platform
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from blip3o_jax import systems
from blip3o_jax.data import images as pictures
from blip3o_jax.data import shapes
from blip3o_jax.data.shapes import source as embedded
from blip3o_jax.data.text.tokenizer import copy_files
from blip3o_jax.data.text.tokenizer import train_bpe
from blip3o_jax.miniature import models
from blip3o_jax.miniature import scores
from blip3o_jax.miniature import shipped
from blip3o_jax.miniature import sizes
from blip3o_jax.miniature.plans import ALL as ALL
from blip3o_jax.miniature.plans import Amounts as Amounts
from blip3o_jax.models import autoencoder
from blip3o_jax.systems.blip3o import prompts
from blip3o_jax.systems.blip3o import save
from blip3o_jax.train import loop

PROBE_SEED = 10_000  # of drawings that choose what to tune on, apart from the report's


def train(cfg: ConfigDict, work: Path, name: str) -> dict[str, Any]:
  """Runs a stage's config in work/name on every device; returns its last metrics."""
  cfg.mesh.replica, cfg.mesh.fsdp = jax.device_count(), 1
  cfg.checkpoint.every_minutes = 5.0
  done = loop.start(cfg, systems.SYSTEMS, work / name)
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
    prompts.SYSTEM,
    prompts.GENERATE,
    embedded.DESCRIBE,
    "system",
    "user",
    "assistant",
  ] * 3000
  for scene in _scenes("world", amounts.words):
    texts += [shapes.caption(scene), shapes.long_caption(scene)]
    # An answer begins a message, without a space before it: its words are tokens of their own.
    texts += [text for q in shapes.questions(scene) for text in (q.question, q.answer)]
  tokenizer = train_bpe(texts, sizes.SHAPES_VOCAB, work, prompts.SPECIAL)
  return {"vocabulary": tokenizer.size}


def take_shipped(work: Path) -> dict[str, Any]:
  """Checks every shipped file against its sum, and copies the tokenizer into the folder.

  Raises:
    FileNotFoundError, ValueError: an absent or a damaged file, by name.
  """
  files = shipped.verify()
  copy_files(shipped.directory(), work)
  return {"files": len(files)}


def probe(work: Path, amounts: Amounts = ALL) -> dict[str, Any]:
  """Draws other prompts than the report's, names the weakest categories.

  The prompts are training captions of each category, so no test prompt decides anything.
  """
  model = models.assemble(work, "generator")
  rates, _ = scores.generation(model, probe_prompts(amounts.probe), seed=PROBE_SEED)
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
  save.save(models.assemble(work, "tuned"), work, work / "model", dtype=models.STORED)
  return made_of(work / "model")


def made_of(model: Path) -> dict[str, Any]:
  """Bytes of a model that was exported here, and what computed it."""
  versions = {name: importlib.metadata.version(name) for name in ("jax", "flax")}
  versions["python"] = platform.python_version()
  return {"bytes": shipped.size(model), "versions": versions, "cores": os.cpu_count()}


def _scenes(split: str, count: int) -> list[shapes.Scene]:
  return [shapes.scene(0, i, split) for i in range(count)]
