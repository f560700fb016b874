"""A Nexus-Gen's directory: how it is recognised, which parts it has, what is known of releases.

Files of FLUX.1-dev (the autoencoder, the text encoders) may lie beside the model's or in a folder
FLUX.1-dev. A folder of a FLUX transformer alone is known too: either decoder can begin with it.
"""

from collections.abc import Collection
import dataclasses
import functools
from pathlib import Path
import re

from blip3o_jax import trees
from blip3o_jax.models import autoencoder
from blip3o_jax.models import flux
from blip3o_jax.systems.nexus_gen import constants
from blip3o_jax.systems.nexus_gen import fields
from blip3o_jax.systems.nexus_gen import prefill
from blip3o_jax.systems.nexus_gen import released
from blip3o_jax.systems.nexus_gen import rows
from blip3o_jax.systems.nexus_gen import sizes
from blip3o_jax.systems.nexus_gen.model import PARTS
from blip3o_jax.systems.nexus_gen.model import TRAINS
from blip3o_jax.systems.nexus_gen.model import Config
from blip3o_jax.systems.nexus_gen.model import Part
from blip3o_jax.systems.nexus_gen.model import Stage
from blip3o_jax.systems.nexus_gen.model import build
from blip3o_jax.systems.parts import decoder_files
from blip3o_jax.systems.parts import diffusers_files
from blip3o_jax.systems.parts import layout
from blip3o_jax.weights import store
from blip3o_jax.weights import table
from blip3o_jax.weights import wrapped
from blip3o_jax.weights.rows import autoencoder as autoencoder_rows
from blip3o_jax.weights.rows import flux as flux_rows

LOOKS_FOR = (
  "tensors vision_head or image_prefill_embeds beside a Qwen2.5-VL's; files generation_decoder, "
  "edit_decoder or decoder_81_512 (beside a plain Qwen2.5-VL only with a tiny.json); a FLUX "
  "transformer (transformer/config.json with _class_name FluxTransformer2DModel, or "
  "flux*.safetensors with no config.json)"
)
# Top-level module -> the component that it is stored in.
COMPONENTS = {
  "backbone": "backbone",
  "visual": "visual",
  **dict.fromkeys(("vision_head", "slots"), "head"),
  **{name: name for name in ("generator", "editor", "autoencoder", "constants")},
}
QWEN = ("visual", "backbone")
MAIN = (*QWEN, "vision_head", "slots")
HEAD = "vision_head.weight"
HOMES = ("", "FLUX.1-dev")  # where files of FLUX may lie
# Stems of the files of the decoders; the second one is V1's.
STEMS: dict[rows.Module, tuple[str, ...]] = {
  "generator": ("generation_decoder", "decoder_81_512"),
  "editor": ("edit_decoder",),
}
AE = "ae"  # of the autoencoder's file in BFL's names
FLUX = re.compile(r"(flux.*?)(-\d+-of-\d+)?\.safetensors", re.IGNORECASE)
DEV = layout.Licence("FLUX.1 [dev] Non-Commercial License", False)
NEXUS = layout.Licence("Apache-2.0 (Nexus-Gen, from Qwen2.5-VL-7B)", True)
KNOWN = {
  ("backbone", 7_615_616_512): NEXUS,
  ("visual", 676_550_144): NEXUS,
  ("head", 13_135_360): NEXUS,
  # Nexus-Gen's own adapter and merger are Apache-2.0; what they steer is trained from FLUX.1-dev.
  ("generator", 11_932_890_176): DEV,
  ("editor", 12_260_339_776): DEV,
  ("generator", 11_901_408_320): DEV,
  ("editor", 11_901_408_320): DEV,
  # Black Forest Labs gives the autoencoder, unlike the transformer, under Apache-2.0.
  ("autoencoder", 83_819_683): layout.Licence("Apache-2.0 (FLUX.1's autoencoder)", True),
  ("constants", 2_097_920): layout.Licence("MIT (CLIP) and Apache-2.0 (T5 1.1)", True),
}


