"""Small checkpoints in PyTorch's layout for the tests of conversion, made from the recorded one."""

import json
from pathlib import Path
import shutil
from typing import Any

from ml_dtypes import bfloat16
import numpy as np
from safetensors.numpy import save_file

from blip3o_jax.weights.safetensors import Tensors

TINY = Path(__file__).parent / "data" / "tiny-blip3o"
TOWER = "model.gen_vision_tower.vision_tower.model."
Values = dict[str, np.ndarray]


def tensors(folder: Path = TINY, stem: str = "model") -> Values:
  """All tensors of a folder."""
  found = Tensors(folder, stem)
  return {name: found.read(name) for name in found}


def shifted(values: Values) -> Values:
  """Other values under the same names: an average."""
  return {name: (v + 1).astype(v.dtype) for name, v in values.items()}


def under(prefix: str, values: Values) -> Values:
  return {prefix + name: v for name, v in values.items()}


def write(folder: Path, values: Values, *, shards: int = 1, stem: str = "model") -> None:
  """Writes one file, or several and their index; older ones of the stem are removed."""
  folder.mkdir(parents=True, exist_ok=True)
  for old in folder.glob(f"{stem}*.safetensors*"):
    old.unlink()
  values = {name: np.ascontiguousarray(v) for name, v in values.items()}
  if shards == 1:
    save_file(values, folder / f"{stem}.safetensors", metadata={"format": "pt"})
    return
  order, places = list(values), {}
  for i in range(shards):
    mine, file = order[i::shards], f"{stem}-{i + 1:05d}-of-{shards:05d}.safetensors"
    save_file({n: values[n] for n in mine}, folder / file, metadata={"format": "pt"})
    places |= dict.fromkeys(mine, file)
  total = sum(v.nbytes for v in values.values())
  text = json.dumps({"metadata": {"total_size": total}, "weight_map": places})
  (folder / f"{stem}.safetensors.index.json").write_text(text)


def copy(folder: Path, *, decoder: bool = True) -> Path:
  """The recorded miniature, without its recordings and the tower's second copy."""
  leave = shutil.ignore_patterns(
    "io.safetensors", "eva_clip_vision_tower", *([] if decoder else ["diffusion-decoder"])
  )
  shutil.copytree(TINY, folder, ignore=leave)
  return folder


def edit(file: Path, **changes: Any) -> None:
  """Changes fields of a JSON file; None removes one."""
  values = json.loads(file.read_text()) | changes
  file.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


def plain_qwen(folder: Path, *, newer: bool = False, tied: bool = False) -> Path:
  """The language model and vision tower alone, as a Qwen2.5-VL checkpoint in bfloat16.

  Its tokenizer has 507 ids, and lacks BLIP3-o's three tokens; the table has 600 rows.
  """
  folder.mkdir(parents=True)
  kept = {
    n: v.astype(bfloat16)
    for n, v in tensors().items()
    if not n.startswith(("model.dit", "model.gen_", "model.latent"))
    if n != "lm_head.weight" or not tied
  }
  if newer:
    kept = {_newer(n): v for n, v in kept.items()}
  write(folder, kept, shards=2)
  values = json.loads((TINY / "config.json").read_text())
  own = ("n_query", "gen_vision_tower", "gen_pooling", "gen_hidden_size", "architectures")
  values = {k: v for k, v in values.items() if k not in own}
  values |= {"model_type": "qwen2_5_vl", "tie_word_embeddings": tied}
  (folder / "config.json").write_text(json.dumps(values))
  tokenizer = json.loads((TINY / "tokenizer.json").read_text())
  kept_tokens = [t for t in tokenizer["added_tokens"] if t["id"] not in (505, 506, 507)]
  moved = {508: 505, 509: 506}
  tokenizer["added_tokens"] = [t | {"id": moved.get(t["id"], t["id"])} for t in kept_tokens]
  (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
  (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 512}))
  (folder / "generation_config.json").write_text(json.dumps({"do_sample": True}))
  return folder


def _newer(name: str) -> str:
  """The name that transformers gives a tensor since 4.52."""
  for old, new in (("visual.", "model.visual."), ("model.", "model.language_model.")):
    if name.startswith(old):
      return new + name.removeprefix(old)
  return name


def same_tensors(one: Path, other: Path, stem: str = "model") -> None:
  """Fails unless two folders hold the same tensors bit for bit, in the same files."""
  a, b = Tensors(one, stem), Tensors(other, stem)
  assert set(a) == set(b)
  for name in a:
    assert a.where(name)[0].name == b.where(name)[0].name
    x, y = a.read(name), b.read(name)
    assert (x.dtype, x.shape) == (y.dtype, y.shape), name
    assert x.tobytes() == y.tobytes(), name
