"""A released directory to a converted one: `convert.py import`. See `pieces` for the streaming."""

from collections.abc import Sequence
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from blip3o_jax.convert import licences
from blip3o_jax.convert import manifest as records
from blip3o_jax.convert import pieces
from blip3o_jax.convert import resized
from blip3o_jax.convert import source as origins
from blip3o_jax.convert import vocabulary
from blip3o_jax.convert.place import Place
from blip3o_jax.convert.place import copy_files
from blip3o_jax.convert.place import in_parallel
from blip3o_jax.convert.progress import Progress
from blip3o_jax.convert.progress import Say
from blip3o_jax.systems.parts.diffusers_files import FOLDER
from blip3o_jax.weights import safetensors
from blip3o_jax.weights import store
from blip3o_jax.weights import table

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
ROWS = 4096  # of two tables, compared at a time
Plan = dict[str, table.Source]


def run(
  source: str | Path,
  output: str | Path,
  *,
  dtype: str = "",
  allow_pickle: bool = False,
  vocab_size: str = "auto",
  only: Sequence[str] = (),
  say: Say = print,
) -> dict[str, Any]:
  """Converts a directory; returns the record that is written beside the arrays.

  Args:
    source: see `origin.look`. output: must not exist, or be empty.
    dtype: of all floating parameters; "" keeps what is stored. vocab_size: see
      `vocabulary.wanted`. only: components to take. say: takes lines about what is done.

  Raises:
    FileNotFoundError, FileExistsError, ValueError, OSError: what is wrong with source or output is
      found before anything is written, but for a disk that others fill meanwhile.
  """
  kind = dtype_code(dtype)
  place = Place(Path(output), Path(source))
  found = origins.look(source, allow_pickle=allow_pickle, only=only)
  for note in found.notes:
    say(note)
  plans = found.plans()
  change = vocabulary.wanted(found, vocab_size)
  parts = list(found.parts)
  if change is not None:
    say(str(change))
    parts, plans = _resized(parts, plans, change)
  cast = safetensors.DTYPES[kind] if kind else None
  work = [
    piece for part, plan in zip(parts, plans, strict=True) for piece in pieces.cut(part, plan, cast)
  ]
  place.make_room(total := sum(p.count * p.dtype.itemsize for p in work))
  tied, dropped = _leftovers(parts, say)
  with place as folder:
    skip = _weights(found) | ({found.directory / FOLDER} if _leaves_decoder(found) else set())
    for name in copy_files(found.directory, folder, skip=skip):
      say(f"{name}: not copied, weights of nothing that is converted")
    if change is not None:
      vocabulary.write(folder, change)
    results = _write(folder / store.FOLDER, work, Progress("imported", total, say))
    out = records.make(found, list(zip(work, results, strict=True)), cast=kind, tied=tied)
    out["dropped"] = dropped
    out["changes"] = {"dtype": dtype} if dtype else {}
    out["changes"] |= {"vocab_size": dataclasses.asdict(change)} if change else {}
    (folder / store.RECORD).write_text(json.dumps(out, indent=1) + "\n")
  for name, count in out["not_finite"].items():
    say(f"warning: {name} holds {count} values that are NaN or infinite")
  for line in licences.lines(out["components"]):
    say(line)
  return out


def dtype_code(dtype: str) -> str:
  """The code in a safetensors header of a dtype that can be asked for; "" for "".

  Raises:
    ValueError: another dtype.
  """
  if dtype and dtype not in DTYPES:
    raise ValueError(f"--dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
  return DTYPES.get(dtype, "")


def _resized(
  parts: list[origins.Part], plans: list[Plan], change: vocabulary.Change
) -> tuple[list[origins.Part], list[Plan]]:
  """The parts and plans with a changed vocabulary in the main files."""
  for i, part in enumerate(parts):
    if part.kind != "model":
      continue
    params = dict(part.params)
    for path, axis in (("backbone/embed_tokens/embedding", 0), ("backbone/lm_head/kernel", 1)):
      if path in params:
        old = params[path]
        params[path] = (*old[:axis], change.after, *old[axis + 1 :])
    assert not isinstance(part.tensors, resized.Resized)
    tensors = resized.Resized(part.tensors, change.after, change.known)
    parts[i] = dataclasses.replace(part, tensors=tensors, params=params, fields=())
    plans[i] = parts[i].plan("with the changed vocabulary")
  return parts, plans


def _leftovers(parts: Sequence[origins.Part], say: Say) -> tuple[list[str], dict[str, int]]:
  """What of the files is not taken: (tied heads, {first two words of names: tensors}); says it."""
  tied: list[str] = []
  rest: list[str] = []
  for part in parts:
    for name in part.leftovers():
      is_tied = name == resized.HEAD and _equals_embedding(part)
      (tied if is_tied else rest).append(name)
  out = origins.families(rest)
  known = {
    "model.vae": "the autoencoder of an earlier design, which nothing reads",
    resized.HEAD: "not the embedding's values, though config.json ties it to them",
  }
  for key, count in out.items():
    say(f"dropped: {key}, {count} tensor(s), {known.get(key, 'not asked for')}")
  return tied, out


def _equals_embedding(part: origins.Part) -> bool:
  """Whether a head that is tied holds the embedding's bytes."""
  name = next((n for n in part.tensors if n.endswith(resized.EMBEDDING)), None)
  if name is None or part.tensors[name] != part.tensors[resized.HEAD]:
    return False
  head, table_ = part.tensors.view(resized.HEAD), part.tensors.view(name)
  count, width = part.tensors[name]
  for start in range(0, count, ROWS):
    index = (slice(start, min(start + ROWS, count)), slice(0, width))
    a, b = (np.ascontiguousarray(t[index]).view(np.uint8) for t in (head, table_))
    if not np.array_equal(a, b):
      return False
  return True


def _weights(found: origins.Origin) -> set[Path]:
  """Files of a source that are weights, or say where they are: they are not copied as they are."""
  out = set(found.unread)
  for part in found.parts:
    out |= set(part.tensors.files)
    out |= {part.tensors.index} if part.tensors.index else set()
  return out


def _leaves_decoder(found: origins.Origin) -> bool:
  """Whether the pixel decoder beside a model is not taken; a reader must not look for it then."""
  kinds = {part.kind for part in found.parts}
  return "model" in kinds and not kinds & {"unet", "autoencoder"}


def _write(folder: Path, work: Sequence[pieces.Piece], progress: Progress) -> list[pieces.Result]:
  """Writes all components, the pieces in the order given."""
  writers: dict[str, store.Writer] = {}
  declared = set()
  for piece in work:
    name = store.component(piece.path)
    if name not in writers:
      writers[name] = store.Writer(folder / name)
    if piece.path not in declared:
      declared.add(piece.path)
      writers[name].add(piece.path, piece.shape, piece.dtype, piece.block)

  def copy(piece: pieces.Piece) -> pieces.Result:
    result = pieces.copy(piece, writers[store.component(piece.path)])
    progress.add(piece.count * piece.dtype.itemsize)
    return result

  results = in_parallel(copy, work)
  for writer in writers.values():
    writer.close()
  progress.end()
  return results
