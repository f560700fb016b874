"""What is in a directory: components, numbers, bytes, dtypes, step, and how its config differs."""

from collections.abc import Iterable
from collections.abc import Mapping
import dataclasses
import math
from pathlib import Path
from typing import Any

from blip3o_jax import config
from blip3o_jax import trees
from blip3o_jax.convert import licences
from blip3o_jax.convert import source as origins
from blip3o_jax.convert.parameters import Leaves
from blip3o_jax.convert.parameters import Released
from blip3o_jax.convert.parameters import Run
from blip3o_jax.convert.progress import size
from blip3o_jax.systems import blip3o
from blip3o_jax.systems.blip3o import released
from blip3o_jax.systems.blip3o import sizes as released_sizes
from blip3o_jax.train import checkpoint
from blip3o_jax.weights import store

HEAD = ("component", "leaves", "parameters", "bytes", "dtype", "licence", "fingerprint")


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
  leaves = Released(path)
  components = _count(leaves)
  for name, facts in components.items():
    facts["licence"] = dataclasses.asdict(licences.of(name, leaves.origin.cfg, facts))
  left = origins.families(name for part in leaves.origin.parts for name in part.leftovers())
  dropped = [f"not read: {name}, {count} tensor(s)" for name, count in left.items()]
  return {
    "kind": "released layout",
    "components": components,
    "notes": [*leaves.origin.notes, *dropped],
    "differences": differences(leaves.origin.cfg),
  }


def _converted(path: Path) -> dict[str, Any]:
  arrays = store.Arrays(path)
  components = _count(arrays)
  for name, facts in arrays.record["components"].items():
    components[name] |= {k: facts[k] for k in ("licence", "fingerprint")}
  whole = any(part["kind"] == "model" for part in arrays.record["parts"])
  cfg = released.read(path, "float32")[0] if whole else None
  notes = [f"converted from {arrays.record['source']}"]
  notes += [f"dropped: {n}, {count} tensor(s)" for n, count in arrays.record["dropped"].items()]
  notes += [f"changed: {name}, {value}" for name, value in arrays.record["changes"].items()]
  notes += [
    f"{n}: {count} values NaN or infinite" for n, count in arrays.record["not_finite"].items()
  ]
  return {
    "kind": f"converted, format {arrays.record['format_version']}",
    "components": components,
    "notes": notes,
    "differences": differences(cfg),
  }


def _run(path: Path) -> dict[str, Any]:
  record = checkpoint.read_record(path)
  leaves = Run(path, "params", int(record["step"]))
  system = record.get("system", "")
  cfg = config.build(blip3o.Config, record["model"], "model") if system == "blip3o" else None
  notes = [
    f"from {s['path']}" + (f" ({s['item']})" if s["item"] else "") for s in record["sources"]
  ]
  return {
    "kind": f"run of {system}, blip3o_jax {record.get('version', 'unknown')}",
    "step": int(record["step"]),
    "steps": checkpoint.steps(path),
    "average": bool(record["train"].get("ema_decay", 0)),
    "components": _count(leaves),
    "sources": record["sources"],
    "notes": notes,
    "differences": differences(cfg),
  }


def _count(leaves: Leaves) -> dict[str, dict[str, Any]]:
  """{component: numbers}; modules that are no component's stand by their own name."""
  out: dict[str, dict[str, Any]] = {}
  for path in leaves:
    module = path.partition("/")[0]
    facts = out.setdefault(
      store.COMPONENTS.get(module, module), {"leaves": 0, "parameters": 0, "bytes": 0, "dtypes": {}}
    )
    count, dtype = math.prod(leaves[path]), leaves.dtype(path)
    facts["leaves"] += 1
    facts["parameters"] += count
    facts["bytes"] += count * dtype.itemsize
    facts["dtypes"][str(dtype)] = facts["dtypes"].get(str(dtype), 0) + count
  return out


def differences(cfg: blip3o.Config | None) -> list[str]:
  """Fields of config.json and tiny.json unlike the release nearest in width: "dim 64, not 2048"."""
  if cfg is None:
    return []
  sizes = {name: released_sizes.released(name) for name in ("4b", "8b")}
  near = min(sizes, key=lambda name: abs(sizes[name].backbone.dim - cfg.backbone.dim))
  mine, theirs = (trees.flatten(released.sizes_json(c)) for c in (cfg, sizes[near]))
  return [
    f"{field.replace('/', '.')}: {mine.get(field)}, {near} has {theirs.get(field)}"
    for field in mine | theirs
    if mine.get(field) != theirs.get(field)
  ]


def lines(found: Mapping[str, Any]) -> list[str]:
  """The description as text."""
  out = [found["kind"] + (f", step {found['step']}" if "step" in found else "")]
  rows: list[tuple[str, ...]] = [HEAD]
  for name, facts in found["components"].items():
    told = licences.label(facts["licence"]) if "licence" in facts else ""
    rows.append((name, *_numbers(facts), told, facts.get("fingerprint", "")[:16]))
  total: dict[str, Any] = {"leaves": 0, "parameters": 0, "bytes": 0, "dtypes": {}}
  for facts in found["components"].values():
    for key in ("leaves", "parameters", "bytes"):
      total[key] += facts[key]
    total["dtypes"] |= facts["dtypes"]
  rows.append(("all", *_numbers(total), "", ""))
  widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
  out += ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
  if "steps" in found:
    average = "with" if found["average"] else "without"
    out.append(f"checkpoints: {', '.join(map(str, found['steps']))}, {average} an average (ema)")
  out += found["notes"]
  return out + _listed("config unlike the release's", found["differences"])


def _numbers(facts: Mapping[str, Any]) -> tuple[str, str, str, str]:
  dtypes = ", ".join(sorted(facts["dtypes"]))
  return str(facts["leaves"]), f"{facts['parameters']:,}", size(facts["bytes"]), dtypes


def _listed(title: str, found: Iterable[str]) -> list[str]:
  found = list(found)
  return [f"{title}:", *(f"  {line}" for line in found)] if found else []
