"""A pixel decoder's folder: UNet, autoencoder and schedule as diffusers lays them out, both ways.

What a system with such a folder beside its model, and one that is nothing else, share.
"""

from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import json
from pathlib import Path
from typing import Any

from blip3o_jax import trees
from blip3o_jax.models import autoencoder
from blip3o_jax.models import unet
from blip3o_jax.systems.parts import diffusers_files
from blip3o_jax.systems.parts import layout
from blip3o_jax.systems.parts.diffusers_files import FOLDER
from blip3o_jax.systems.parts.diffusers_files import FOLDERS
from blip3o_jax.systems.parts.diffusers_files import STEM
from blip3o_jax.weights import safetensors
from blip3o_jax.weights import table
from blip3o_jax.weights.rows import autoencoder as autoencoder_rows
from blip3o_jax.weights.rows import unet as unet_rows

COMPONENTS = {"unet": "unet", "autoencoder": "autoencoder"}
CLASSES = {"UNet2DConditionModel": "unet", "AutoencoderKL": "autoencoder"}
LOOKS_FOR = (
  "_class_name UNet2DConditionModel or AutoencoderKL in config.json, or the folders unet and vae "
  "with neither config.json nor the folder transformer beside them"
)
PLACES = "place_channels"  # key of unet/config.json, absent where there are none
SDXL = layout.Licence("CreativeML Open RAIL++-M (SDXL)", True)


def recognises(files: layout.Files) -> bool:
  """Whether a folder is a UNet, an autoencoder, or the folder that holds both."""
  if files.has("config.json"):
    return files.json("config.json").get("_class_name") in CLASSES
  # An autoencoder beside a transformer is another pipeline's.
  return any(files.has(folder) for folder in FOLDERS.values()) and not files.has("transformer")


def parts(files: layout.Files) -> layout.Layout:
  """The networks of a folder, of one above it, or of a model beside which the folder lies.

  Raises:
    FileNotFoundError: no network, or one without a config.json. ValueError: one that is not built.
  """
  kind = CLASSES.get(files.json("config.json").get("_class_name", ""))
  found = (part(files, kind, ""),) if kind else beside(files)
  if not found:
    raise FileNotFoundError(f"{files.directory}: no {FOLDER}/unet or {FOLDER}/vae in it")
  return layout.Layout(None, found)


def beside(files: layout.Files) -> tuple[layout.Part, ...]:
  """The networks in their own folders, of a model's `diffusion-decoder` or directly; () without.

  Raises:
    FileNotFoundError: a network's folder without a config.json. ValueError: one not built, or a
      schedule that is not.
  """
  homes = [f"{FOLDER}/"] if files.has(FOLDER) else [""]
  for home in homes:
    diffusers_files.check_classes(layout.Files(files.directory / home))
  return tuple(
    part(files, kind, f"{home}{folder}")
    for home in homes
    for kind, folder in FOLDERS.items()
    if files.has(f"{home}{folder}")
  )


def rows_of(kind: str, names: Collection[str], home: Path) -> list[table.Row]:
  """The table of "unet" or "autoencoder", paths in full, in the naming that the tensors have.

  Args:
    names: of tensors that are there. home: of the network's config.json.
  """
  values = layout.Files(home).json("config.json")
  if kind == "unet":
    return table.prefixed(unet_table(diffusers_files.unet_config(values)), "", "unet/")
  found = autoencoder_rows.adapt(vae_table(diffusers_files.vae_config(values)), names)
  return table.prefixed(found, "", "autoencoder/")


def unet_table(cfg: unet.Config) -> list[table.Row]:
  """The rows of a UNet of these sizes."""
  return unet_rows.rows(
    cfg.channels,
    cfg.depths,
    mid_depth=cfg.mid_depth,
    resnets=cfg.resnets,
    time_ids=cfg.time_ids_dim > 0,
  )


def vae_table(cfg: autoencoder.Config) -> list[table.Row]:
  """The rows of an autoencoder of these sizes."""
  return autoencoder_rows.rows(
    cfg.channels,
    cfg.depth,
    mid_attention=cfg.mid_attention,
    quant_conv=cfg.quant_conv,
    post_quant_conv=cfg.post_quant_conv,
  )


def licence(component: str, parameters: int) -> layout.Licence:
  """The licence of a network whose size is a release's."""
  known = {("unet", 2_525_520_644): SDXL, ("autoencoder", 83_653_863): SDXL}
  return known.get((component, parameters), layout.Licence())


def part(files: layout.Files, kind: str, folder: str) -> layout.Part:
  """The part of a network, "unet" or "autoencoder", in a folder of its own.

  Raises:
    FileNotFoundError: no config.json. ValueError: one that is not built.
  """
  path = files.directory / folder / "config.json"
  if not path.is_file():
    raise FileNotFoundError(f"{path.parent}: no config.json")
  values = files.json(str(Path(folder) / "config.json"))
  if kind == "unet":
    cfg = diffusers_files.unet_config(values)
    shapes = layout.shapes(lambda rngs: unet.UNet(cfg, rngs=rngs), "unet/")
    return layout.Part(kind, folder, (STEM,), (kind,), shapes, fields=_unet_fields(cfg))
  sizes = diffusers_files.vae_config(values)
  shapes = layout.shapes(lambda rngs: autoencoder.Autoencoder(sizes, rngs=rngs), "autoencoder/")
  return layout.Part(
    kind, folder, (STEM,), (kind,), shapes, fields=vae_fields(sizes, "vae config.json")
  )


