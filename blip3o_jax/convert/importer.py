"""A released directory to a converted one: `convert.py import`. Copied by `weights.stream`."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from blip3o_jax import files
from blip3o_jax import systems
from blip3o_jax.convert import licences
from blip3o_jax.convert import manifest
from blip3o_jax.convert import source as origins
from blip3o_jax.systems.parts.opened import Opened
from blip3o_jax.weights import hashes
from blip3o_jax.weights import safetensors
from blip3o_jax.weights import store
from blip3o_jax.weights import stream
from blip3o_jax.weights import table

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
ROWS = 4096  # of two tables, compared at a time
Plan = dict[str, table.Source]


def run(
  source: str | Path,
  output: str | Path,
  take: origins.Take = origins.ALL,
  *,
  dtype: str = "",
  vocab_size: str = "auto",
  algorithm: str = hashes.DEFAULT,
  say: files.Say = print,
) -> dict[str, Any]:
  """Converts a directory; returns the manifest that is written beside the arrays.

  Args:
    source, take: see `source.look`. output: must not exist, or be empty.
    dtype: of all floating parameters; "" keeps what is stored. vocab_size: rows of the
      table, "keep" or "auto", see `layout.Layout`.
    algorithm: of the fingerprints, see `hashes`. say: takes lines about what is done.

  Raises:
    FileNotFoundError, FileExistsError, ValueError, OSError: what is wrong with source or output is
      found before anything is written, but for a disk that others fill meanwhile and a cast that
      overflows; nothing is left of the output then.
  """
  kind = dtype_code(dtype)
  hashes.new(algorithm)
  place = files.Place(Path(output), Path(source))
  found = origins.look(source, take)
  for note in found.notes:
    say(note)
  parts, plans, change = _changed(found, vocab_size, say)
  cast = safetensors.DTYPES[kind] if kind else None
  work = [
    piece for part, plan in zip(parts, plans, strict=True) for piece in stream.cut(part, plan, cast)
  ]
  place.make_room(total := sum(p.count * p.dtype.itemsize for p in work))
  tied = [name for part in parts for name in _tied(part)]
  dropped = origins.leftovers(parts, tied)
  for family, (count, why) in dropped.items():
    say(f"dropped: {family}, {count} tensor(s), {why}")
  with place as folder:
    for name in files.copy_files(found.directory, folder, skip=_weights(found) | found.apart()):
      say(f"{name}: not copied, weights of nothing that is converted")
    if change is not None:
      change.write(folder)
    components = systems.SYSTEMS[found.system].COMPONENTS
    progress = files.Progress("imported", total, say)
    results = _write(folder / store.FOLDER, work, components, algorithm, progress)
    done = list(zip(work, results, strict=True))
    out = manifest.make(found, done, algorithm=algorithm, cast=kind, tied=tied)
    out["dropped"] = {family: count for family, (count, _) in dropped.items()}
    out["changes"] = {"dtype": dtype} if dtype else {}
    out["changes"] |= {"weights": take.weights} if take.weights else {}
    out["changes"] |= {"vocab_size": dataclasses.asdict(change)} if change else {}
    (folder / store.MANIFEST).write_text(json.dumps(out, indent=1) + "\n")
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


def _changed(
  found: origins.Found, vocab_size: str, say: files.Say
) -> tuple[Sequence[Opened], Sequence[Plan], Any]:
  """(parts, plans, change) with the vocabulary that is asked for; the change is None without."""
  if found.layout.vocabulary is None:
    if vocab_size not in ("auto", "keep"):
      raise ValueError(f"--vocab-size {vocab_size}: {found.directory} has no vocabulary to change")
    return found.parts, found.leaves.plans, None
  change = found.layout.vocabulary(vocab_size)
  if change is None:
    return found.parts, found.leaves.plans, None
  say(str(change))
  parts = [change.apply(part) for part in found.parts]
  return parts, [part.plan("with the changed vocabulary") for part in parts], change


def _tied(part: Opened) -> list[str]:
  """Tensors without a parameter whose bytes are those of the one that they are tied to."""
  left = set(part.leftovers())
  return [
    name for name, other in part.part.ties.items() if name in left and _equal(part, name, other)
  ]


def _equal(part: Opened, name: str, other: str) -> bool:
  """Whether two tables hold the same bytes."""
  tensors = part.tensors
  if other not in tensors or tensors[name] != tensors[other]:
    return False
  one, two = tensors.view(name), tensors.view(other)
  count, width = tensors[name]
  for start in range(0, count, ROWS):
    index = (slice(start, min(start + ROWS, count)), slice(0, width))
    a, b = (np.ascontiguousarray(t[index]).view(np.uint8) for t in (one, two))
    if not np.array_equal(a, b):
      return False
  return True


def _weights(found: origins.Found) -> set[Path]:
  """Files of a source that are weights, or say where they are: they are not copied as they are."""
  out = set(found.unread)
  for part in found.parts:
    out |= set(part.tensors.files)
    out |= {part.tensors.index} if part.tensors.index else set()
  return out


def _write(
  folder: Path,
  work: Sequence[stream.Piece],
  components: Mapping[str, str],
  algorithm: str,
  progress: files.Progress,
) -> list[stream.Result]:
  """Writes all components, the pieces in the order given."""
  writers: dict[str, store.Writer] = {}
  declared = set()
  for piece in work:
    name = components[piece.module]
    if name not in writers:
      writers[name] = store.Writer(folder / name)
    if piece.path not in declared:
      declared.add(piece.path)
      writers[name].add(piece.path, piece.shape, piece.dtype, piece.block)

  def copy(piece: stream.Piece) -> stream.Result:
    result = stream.copy(piece, writers[components[piece.module]], algorithm)
    progress.add(piece.count * piece.dtype.itemsize)
    return result

  results = stream.in_parallel(copy, work)
  for writer in writers.values():
    writer.close()
  progress.end()
  return results
