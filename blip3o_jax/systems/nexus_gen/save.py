"""A run's directory in the released layout: what is copied, its files, and its JSON files."""

from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
import json
from pathlib import Path
from typing import Any

from blip3o_jax import files
from blip3o_jax import trees
from blip3o_jax.data.text import tokenizer as tokenizers
from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.systems.nexus_gen import constants
from blip3o_jax.systems.nexus_gen import released
from blip3o_jax.systems.nexus_gen.layout import AE
from blip3o_jax.systems.nexus_gen.layout import HEAD
from blip3o_jax.systems.nexus_gen.layout import MAIN
from blip3o_jax.systems.nexus_gen.layout import STEMS
from blip3o_jax.systems.nexus_gen.model import Config
from blip3o_jax.systems.nexus_gen.prompts import SPECIAL
from blip3o_jax.systems.parts import diffusers_files
from blip3o_jax.systems.parts import layout

VAE = diffusers_files.FOLDERS["autoencoder"]
# Module -> the kinds of files that hold it, the released one first, with its stem.
KINDS: dict[str, tuple[tuple[str, ...], str]] = {
  "generator": (("generator",), STEMS["generator"][0]),
  "editor": (("editor",), STEMS["editor"][0]),
  "autoencoder": ((AE, "autoencoder"), AE),
  "constants": (("constants",), constants.STEM),
}


def exported(
  cfg: Config, bases: Sequence[layout.Base], paths: Collection[str], tokenizer: Path | None
) -> layout.Export:
  """The directory that a run becomes: main files, decoders, autoencoder, null condition.

  Args:
    cfg: of the run. bases: the directories that it started from, in order. paths: of all leaves of
      these and of the run. tokenizer: a directory, for a run that started from no model.

  Raises:
    ValueError: no base with a config.json, and no tokenizer.
  """
  del cfg
  base = layout.model_of(bases, tokenizer)
  # A transformer that a decoder began with is no decoder: a run of the other one leaves it.
  half = [f"{m}/" for m in ("generator", "editor") if not _is_whole(m, paths)]
  dropped = frozenset(path for path in paths if path.startswith(tuple(half)))
  modules = {trees.top(path) for path in set(paths) - dropped}
  held = {part["kind"]: part for part in (base.parts if base else ())}
  main = _own(held.get("model") or layout.new_part("model", "", layout.MAIN[0], ()))
  out, extra = [{**main, "modules": sorted(MAIN)}], []
  for module in (m for m in KINDS if m in modules):
    found = [
      (b, part)
      for b in reversed(bases)
      for part in b.parts
      if part["kind"] in KINDS[module][0] and module in part["modules"]
    ]
    if not found:
      stem = KINDS[module][1]
      single = {} if module == "constants" else {"single": True}
      kind = KINDS[module][0][0]
      out.append(layout.new_part(kind, "", stem, [module]) | single)
      continue
    where, part = found[0]
    if where is base:
      out.append(_own(part))
    elif part["kind"] == "autoencoder":
      out.append(_own(part) | {"folder": VAE})
      extra.append((where.directory / part["folder"], VAE))
    else:
      out.append(_own(part) | {"folder": ""})
  return layout.Export(None if base is None else base.directory, tuple(out), tuple(extra), dropped)


def _is_whole(module: str, paths: Collection[str]) -> bool:
  """Whether there is more of a decoder than its transformer."""
  return any(p.startswith(f"{module}/") and not p.startswith(f"{module}/dit/") for p in paths)


def _own(part: Mapping[str, Any]) -> dict[str, Any]:
  """A part without the system that read it; its tensors are named as this one names them."""
  return {name: value for name, value in part.items() if name != "system"}


def write_json(cfg: Config, export: layout.Export, folder: Path, tokenizer: Path | None) -> None:
  """Writes config.json and tiny.json where a run's sizes are not those of its base.

  tiny.json is also written where the main files are a plain Qwen2.5-VL's: by it such a directory is
  known.

  Args:
    export: of `exported`. folder: with the files of the base. tokenizer: as there.

  Raises:
    ValueError: files that would not say what the run is.
  """
  if tokenizer is not None and not (folder / "config.json").is_file():
    tokenizers.copy_files(tokenizer, folder)
  ids = Tokenizer.load(folder, SPECIAL)
  mine = released.sizes_json(cfg)
  path, tiny = folder / "config.json", folder / "tiny.json"

  def told() -> dict[str, Any]:
    found = released.read(folder, "float32")[0]
    values = layout.Files(folder / VAE).json("config.json")
    if values:
      found = released.with_autoencoder(found, diffusers_files.vae_config(values), VAE)
    return released.sizes_json(found)

  found = files.read_json(path, nulls=True) if path.is_file() else {}
  same = bool(found) and told() == mine
  if not same:
    wanted = released.config_json(cfg, eos=ids.im_end, pad=ids.pad)
    path.write_text(json.dumps({**found, **wanted}, indent=2) + "\n")
  if not same or not (tiny.is_file() or _is_release(export)):
    settings = released.read_settings(folder)
    tiny.write_text(
      json.dumps(released.tiny_json(cfg, settings, dict(ids.special)), indent=2) + "\n"
    )
  layout.refuse_lost(told(), mine)


def _is_release(export: layout.Export) -> bool:
  """Whether the base's main files have what a Qwen2.5-VL lacks."""
  files_of = [p["files"].values() for p in export.parts if p["kind"] == "model"]
  return any(HEAD in file["tensors"] for held in files_of for file in held)