def recognises(files: layout.Files) -> bool:
  """Whether a folder holds a Nexus-Gen, V1 or V2, its decoders alone, or a FLUX transformer."""
  names = files.names()
  if {HEAD, prefill.NAME} & names:
    return True
  plain = "vision_config" in files.json("config.json") and not files.has("tiny.json")
  if any(_stem(files, stems) for stems in STEMS.values()):
    return not (plain and names)
  return not files.json("config.json").get("vision_config") and _transformer(files) is not None


def parts(files: layout.Files) -> layout.Layout:
  """The parts of such a folder; of a plain Qwen2.5-VL language model and vision tower.

  Raises:
    FileNotFoundError, ValueError: JSON files that are absent or wrong, by file and field.
  """
  values, here = files.json("config.json"), files.directory
  whole = "vision_config" in values
  cfg = released.read(here, "float32")[0] if whole else None
  if store.is_converted(here):
    held = store.read_manifest(here)["components"].values()
    return layout.Layout(_held(cfg, {m for c in held for m in c["modules"]}), ())
  size = cfg or released.told(here, released.computing(sizes.released(), "float32"))
  said = whole or files.has("tiny.json")
  names = files.names()
  out: list[layout.Part] = []
  if whole and cfg is not None:
    out.append(_main(files, cfg, names))
  out += [found for which in STEMS if (found := _decoder(files, which, size, said))]
  found = None if whole or out else _transformer(files)
  out += [] if found is None else [found]
  pixels, size = _autoencoder(files, size, said)
  out += [] if pixels is None else [pixels]
  null = _constants(files, size, said)
  out += [] if null is None else [null]
  notes = [] if null is not None or not whole else [constants.absent(here)]
  modules = {m for part in out for m in part.modules if part.kind != "model"}
  modules |= set(QWEN if names and not names & {HEAD, prefill.NAME} else MAIN) if whole else set()
  return layout.Layout(_held(size if whole else None, modules), tuple(out), tuple(notes))


def _held(cfg: Config | None, modules: Collection[str]) -> Config | None:
  """The config with the parts of which a directory has the modules."""
  if cfg is None:
    return None
  has: list[Part] = [p for p in PARTS if p in modules or (p == "language" and "slots" in modules)]
  if "backbone" in modules and not set(TRAINS.values()) & set(has):
    has.append("language")  # a plain Qwen2.5-VL, of which it lacks the head
  stage = next((s for s, part in TRAINS.items() if part in has), None)
  if stage is None:
    return None
  return dataclasses.replace(cfg, parts=tuple(has), stage=stage)


def _stem(files: layout.Files, stems: Collection[str], folder: str = "") -> str:
  """The first of the stems of which there are weight files; "" without."""
  rest = r"(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?"
  place = files.directory / folder
  there = [path.name for path in place.iterdir()] if place.is_dir() else []
  return next((s for s in stems if any(re.fullmatch(re.escape(s) + rest, n) for n in there)), "")


def _main(files: layout.Files, cfg: Config, names: Collection[str]) -> layout.Part:
  """The main files: of V2, of V1 (no prefill table), or of a plain Qwen2.5-VL (no head either)."""
  first = HEAD in names and prefill.NAME not in names
  plain = bool(names) and not {HEAD, prefill.NAME} & set(names)
  modules = QWEN if plain else MAIN
  made = dataclasses.replace(cfg, parts=("visual", "language"), stage="language")
  traced = layout.shapes(lambda rngs: build(made, rngs))

  def shapes() -> dict[str, table.Shape]:
    return {path: s for path, s in traced().items() if trees.top(path) in modules}

  def read(found: layout.Files) -> table.Reader:
    return prefill.Repeated(found.tensors(), cfg.image_token, cfg.slots)

  embedding = next((n for n in names if n.endswith("embed_tokens.weight")), "")
  return layout.Part(
    "model",
    "",
    layout.MAIN,
    modules,
    shapes,
    {r".*rotary_emb\.inv_freq": "buffers that older versions of transformers saved"},
    {"lm_head.weight": embedding} if cfg.backbone.tie_embeddings else {},
    fields.main(cfg, names, files.json("config.json")),
    read=read if first else None,
  )


