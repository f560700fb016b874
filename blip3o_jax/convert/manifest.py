"""What a directory says of itself: `converted.json`, how tensors lie in files, and all in words.

`store` reads the format version and each component's fingerprint, export the parts. A part of a
manifest is a dict: system, kind, folder, stem, modules, ties, index, files.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import json
import math
from pathlib import Path
import re
from typing import Any

import blip3o_jax
from blip3o_jax import config
from blip3o_jax import files
from blip3o_jax import systems
from blip3o_jax import trees
from blip3o_jax.convert import licences
from blip3o_jax.convert.parameters import Leaves
from blip3o_jax.convert.parameters import Run
from blip3o_jax.convert.source import Found
from blip3o_jax.convert.source import leftovers
from blip3o_jax.convert.source import look
from blip3o_jax.systems.parts import layout
from blip3o_jax.systems.parts.opened import Opened
from blip3o_jax.train import checkpoint
from blip3o_jax.weights import safetensors
from blip3o_jax.weights import store
from blip3o_jax.weights import stream
from blip3o_jax.weights.table import Shape

SHARD_BYTES = 5 * 10**9
METADATA = {"format": "pt"}
COLUMNS = ("component", "leaves", "parameters", "bytes", "dtype", "licence", "fingerprint")
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def make(
  found: Found,
  done: Sequence[tuple[stream.Piece, stream.Result]],
  *,
  algorithm: str,
  cast: str,
  tied: Sequence[str],
) -> dict[str, Any]:
  """The manifest of a finished conversion, JSON-ready.

  Args:
    found: the source. done: all pieces and what came of them. algorithm: of their digests. cast: a
      dtype of `safetensors.DTYPES` that all were cast to, or "". tied: heads that equal the
      embedding, and are not stored.
  """
  system = systems.SYSTEMS[found.system]
  components: dict[str, dict[str, Any]] = {}
  odd: dict[str, int] = {}
  told: dict[str, list[Any]] = {}
  for piece, result in done:
    name = system.COMPONENTS[piece.module]
    if name not in components:
      empty = {"parameters": 0, "bytes": 0, "dtypes": {}, "files": [], "fingerprint": ""}
      components[name] = {"modules": [], **empty}
    facts = components[name]
    facts["modules"] += [piece.module] if piece.module not in facts["modules"] else []
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
  said = licences.declared(found.directory)
  for name, facts in components.items():
    facts["fingerprint"] = stream.fingerprint(told[name], algorithm)
    facts["licence"] = licences.of(system.licence(name, found.cfg, facts["parameters"]), said)
  parts: dict[int, tuple[Any, set[str]]] = {}
  for piece, _ in done:
    parts.setdefault(id(piece.part), (piece.part, set()))[1].add(piece.tensor)
  return {
    "format_version": store.FORMAT_VERSION,
    "system": found.system,
    "blip3o_jax": blip3o_jax.__version__,
    "source": str(found.directory.absolute()),
    "components": components,
    "not_finite": odd,
    "licences": said,
    "config": dataclasses.asdict(found.cfg) if found.cfg else None,
    "parts": [entry(found.system, p, taken | set(tied), cast) for p, taken in parts.values()],
  }


def entry(system: str, opened: Opened, taken: set[str], cast: str = "") -> dict[str, Any]:
  """A part as a manifest has it: how its tensors that are `taken` lay in files, in order."""
  part, tensors, index = opened.part, opened.tensors, opened.tensors.index
  listed: dict[str, dict[str, Any]] = {
    file.name: {"metadata": metadata, "tensors": {}} for file, metadata in tensors.files.items()
  }
  for name in sorted(set(tensors) & taken, key=lambda n: tensors.where(n)[1]):
    dtype = tensors.dtype(name)
    kind = cast if cast and stream.is_float(dtype) else safetensors.NAMES[dtype]
    listed[tensors.where(name)[0].name]["tensors"][name] = kind
  out = layout.new_part(part.kind, part.folder, part.stems[0], part.modules)
  out |= {"system": system, "ties": dict(part.ties), "files": listed}
  out |= {"inside": list(part.inside)} if part.inside else {}
  out |= {"single": True} if part.single else {}
  if index is not None:
    found = json.loads(index.read_text())
    out["index"] = {"name": index.name, "metadata": found.get("metadata") or {}}
    dropped = len(set(tensors) - taken) + tensors.hidden
    if dropped:  # the sum of the files' sizes holds no more
      out["index"]["dropped"] = dropped
  return out


# Files ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class File:
  """One safetensors file. Attributes: name; metadata of its own; tensors in order."""

  name: str
  metadata: Mapping[str, str]
  tensors: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Sheet:
  """All files of a part. Attributes: files; index: (file name, content), None without one."""

  files: tuple[File, ...]
  index: tuple[str, dict[str, Any]] | None


def parse_size(text: str) -> int:
  """Bytes of "5GB", "300MB" or "1000000"; 0 of "".

  Raises:
    ValueError: anything else.
  """
  if not text:
    return 0
  match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG]?B?)", text.strip().upper())
  if match is None or match.group(2) not in UNITS or not float(match.group(1)):
    raise ValueError(f"--max-shard-size {text!r}: expected a size such as 5GB or 300MB")
  return int(float(match.group(1)) * UNITS[match.group(2)])


def sheet(
  part: Mapping[str, Any], tensors: Mapping[str, tuple[str, Shape]], max_bytes: int
) -> Sheet:
  """The files of a part: those of its source where they hold the same tensors, else new ones.

  Args:
    part: of a manifest. tensors: {name: (dtype code, shape)} of what is written.
    max_bytes: of a file; 0 keeps the source's files.
  """
  listed: Mapping[str, Any] = part["files"]
  before = [name for file in listed.values() for name in file["tensors"]]
  safe = all(name.endswith(".safetensors") for name in listed)
  bytes_of = {n: _bytes(code, shape) for n, (code, shape) in tensors.items()}
  if listed and safe and not max_bytes and set(before) == set(tensors):
    made = tuple(
      File(name, file["metadata"], tuple(file["tensors"])) for name, file in listed.items()
    )
    made = tuple(file for file in made if file.tensors)
    if part["index"] is None:
      if len(made) < 2:
        return Sheet(made, None)
      stem, variant = _stem(part["stem"], listed)  # shards that came without an index get one
      metadata = {"total_size": sum(bytes_of.values())}
      return Sheet(made, _index(f"{stem}.safetensors.index{variant}.json", made, metadata))
    unchanged = "dropped" not in part["index"] and all(
      tensors[n][0] == code for file in listed.values() for n, code in file["tensors"].items()
    )
    metadata = dict(part["index"]["metadata"] or {})
    if not unchanged or "total_size" not in metadata:
      metadata["total_size"] = sum(bytes_of.values())
    return Sheet(made, _index(part["index"]["name"], made, metadata))
  order = [n for n in before if n in tensors]
  order += sorted(set(tensors) - set(order), key=natural)
  limit = max_bytes or (sum(bytes_of.values()) if part.get("single") else SHARD_BYTES)
  return _cut(order, bytes_of, *_stem(part["stem"], listed), limit)


def natural(name: str) -> list[Any]:
  """A key that sorts names with their numbers as numbers."""
  return [(int(p), "") if p.isdigit() else (-1, p) for p in name.split(".")]


def _stem(stem: str, listed: Iterable[str]) -> tuple[str, str]:
  """(stem, variant) of the file names: ("diffusion_pytorch_model", ".bf16")."""
  variants = {v for name in listed for v in (".bf16", ".fp16") if name.startswith(f"{stem}{v}")}
  return stem, variants.pop() if len(variants) == 1 else ""


def _cut(
  order: Sequence[str], bytes_of: Mapping[str, int], stem: str, variant: str, limit: int
) -> Sheet:
  """Files of at most `limit` bytes, or of one larger tensor."""
  groups: list[list[str]] = [[]]
  size = 0
  for name in order:
    if groups[-1] and size + bytes_of[name] > limit:
      groups.append([])
      size = 0
    groups[-1].append(name)
    size += bytes_of[name]
  if len(groups) == 1:
    return Sheet((File(f"{stem}{variant}.safetensors", METADATA, tuple(groups[0])),), None)
  made = tuple(
    File(f"{stem}{variant}-{i:05d}-of-{len(groups):05d}.safetensors", METADATA, tuple(names))
    for i, names in enumerate(groups, 1)
  )
  metadata = {"total_size": sum(bytes_of.values())}
  return Sheet(made, _index(f"{stem}.safetensors.index{variant}.json", made, metadata))


def _index(
  name: str, made: Sequence[File], metadata: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
  places = {tensor: file.name for file in made for tensor in file.tensors}
  return name, {"metadata": dict(metadata), "weight_map": dict(sorted(places.items()))}


def _bytes(code: str, shape: Shape) -> int:
  return math.prod(shape) * safetensors.DTYPES[code].itemsize


# In words ----------------------------------------------------------------------------------------


def describe(directory: str | Path) -> dict[str, Any]:
  """What a released, converted or run directory holds, JSON-ready.

  Returns:
    "kind"; "components": {name: {"leaves", "parameters", "bytes", "dtypes", ...}}; of a run "step",
    "average" and "sources"; "notes"; "differences": lines of the config against the release's.

  Raises:
    FileNotFoundError, ValueError, WeightsError: none of these, or a damaged one.
  """
  path = Path(directory)
  if store.is_converted(path):
    return _converted(path)
  if checkpoint.is_run(path):
    return _run(path)
  found = look(path)
  system = systems.SYSTEMS[found.system]
  components = _count(found.leaves, system.COMPONENTS)
  said = licences.declared(path)
  for name, facts in components.items():
    facts["licence"] = licences.of(system.licence(name, found.cfg, facts["parameters"]), said)
  left = leftovers(found.parts)
  dropped = [f"not read: {name}, {count} tensor(s)" for name, (count, _) in left.items()]
  return {
    "kind": "released layout",
    "system": found.system,
    "components": components,
    "notes": [*found.notes, *dropped],
    "differences": system.differences(found.cfg) if found.cfg else [],
  }


def _converted(path: Path) -> dict[str, Any]:
  arrays = store.Arrays(path)
  name = systems.of(path)
  components = _count(arrays, systems.SYSTEMS[name].COMPONENTS)
  for component, facts in arrays.manifest["components"].items():
    components[component] |= {k: facts[k] for k in ("licence", "fingerprint")}
  cfg = systems.SYSTEMS[name].parts(layout.Files(path)).cfg if is_whole(arrays.manifest) else None
  notes = [f"converted from {arrays.manifest['source']}"]
  notes += [f"dropped: {n}, {count} tensor(s)" for n, count in arrays.manifest["dropped"].items()]
  notes += [f"changed: {name}, {value}" for name, value in arrays.manifest["changes"].items()]
  notes += [
    f"{n}: {count} values NaN or infinite" for n, count in arrays.manifest["not_finite"].items()
  ]
  return {
    "kind": f"converted, format {arrays.manifest['format_version']}",
    "system": name,
    "components": components,
    "notes": notes,
    "differences": systems.SYSTEMS[name].differences(cfg) if cfg else [],
  }


def _run(path: Path) -> dict[str, Any]:
  record = checkpoint.read_record(path)
  leaves = Run(path, "params", int(record["step"]))
  name = systems.of(path)
  system = systems.SYSTEMS[name]
  cfg = config.build(system.Config, record["model"], "model")
  notes = [
    f"from {s['path']}" + (f" ({s['item']})" if s["item"] else "") for s in record["sources"]
  ]
  return {
    "kind": f"run of {name}, blip3o_jax {record.get('version', 'unknown')}",
    "system": name,
    "step": int(record["step"]),
    "steps": checkpoint.steps(path),
    "average": bool(record["train"].get("ema_decay", 0)),
    "components": _count(leaves, system.COMPONENTS),
    "sources": record["sources"],
    "notes": notes,
    "differences": system.differences(cfg),
  }


def _count(leaves: Leaves, known: Mapping[str, str]) -> dict[str, dict[str, Any]]:
  """{component: numbers}; modules that are no component's stand by their own name."""
  out: dict[str, dict[str, Any]] = {}
  for path in leaves:
    module = trees.top(path)
    facts = out.setdefault(
      known.get(module, module), {"leaves": 0, "parameters": 0, "bytes": 0, "dtypes": {}}
    )
    count, dtype = math.prod(leaves[path]), leaves.dtype(path)
    facts["leaves"] += 1
    facts["parameters"] += count
    facts["bytes"] += count * dtype.itemsize
    facts["dtypes"][str(dtype)] = facts["dtypes"].get(str(dtype), 0) + count
  return out


