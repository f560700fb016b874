"""Which tensor goes into which file, when a checkpoint is written in PyTorch's layout."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
import re
from typing import Any

from blip3o_jax.convert.source import STEMS
from blip3o_jax.convert.source import Kind
from blip3o_jax.weights import safetensors
from blip3o_jax.weights.table import Shape

SHARD_BYTES = 5 * 10**9
METADATA = {"format": "pt"}
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


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
    part: of a record. tensors: {name: (dtype code, shape)} of what is written.
    max_bytes: of a file; 0 keeps the source's files.
  """
  kind: Kind = part["kind"]
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
      return Sheet(made, None)
    unchanged = "dropped" not in part["index"] and all(
      tensors[n][0] == code for file in listed.values() for n, code in file["tensors"].items()
    )
    metadata = dict(part["index"]["metadata"])
    if not unchanged or "total_size" not in metadata:
      metadata["total_size"] = sum(bytes_of.values())
    return Sheet(made, _index(part["index"]["name"], made, metadata))
  order = [n for n in before if n in tensors]
  order += sorted(set(tensors) - set(order), key=natural)
  return _cut(order, bytes_of, *_stem(kind, listed), max_bytes or SHARD_BYTES)


def natural(name: str) -> list[Any]:
  """A key that sorts names with their numbers as numbers."""
  return [(int(p), "") if p.isdigit() else (-1, p) for p in name.split(".")]


def _stem(kind: Kind, listed: Iterable[str]) -> tuple[str, str]:
  """(stem, variant) of the file names: ("diffusion_pytorch_model", ".bf16")."""
  stem = STEMS[kind][0]
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