def _decoder(
  files: layout.Files, which: rows.Module, cfg: Config, said: bool
) -> layout.Part | None:
  """A decoder's file; None without one."""
  if not (stem := _stem(files, STEMS[which])):
    return None
  made = dataclasses.replace(cfg, parts=(which,), stage=_stage(which))
  shapes = layout.shapes(lambda rngs: build(made, rngs))
  told = fields.decoder(cfg, which, files.names("", (stem,))) if said else ()
  return layout.Part(which, "", (stem,), (which,), shapes, fields=told, single=True)


def _stage(which: str) -> Stage:
  return next(stage for stage, part in TRAINS.items() if part == which)


def _transformer(files: layout.Files) -> layout.Part | None:
  """A FLUX transformer by itself, under any names; None without one."""
  values, folder, stem = {}, "", ""
  for folder in ("transformer", ""):
    values = files.json(str(Path(folder) / "config.json"))
    if values.get("_class_name") == released.TRANSFORMER:
      stem = _stem(files, (diffusers_files.STEM, *layout.MAIN), folder)
      break
    values = {}
  where = str(files.directory / folder / "config.json")
  if not values and not files.has("config.json"):
    named = sorted({m[1] for p in files.directory.iterdir() if (m := FLUX.fullmatch(p.name))})
    stems = (*named, *layout.MAIN, diffusers_files.STEM)
    known = [s for s in stems if _stem(files, (s,)) and _is_flux(files.names("", (s,)))]
    stem = known[0] if known else ""
  if not stem:
    return None
  cfg = released.flux_config(values, where) if values else _flux_here(files)
  shapes = layout.shapes(lambda rngs: flux.Flux(cfg, rngs=rngs), "generator/dit/")

  def both() -> dict[str, table.Shape]:
    other = {path.replace("generator", "editor", 1): shape for path, shape in shapes().items()}
    return {**shapes(), **other}

  names = files.names(folder, (stem,))
  told = fields.transformer(cfg, names, "config.json" if values else "tiny.json dit")
  told = told if values or files.has("tiny.json") else ()

  def read(found: layout.Files) -> table.Reader:
    tensors = found.tensors(folder, (stem,))
    note = rows.order_told(tensors, files.json("tiny.json"))
    kept = wrapped.Taken({name: name for name in (*tensors, *tensors.absent)}, (note,))
    return wrapped.View(tensors, kept, next(iter(tensors.files)))

  inside = ("generator/dit/", "editor/dit/")
  modules = ("generator", "editor")
  found = layout.Part("transformer", folder, (stem,), modules, both, fields=told, inside=inside)
  return dataclasses.replace(found, read=read)


def _flux_here(files: layout.Files) -> flux.Config:
  """The transformer's sizes of tiny.json, or the release's."""
  where, cfg = str(files.directory / "tiny.json"), flux.VARIANTS["flux_1_dev"]
  return released.flux_told(files.json("tiny.json"), where, cfg)


def _is_flux(names: Collection[str]) -> bool:
  """Whether tensors are a FLUX transformer's, whatever stands before all of their names."""
  ends = tuple(
    r.name for naming in ("bfl", "diffusers", "diffsynth") for r in flux_rows.rows(naming)[-2:]
  )
  return any(name.endswith(ends) for name in names) and not any("adapter" in n for n in names)


