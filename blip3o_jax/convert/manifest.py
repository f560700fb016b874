"""The record of a conversion, `blip3o.json`: what the arrays are and how their files lay.

`store` reads the format version, and each component's fingerprint; export reads `parts`.
"""

from collections.abc import Sequence
import dataclasses
import json
from typing import Any

import blip3o_jax
from blip3o_jax.convert import licences
from blip3o_jax.convert import pieces
from blip3o_jax.convert.source import Origin
from blip3o_jax.convert.source import Part
from blip3o_jax.weights import safetensors
from blip3o_jax.weights import store


def make(
  found: Origin,
  done: Sequence[tuple[pieces.Piece, pieces.Result]],
  *,
  cast: str,
  tied: Sequence[str],
) -> dict[str, Any]:
  """The record of a finished conversion, JSON-ready.

  Args:
    found: the source. done: all pieces and what came of them. cast: a dtype of
      `safetensors.DTYPES` that all were cast to, or "". tied: heads that equal the embedding, and
      are not stored.
  """
  components: dict[str, dict[str, Any]] = {}
  odd: dict[str, int] = {}
  told: dict[str, list[Any]] = {}
  for piece, result in done:
    name = store.component(piece.path)
    facts = components.setdefault(
      name, {"parameters": 0, "bytes": 0, "dtypes": {}, "files": [], "fingerprint": ""}
    )
    facts["parameters"] += piece.count
    facts["bytes"] += piece.count * piece.dtype.itemsize
    kind = str(piece.dtype)
    facts["dtypes"][kind] = facts["dtypes"].get(kind, 0) + piece.count
    if piece.tensor:
      file = str(piece.part.tensors.where(piece.tensor)[0].relative_to(found.directory))
      facts["files"] += [file] if file not in facts["files"] else []
    if result.odd:
      odd[piece.tensor] = odd.get(piece.tensor, 0) + result.odd
    line = (piece.path, piece.layer, piece.dtype, piece.torch_shape, result.digest)
    told.setdefault(name, []).append(line)
  for name, facts in components.items():
    facts["fingerprint"] = pieces.fingerprint(told[name])
    facts["licence"] = dataclasses.asdict(licences.of(name, found.cfg, facts))
  parts: dict[int, tuple[Part, set[str]]] = {}
  for piece, _ in done:
    parts.setdefault(id(piece.part), (piece.part, set()))[1].add(piece.tensor)
  return {
    "format_version": store.FORMAT_VERSION,
    "blip3o_jax": blip3o_jax.__version__,
    "source": str(found.directory.absolute()),
    "components": components,
    "not_finite": odd,
    "licences": licences.declared(found.directory),
    "config": dataclasses.asdict(found.cfg) if found.cfg else None,
    "parts": [layout(part, taken | set(tied), cast) for part, taken in parts.values()],
  }


def layout(part: Part, taken: set[str], cast: str = "") -> dict[str, Any]:
  """How those tensors of a part that are `taken` lay in files, in the order of their bytes."""
  tensors, index = part.tensors, part.tensors.index
  listed: dict[str, dict[str, Any]] = {
    file.name: {"metadata": metadata, "tensors": {}} for file, metadata in tensors.files.items()
  }
  for name in sorted(set(tensors) & taken, key=lambda n: tensors.where(n)[1]):
    dtype = tensors.dtype(name)
    kind = cast if cast and pieces.is_float(dtype) else safetensors.NAMES[dtype]
    listed[tensors.where(name)[0].name]["tensors"][name] = kind
  out: dict[str, Any] = {"kind": part.kind, "folder": part.folder, "index": None, "files": listed}
  if index is not None:
    found = json.loads(index.read_text())
    out["index"] = {"name": index.name, "metadata": found.get("metadata", {})}
    if set(tensors) > taken:  # the sum of the files' sizes holds no more
      out["index"]["dropped"] = len(set(tensors) - taken)
  return out
