"""Folders in Nexus-Gen's layouts for the tests of its files, made from the recorded miniature."""

from pathlib import Path
import shutil

import checkpoints
from checkpoints import Values
import numpy as np
from safetensors.numpy import load_file
from safetensors.numpy import save_file

from blip3o_jax.weights import table
from blip3o_jax.weights.rows import flux

TINY = Path(__file__).parent / "data" / "tiny-nexus-gen"
ADDED = ("vision_head.weight", "image_prefill_embeds.weight")
DIT = "pipe.dit."
IMAGE = 503  # the id of a slot
GUIDANCE = "guidance_embedder/"


def copy(folder: Path, *, pickles: bool = False, null: bool = True) -> Path:
  """The miniature without its recording; decoders as safetensors or as pickles."""
  ending = "_decoder.safetensors" if pickles else "_decoder.bin"
  leave = shutil.ignore_patterns("io.safetensors", "*.md", f"*{ending}")
  shutil.copytree(TINY, folder, ignore=leave)
  if null:
    recorded = load_file(TINY / "io.safetensors")
    given = {"pooled": recorded["cond.pooled"][0], "context": recorded["cond.negative_context"][0]}
    save_file(given, folder / "null_condition.safetensors")
  return folder


def decoder(name: str = "generation_decoder") -> Values:
  """The tensors of a decoder's file."""
  return dict(load_file(TINY / f"{name}.safetensors"))


def transformer() -> Values:
  """Those of the generation decoder's transformer, without their prefix."""
  return {n.removeprefix(DIT): v for n, v in decoder().items() if n.startswith(DIT)}


def params(values: Values) -> Values:
  """The transformer's parameters by path, read row by row from DiffSynth's names."""
  rows = flux.rows("diffsynth")
  depth = {"double": 2, "single": 3}
  out: Values = {}
  for r in rows:
    layers = range(depth[r.paths[0].split("/")[0]]) if "{}" in r.name else None
    for i, path in enumerate(r.paths):
      if layers is None:
        out[path] = _cut(values[r.name], r, i)
      else:
        out[path] = np.stack([_cut(values[r.name.format(n)], r, i) for n in layers])
  return out


def _cut(value: np.ndarray, row: table.Row, part: int) -> np.ndarray:
  """One parameter's rows of a tensor; the last one takes what the others, of dim 48, leave."""
  if len(row.paths) > 1:
    stop = len(value) if part == len(row.paths) - 1 else 48 * (part + 1)
    value = value[48 * part : stop]
  return value.T if row.perm == table.LINEAR else value


def renamed(naming: flux.Naming, **options: flux.Order) -> Values:
  """The transformer in another naming, or in another order of its last halves."""
  made = flux.rows(naming, **options)  # type: ignore[arg-type]
  return dict(table.export(made, params(transformer())))


def first_version(folder: Path) -> Path:
  """V1: no prefill table, and the generation decoder alone, its names without prefixes."""
  copy(folder)
  for name in ("generation_decoder", "edit_decoder"):
    (folder / f"{name}.safetensors").unlink()
  values = checkpoints.tensors(folder)
  checkpoints.write(folder, {n: v for n, v in values.items() if n != ADDED[1]}, shards=2)
  bare = {n.removeprefix("adapter.").removeprefix(DIT): v for n, v in decoder().items()}
  save_file(bare, folder / "decoder_81_512.safetensors", metadata={"format": "pt"})
  return folder


def plain_qwen(folder: Path) -> Path:
  """The language model and vision tower alone, with their JSON files."""
  leave = shutil.ignore_patterns("*.safetensors*", "*.bin", "*.md", "tiny.json")
  shutil.copytree(TINY, folder, ignore=leave)
  values = {n: v for n, v in checkpoints.tensors(TINY).items() if n not in ADDED}
  checkpoints.write(folder, values)
  return folder