def _unet_fields(cfg: unet.Config) -> tuple[layout.Field, ...]:
  """What unet/config.json says about its tensors."""
  where = "unet config.json"
  out = [
    layout.Field(f"{where} in_channels", cfg.in_channels, "conv_in.weight", 1),
    layout.Field(f"{where} out_channels", cfg.out_channels, "conv_out.weight", 0),
    layout.Field(
      f"{where} block_out_channels", len(cfg.channels), "down_blocks.{}.resnets.0.conv1.weight"
    ),
  ]
  for i, (width, depth) in enumerate(zip(cfg.channels, cfg.depths, strict=True)):
    block = f"down_blocks.{i}."
    attention = f"{block}attentions.0.transformer_blocks."
    out += [
      layout.Field(f"{where} block_out_channels[{i}]", width, f"{block}resnets.0.conv1.weight"),
      layout.Field(f"{where} layers_per_block", cfg.resnets, f"{block}resnets.{{}}.conv1.weight"),
      layout.Field(
        f"{where} transformer_layers_per_block[{i}]", depth, f"{attention}{{}}.attn1.to_q.weight"
      ),
      layout.Field(
        f"{where} cross_attention_dim", cfg.context_dim, f"{attention}0.attn2.to_k.weight", 1
      ),
    ]
  return tuple(out)


def vae_fields(cfg: autoencoder.Config, where: str) -> tuple[layout.Field, ...]:
  """What `where` says about the tensors of an autoencoder, in diffusers' names."""
  return (
    layout.Field(
      f"{where} in_channels", cfg.image_channels * cfg.patch_size**2, "encoder.conv_in.weight", 1
    ),
    layout.Field(f"{where} latent_channels", cfg.latent_channels, "decoder.conv_in.weight", 1),
    *(
      layout.Field(
        f"{where} block_out_channels[{i}]",
        width,
        f"encoder.down_blocks.{i}.resnets.0.conv1.weight",
      )
      for i, width in enumerate(cfg.channels)
    ),
    layout.Field(
      f"{where} layers_per_block", cfg.depth, "encoder.down_blocks.0.resnets.{}.conv1.weight"
    ),
  )


# Writing -----------------------------------------------------------------------------------------


def save(
  cfg: Any, home: Path, params: Mapping[str, Any], *, dtype: table.Stored = "float32"
) -> None:
  """Writes the folders of a pixel decoder in `dtype`: `unet`, `vae` and `scheduler` in `home`.

  Args:
    cfg: of the decoder. params: {path: array} of both networks or of one ("autoencoder/...").

  Raises:
    ValueError: a value that `dtype` cannot hold, by the name of its tensor.
  """
  present = {trees.top(path) for path in params}
  write_json(cfg, home, present)
  for network in FOLDERS:
    mine = {p: v for p, v in params.items() if p.startswith(f"{network}/")}
    if mine:
      folder = home / FOLDERS[network]
      found = table.export(rows_of(network, (), folder), mine)
      tensors = {name: table.cast(name, v, dtype) for name, v in found}
      safetensors.save(tensors, folder / f"{STEM}.safetensors")


def write_json(cfg: Any, home: Path, networks: Collection[str]) -> None:
  """Writes the config.json of `networks` ("unet", "autoencoder") of a decoder, and the schedule."""
  found = {
    "unet": diffusers_files.unet_json(cfg.unet, grid=cfg.grid),
    "autoencoder": diffusers_files.vae_json(cfg.autoencoder, size=cfg.size),
  }
  if cfg.places:
    found["unet"][PLACES] = cfg.places
  for network in networks:
    folder = home / FOLDERS[network]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(found[network], indent=2))
  folder = home / "scheduler"
  folder.mkdir(parents=True, exist_ok=True)
  text = json.dumps(diffusers_files.schedule_json(cfg.schedule), indent=2)
  (folder / "scheduler_config.json").write_text(text)


def home_of(parts: Iterable[Mapping[str, Any]]) -> str:
  """Where an exported directory has its networks' folders: as these parts, else as a model."""
  known = [Path(p["folder"]) for p in parts if Path(p["folder"]).name in FOLDERS.values()]
  return f"{FOLDER}/" if not known else "".join(f"{name}/" for name in known[0].parent.parts)


def exported(
  bases: Sequence[layout.Base], base: layout.Base | None, modules: Collection[str]
) -> tuple[list[dict[str, Any]], tuple[tuple[Path, str], ...]]:
  """(parts, folders whose JSON files are copied) of the networks that an exported run has.

  Args:
    bases: what the run started from, the later one first to be asked. base: the one of them whose
      files are copied with their places. modules: top-level ones among all leaves.
  """
  held = {} if base is None else {part["kind"]: part for part in base.parts}
  out = [dict(held[network]) for network in FOLDERS if network in held]
  at = home_of(out)
  extra: list[tuple[Path, str]] = []
  others = [(b.directory, part) for b in reversed(bases) for part in b.parts]
  for directory, part in others:
    network, home = part["kind"], directory / part["folder"]
    if network not in FOLDERS or any(p["kind"] == network for p in out):
      continue
    place = f"{at}{FOLDERS[network]}"
    out.append({**part, "folder": place})
    extra.append((home, place))
    if part["folder"] and (home.parent / "scheduler").is_dir():
      extra.append((home.parent / "scheduler", f"{at}scheduler"))
  for network, folder in FOLDERS.items():
    if network in modules and not any(part["kind"] == network for part in out):
      out.append(layout.new_part(network, f"{at}{folder}", STEM, [network]))
  return out, tuple(extra)