def is_whole(manifest: Mapping[str, Any]) -> bool:
  """Whether a conversion is of a whole model, whose main files (in no folder) were taken."""
  return manifest["config"] is not None and any(not p["folder"] for p in manifest["parts"])


def lines(found: Mapping[str, Any]) -> list[str]:
  """The description as text."""
  out = [found["kind"] + (f", step {found['step']}" if "step" in found else "")]
  rows: list[tuple[str, ...]] = [COLUMNS]
  for name, facts in found["components"].items():
    told = licences.label(facts["licence"]) if "licence" in facts else ""
    rows.append((name, *_numbers(facts), told, facts.get("fingerprint", "")[:23]))
  total: dict[str, Any] = {"leaves": 0, "parameters": 0, "bytes": 0, "dtypes": {}}
  for facts in found["components"].values():
    for key in ("leaves", "parameters", "bytes"):
      total[key] += facts[key]
    total["dtypes"] |= facts["dtypes"]
  rows.append(("all", *_numbers(total), "", ""))
  widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
  out += ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
  if "steps" in found:
    average = "with" if found["average"] else "without"
    out.append(f"checkpoints: {', '.join(map(str, found['steps']))}, {average} an average (ema)")
  out += found["notes"]
  return out + _listed("config unlike the release's", found["differences"])


def _numbers(facts: Mapping[str, Any]) -> tuple[str, str, str, str]:
  dtypes = ", ".join(sorted(facts["dtypes"]))
  return str(facts["leaves"]), f"{facts['parameters']:,}", files.size(facts["bytes"]), dtypes


def _listed(title: str, found: Iterable[str]) -> list[str]:
  found = list(found)
  return [f"{title}:", *(f"  {line}" for line in found)] if found else []
