"""Where a miniature begins: a small language model that reads, deepened; an autoencoder; constants.

As the release began with a Qwen2.5-VL and what FLUX.1 gives, the miniature begins with the trained
language model, vision tower and autoencoder of another one. What predicts pictures is new, and so
are the two decoders; the adapter of one begins with vectors made white.
"""

import dataclasses
import json
from pathlib import Path
import re
import shutil
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from blip3o_jax import files
from blip3o_jax import trees
from blip3o_jax.data import licence
from blip3o_jax.data.text import tokenizer as tokenizers
from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.systems.nexus_gen import batches
from blip3o_jax.systems.nexus_gen import constants
from blip3o_jax.systems.nexus_gen import decoders
from blip3o_jax.systems.nexus_gen import layout as own
from blip3o_jax.systems.nexus_gen import model
from blip3o_jax.systems.nexus_gen import prefill
from blip3o_jax.systems.nexus_gen import prompts
from blip3o_jax.systems.nexus_gen import released
from blip3o_jax.systems.nexus_gen import rows
from blip3o_jax.systems.nexus_gen import sizes
from blip3o_jax.systems.nexus_gen import verbs
from blip3o_jax.systems.parts import diffusers_files
from blip3o_jax.systems.parts import layout
from blip3o_jax.systems.parts import places
from blip3o_jax.systems.parts import qwen_files
from blip3o_jax.weights import safetensors
from blip3o_jax.weights import table

Tensors = dict[str, np.ndarray]
PICTURES = "preprocessor_config.json"
PAGE = "What a small Nexus-Gen begins with, before it is trained; the licence is its source's."
# What a layer adds to what passes it by: with these at 0 a layer changes nothing.
WRITES = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
FIRST = {"generator": "adapter/linear_in", "editor": "merger/linear_in"}  # that is fitted
LEAST = 1e-3  # of the largest variance of vectors: what varies less is left small
LAYER = re.compile(r"(.*layers\.)(\d+)(\..*)")


def write(
  source: Path, folder: Path, settings: released.Settings, pictures: np.ndarray, *, more: int
) -> model.Config:
  """Writes a folder in the released layout for stages to start from.

  The language model gets `more` layers behind its own, which at first change nothing. The head of
  vectors is fitted: it gives a picture's vectors of what the language model has at their places.
  So is what each decoder, otherwise new, projects vectors with, see `_white`; the editing one has
  the language model's first layer before that, as the release began (Nexus-Gen spec 9).

  Args:
    source: a model of the house with config.json, the tensors of a Qwen2.5-VL and
      diffusion-decoder/vae. settings: of use. pictures: uint8[n, S, S, 3], that both are fitted on.

  Returns:
    The config, of the stage "language".

  Raises:
    FileNotFoundError, ValueError: a source that lacks something, or says something else.
  """
  where, values = str(source / "config.json"), files.read_json(source / "config.json")
  language = qwen_files.text_config(values, where, "float32")
  vision = qwen_files.vision_config(values["vision_config"], where, "float32")
  vae = diffusers_files.home(source) / diffusers_files.FOLDERS["autoencoder"]
  pixels = diffusers_files.vae_config(files.read_json(vae / "config.json", nulls=True))
  tokenizer = Tokenizer.load(source, prompts.SPECIAL)
  deeper = dataclasses.replace(language, depth=language.depth + more)
  cfg = sizes.shapes(deeper, vision, pixels, tokenizer)
  folder.mkdir(parents=True, exist_ok=True)
  tokenizers.copy_files(source, folder)
  shutil.copyfile(source / PICTURES, folder / PICTURES)
  if said := licence.note(str(source)).name:  # it holds for what is trained from here, too
    files.write_text(folder / licence.CARD, f"---\nlicense: {said}\n---\n\n{PAGE}\n")
  shutil.copytree(vae, folder / vae.name, dirs_exist_ok=True)
  told = released.config_json(cfg, eos=tokenizer.im_end, pad=tokenizer.pad)
  tiny = released.tiny_json(cfg, settings, dict(tokenizer.special))
  for name, content in (("config.json", told), ("tiny.json", tiny)):
    files.write_text(folder / name, json.dumps(content, indent=2) + "\n")
  rngs = nnx.Rngs(0)
  null = decoders.Constants(cfg.flux, cfg.null_tokens, rngs=rngs)
  found = {name: np.asarray(getattr(null, name)[...]) for name in ("pooled", "context")}
  safetensors.save(found, folder / f"{constants.STEM}.safetensors", {"format": "pt"})
  tensors = deepened(_read(source), language.depth, more)
  draw = jax.nn.initializers.normal(language.init_std)
  tensors[prefill.NAME] = np.asarray(draw(rngs.params(), (cfg.slots, language.dim)))
  tensors[own.HEAD] = np.asarray(draw(rngs.params(), (language.dim, language.dim)))
  _save(tensors, folder)
  loaded = verbs.load(folder)
  tensors[own.HEAD] = _head(loaded, batches.Batches(cfg, settings, tokenizer), pictures)
  _save(tensors, folder)
  seen = loaded.seen(pictures)
  _save_decoder("generator", decoders.Generator(language.dim, cfg.flux, rngs=rngs), seen, folder)
  editor, backbone = model.editor(cfg, rngs), loaded.network.params["backbone"]
  layer = jax.tree.map(lambda leaf: leaf[: cfg.merger_depth], backbone["layers"])
  nnx.update(editor.merger.layers, layer)
  other = np.roll(seen, 1, 0)  # of another picture, as what is edited becomes another
  mixed = np.asarray(editor.merger.mixed([jnp.asarray(seen), jnp.asarray(other)]))
  _save_decoder("editor", editor, mixed, folder)
  return begun(folder, "language")