def _autoencoder(files: layout.Files, cfg: Config, said: bool) -> tuple[layout.Part | None, Config]:
  """The autoencoder as BFL or diffusers lay it out; and the config with its sizes."""
  pixels = cfg.autoencoder
  for home in HOMES:
    if _stem(files, (AE,), home):
      shapes = layout.shapes(
        lambda rngs: autoencoder.Autoencoder(pixels, rngs=rngs), "autoencoder/"
      )
      told = fields.pixels(pixels, files.names(home, (AE,))) if said else ()
      return layout.Part(AE, home, (AE,), ("autoencoder",), shapes, fields=told, single=True), cfg
  for home in HOMES:
    folder = str(Path(home) / diffusers_files.FOLDERS["autoencoder"])
    if files.has(f"{folder}/config.json"):
      other = diffusers_files.vae_config(files.json(f"{folder}/config.json"))
      found = decoder_files.part(files, "autoencoder", folder)
      return found, released.with_autoencoder(cfg, other, folder)
  return None, cfg


def _constants(files: layout.Files, cfg: Config, said: bool) -> layout.Part | None:
  """The null condition: its file, or FLUX.1-dev's text encoders, which make it; None without."""
  wide: dict[str, table.Shape] = {"constants/pooled": (cfg.flux.pooled_dim,)}
  wide |= {"constants/context": (cfg.null_tokens, cfg.flux.context_dim)}

  def part(home: str, told: tuple[layout.Field, ...]) -> layout.Part:
    stems, modules = (constants.STEM,), ("constants",)
    return layout.Part("constants", home, stems, modules, lambda: wide, fields=told)

  for home in HOMES:
    if _stem(files, (constants.STEM,), home):
      return part(home, fields.null(cfg) if said else ())
  for home in HOMES:
    clip, second = (files.directory / home / name for name in (constants.CLIP, constants.T5))
    if (clip / "config.json").is_file() and (second / "config.json").is_file():
      read = functools.partial(constants.Computed, clip=clip, second=second, tokens=cfg.null_tokens)
      return dataclasses.replace(part("", fields.null(cfg)), read=read, computed=True)
  return None


def rows_of(kind: str, names: Collection[str], home: Path) -> list[table.Row]:
  """The table of a part of a directory; see `systems.System.rows_of`."""
  if kind == "model":
    return rows.language_rows(names)
  if kind == "constants":
    return [table.row(name, f"constants/{name}") for name in ("pooled", "context")]
  if kind == "autoencoder":
    return decoder_files.rows_of(kind, names, home)
  tiny = next((p for p in (home, home.parent) if (p / "tiny.json").is_file()), home)
  values, where = layout.Files(tiny).json("tiny.json"), str(tiny / "tiny.json")
  if kind == AE:
    cfg = released.vae_told(values, where, autoencoder.VARIANTS["flux"])
    found = decoder_files.vae_table(cfg)
    naming = names or ("encoder.mid.block_1.norm1.weight",)  # that of the release
    return table.prefixed(autoencoder_rows.adapt(found, naming), "", "autoencoder/")
  guidance = released.flux_told(values, where, flux.VARIANTS["flux_1_dev"]).guidance
  if kind == "transformer":
    given = layout.Files(home).json("config.json")
    if given:
      guidance = released.flux_config(given, str(home / "config.json")).guidance
    return rows.transformer_rows(names, values, guidance)
  return rows.decoder_rows("editor" if kind == "editor" else "generator", names, guidance)


def stored_as(cfg: Config) -> dict[str, str]:
  """Each module is stored under its own name."""
  del cfg
  return {}


def licence(component: str, cfg: Config | None, parameters: int) -> layout.Licence:
  """Under which licence a component of these sizes was released."""
  del cfg
  return KNOWN.get((component, parameters), layout.Licence())


def differences(cfg: Config) -> list[str]:
  """Fields of config.json and tiny.json unlike the release's: "dim: 64, the release has 3584"."""
  mine, theirs = (trees.flatten(released.sizes_json(c)) for c in (cfg, sizes.released()))
  return [
    f"{field.replace('/', '.')}: {mine.get(field)}, the release has {theirs.get(field)}"
    for field in mine | theirs
    if mine.get(field) != theirs.get(field)
  ]