def begun(folder: Path, stage: model.Stage) -> model.Config:
  """The config of a stage that starts in such a folder, of all parts; raises as `layout.parts`."""
  cfg = own.parts(layout.Files(folder)).cfg
  if cfg is None:
    raise ValueError(f"{folder}: no config.json of a Qwen2.5-VL")
  networks = {
    name: dataclasses.replace(getattr(cfg, name), remat="dots")
    for name in ("backbone", "visual", "flux")
  }
  side = cfg.side(cfg.target_grid)
  form = prompts.Form(max_pixels=side**2, pictures=released.read_settings(folder).pictures)
  return dataclasses.replace(cfg, parts=model.PARTS, stage=stage, form=form, **networks)


def deepened(tensors: Tensors, depth: int, more: int) -> Tensors:
  """The tensors with `more` copies of the last of `depth` layers of the language model behind it.

  What they add is 0 until it is trained.
  """
  out = dict(tensors)
  for name, value in tensors.items():
    found = LAYER.fullmatch(name)
    if found is None or not name.startswith("model.layers.") or int(found[2]) != depth - 1:
      continue
    for i in range(more):
      copy = np.zeros_like(value) if found[3][1:] in WRITES else value
      out[f"{found[1]}{depth + i}{found[3]}"] = copy
  return out


def _read(source: Path) -> Tensors:
  """The language model's and vision tower's tensors of a directory, float32."""
  reader = layout.Files(source).tensors()
  known = "|".join(table.pattern(r.name) for r in rows.language_rows(reader))
  names = [name for name in reader if re.fullmatch(known, name)]
  return {name: reader.view(name).astype(np.float32) for name in names}


def _save(tensors: Tensors, folder: Path) -> None:
  safetensors.save(tensors, folder / "model.safetensors", {"format": "pt"})


def _save_decoder(
  which: rows.Module, decoder: decoders.Decoder, seen: np.ndarray, folder: Path
) -> None:
  """A decoder that projects vectors such as these, float[..., D], by `_white`."""
  params = trees.flatten(nnx.to_pure_dict(nnx.state(decoder, nnx.Param)), f"{which}/")
  first = f"{which}/{FIRST[which]}"
  found = _white(seen.reshape(-1, seen.shape[-1]), np.asarray(params[f"{first}/kernel"]))
  params |= {f"{first}/{name}": value for name, value in found.items()}
  made = dict(table.export(rows.decoder_rows(which, ()), params))
  safetensors.save(made, folder / f"{own.STEMS[which][0]}.safetensors", {"format": "pt"})


def _white(vectors: np.ndarray, kernel: np.ndarray) -> Tensors:
  """Kernel and bias of a projection such that vectors are white to it.

  What is predicted of a caption that leaves places open differs from others by little: of the
  miniature's vectors, whose mean is 277 long, by 20 in all directions together. Behind a kernel
  that is drawn at random, and the norm after it, the mean would be nearly all that is left.

  Args:
    vectors: float[n, D]. kernel: [D, C], of a new decoder.
  """
  mean = vectors.mean(0, dtype=np.float64)
  variances, axes = np.linalg.eigh(np.cov(vectors.T.astype(np.float64)))
  whitening = axes / np.sqrt(np.maximum(variances, 0) + LEAST * variances[-1]) @ axes.T
  white = whitening @ kernel
  return {"kernel": white.astype(np.float32), "bias": (-mean @ white).astype(np.float32)}


def _head(loaded: verbs.Model, made: batches.Batches, pictures: np.ndarray) -> np.ndarray:
  """The head [D, D], as it is stored, by least squares over the places of pictures in prompts."""
  asked = [prompts.QUESTION] * len(pictures)
  given = batches.batch(made.asking(asked, [[Image.fromarray(each)] for each in pictures]))
  module: Any = nnx.merge(loaded.network.graphdef, loaded.network.params)
  seen = module.seen(given["tokens"], *places.shown(given))
  hidden, at = module.hidden(given, seen), given["tokens"] == loaded.cfg.image_token
  found, *_ = np.linalg.lstsq(np.asarray(hidden)[at], np.asarray(seen)[at], rcond=None)
  return np.ascontiguousarray(found.T)
