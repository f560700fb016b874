"""What a source directory holds: its parts, their tables and sizes, and what is left out.

A part is one set of weight files: the main files of a model, an EVA tower, a UNet, an autoencoder.
Reads headers and JSON files only.
"""

from collections import Counter
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from pathlib import Path
import re
from typing import Any
from typing import Literal

from flax import nnx

from blip3o_jax import trees
from blip3o_jax.convert import sizes
from blip3o_jax.convert.resized import HEAD
from blip3o_jax.convert.resized import Reader
from blip3o_jax.models import autoencoder
from blip3o_jax.models import eva_vit
from blip3o_jax.models import unet
from blip3o_jax.systems import blip3o
from blip3o_jax.systems.blip3o import released
from blip3o_jax.systems.blip3o import rows as names
from blip3o_jax.systems.parts import diffusers_files
from blip3o_jax.weights import pickles
from blip3o_jax.weights import store
from blip3o_jax.weights import table
from blip3o_jax.weights.rows import autoencoder as autoencoder_rows
from blip3o_jax.weights.rows import eva_vit as eva_rows
from blip3o_jax.weights.safetensors import Tensors
from blip3o_jax.weights.table import Shape
from blip3o_jax.weights.table import WeightsError

Kind = Literal["model", "tower", "unet", "autoencoder"]
STEMS: dict[Kind, tuple[str, ...]] = {
  "model": ("model", "pytorch_model"),
  "tower": ("model", "pytorch_model"),
  "unet": (diffusers_files.STEM,),
  "autoencoder": (diffusers_files.STEM,),
}
CLASSES: dict[str, Kind] = {"UNet2DConditionModel": "unet", "AutoencoderKL": "autoencoder"}
TOWER_FOLDER = "eva_clip_vision_tower"


@dataclasses.dataclass(frozen=True)
class Part:
  """One set of weight files.

  Attributes:
    kind: whose table it follows. folder: of the files, relative to the source; "" is the source.
    tensors: what the files hold. rows: the table in use. params: {path: shape} that it fills.
    ignore: regexes of tensors that may be left over. fields: what the config files say about sizes.
  """

  kind: Kind
  folder: str
  tensors: Reader
  rows: list[table.Row]
  params: dict[str, Shape]
  ignore: tuple[str, ...] = ()
  fields: tuple[sizes.Field, ...] = ()

  def plan(self, where: str) -> dict[str, table.Source]:
    """Where each parameter comes from.

    Raises:
      WeightsError: sizes of the config files that the tensors contradict; else see `table.plan`.
    """
    faults = sizes.faults(self.fields, self.tensors)
    try:
      found = table.plan(self.rows, self.tensors, self.params, ignore=self.ignore, where=where)
    except WeightsError as error:  # sizes come first: they explain what follows
      raise WeightsError(where, [*faults, *error.faults]) from None
    if faults:
      raise WeightsError(where, faults)
    return found

  def leftovers(self) -> list[str]:
    """Names of tensors that no row of the table takes."""
    rx = "|".join(table.pattern(r.name) for r in self.rows)
    return [name for name in self.tensors if not re.fullmatch(rx, name)]


@dataclasses.dataclass(frozen=True)
class Origin:
  """A source directory, looked through.

  Attributes:
    directory: of the source. parts: in the order in which they are read. cfg: of the whole model,
      None for a source of one network. plain: whether it is a Qwen2.5-VL without generation.
    notes: what is left out and why, a line each. unread: weight files that are left out.
  """

  directory: Path
  parts: tuple[Part, ...]
  cfg: blip3o.Config | None
  plain: bool
  notes: tuple[str, ...]
  unread: tuple[Path, ...]

  def plans(self) -> list[dict[str, table.Source]]:
    """The plan of each part.

    Raises:
      WeightsError: the faults of all parts, as `Part.plan` has them.
    """
    out, faults = [], []
    for part in self.parts:
      try:
        out.append(part.plan(part.folder or "main files"))
      except WeightsError as error:
        faults += [f"{part.folder}: {line}" if part.folder else line for line in error.faults]
    if faults:
      raise WeightsError(str(self.directory), faults)
    return out


def look(directory: str | Path, *, allow_pickle: bool = False, only: Sequence[str] = ()) -> Origin:
  """Looks through a source directory.

  Args:
    allow_pickle: read `.bin` files where there are no others. only: components to take; all.

  Raises:
    FileNotFoundError, ValueError, WeightsError: what is absent, damaged or unknown, by name.
  """
  directory = Path(directory)
  if not directory.is_dir():
    raise FileNotFoundError(f"{directory}: no such directory")
  odd = sorted(set(only) - set(store.COMPONENTS.values()))
  if odd:
    known = ", ".join(dict.fromkeys(store.COMPONENTS.values()))
    raise ValueError(f"{odd[0]!r} is no component; there are {known}")
  found = _Search(directory, allow_pickle, set(only) or set(store.COMPONENTS.values()))
  return found.origin()


class _Search:
  """One look through a directory, collecting parts and notes."""

  def __init__(self, directory: Path, allow_pickle: bool, wanted: set[str]):
    self.directory, self.allow_pickle, self.wanted = directory, allow_pickle, wanted
    self.notes: list[str] = []
    self.parts: list[Part] = []
    self.unread: list[Path] = []

  def origin(self) -> Origin:
    config = self.directory / "config.json"
    values = released.read_json(config) if config.is_file() else {}
    cfg: blip3o.Config | None = None
    kind = CLASSES.get(values.get("_class_name", ""))
    if kind is not None:
      self._network(kind, "")
    elif "vision_config" in values:
      cfg = self._model(values)
    elif "vision_cfg" in values or (not values and self._has("", "tower")):
      tiny = {"eva": values["vision_cfg"]} if "vision_cfg" in values else self._tiny()
      self._tower("", released.tower(tiny, "float32"), "config.json vision_cfg")
    elif values:
      raise ValueError(
        f"{config}: of no kind that is converted: expected a BLIP3-o or Qwen2.5-VL model "
        "(vision_config), an EVA tower (vision_cfg), or a UNet2DConditionModel or AutoencoderKL "
        f"(_class_name); found model_type {values.get('model_type')!r}, _class_name "
        f"{values.get('_class_name')!r}"
      )
    self._decoder("" if cfg is None and not self.parts else diffusers_files.FOLDER)
    if not self.parts:
      raise FileNotFoundError(
        f"{self.directory}: nothing to convert: no config.json with weights, no unet or vae"
      )
    for part in self.parts:
      self._strays(part)
    plain = cfg is not None and not any("denoiser" in p or "regressor" in p for p in self._paths())
    return Origin(
      self.directory, tuple(self.parts), cfg, plain, tuple(self.notes), tuple(self.unread)
    )

  def _paths(self) -> Iterator[str]:
    return (path.partition("/")[0] for part in self.parts for path in part.params)

  def _tiny(self) -> dict[str, Any]:
    path = self.directory / "tiny.json"
    return released.read_json(path) if path.is_file() else {}

  # The main files -------------------------------------------------------------------------------

  def _model(self, values: Mapping[str, Any]) -> blip3o.Config:
    cfg, _ = released.read(self.directory, "float32")
    plain = values.get("model_type") == "qwen2_5_vl"
    if not self.wanted - {"unet", "autoencoder"}:
      return cfg
    tensors = self._open("", "model")
    parts: tuple[blip3o.Part, ...] = ("visual", "head") if plain else ("visual", "head", "denoiser")
    inside = any(name.startswith(names.TOWER) for name in tensors)
    if inside and cfg.target == "features":
      parts = (*parts, "encoder")
    params = _shapes(lambda: blip3o.build(dataclasses.replace(cfg, parts=parts), nnx.Rngs(0)))
    params = {p: s for p, s in params.items() if store.component(p) in self.wanted}
    rows = names.rows(tensors)
    used = [r for r in rows if any(p in params for p in r.paths)]
    tops = {p.partition("/")[0] for p in params}
    # Rows of modules that are not wanted; a row of a wanted module must find its parameter.
    apart = [r for r in rows if r not in used and r.paths[0].partition("/")[0] not in tops]
    rest = (
      [table.pattern(r.name) for r in apart] if self.wanted < set(store.COMPONENTS.values()) else []
    )
    tied = [re.escape(HEAD)] if cfg.backbone.tie_embeddings else []
    ignore = (*names.LEFTOVERS, *rest, *tied)
    if used:
      fields = sizes.of_model(cfg, tensors, modules=tops)
      self.parts.append(Part("model", "", tensors, used, params, ignore, fields))
    folder = self.directory / TOWER_FOLDER
    if inside and folder.is_dir():
      self._repeats(folder, tensors)
    elif folder.is_dir() and not plain and cfg.target == "features":
      where = "tiny.json eva, or the release's"
      self._tower(TOWER_FOLDER, cfg.features.tower, where)
    elif not inside and not plain and "encoder" in self.wanted:
      self.notes.append("no EVA tower: neither inside the main files nor beside them")
    return cfg

  def _repeats(self, folder: Path, tensors: Reader) -> None:
    """Says that a tower's own file is not read where the main files hold the tower."""
    inside = {n.removeprefix(names.TOWER) for n in tensors if n.startswith(names.TOWER)}
    for path in sorted([*folder.glob("*.bin"), *folder.glob("*.safetensors")]):
      self.unread.append(path)
      held = pickles.strings(path) if path.suffix == ".bin" else set(Tensors(path))
      count = len(inside & held)
      text = f"repeats {count} of the {len(inside)} tensors of the tower inside the main files"
      self.notes.append(f"{path.relative_to(self.directory)}: skipped, {text}")

  # The other networks ---------------------------------------------------------------------------

  def _tower(self, folder: str, cfg: eva_vit.Config, where: str) -> None:
    if "encoder" not in self.wanted:
      return
    tensors = self._open(folder, "tower")
    params = _shapes(lambda: eva_vit.EvaVit(cfg, rngs=nnx.Rngs(0)))
    rows = rows_of("tower", tensors, self.directory)
    paths = {f"encoder/tower/{p}": s for p, s in params.items()}
    fields = sizes.of_tower(cfg, "", where)
    self.parts.append(Part("tower", folder, tensors, rows, paths, (), fields))

  def _decoder(self, home: str) -> None:
    """The UNet and the autoencoder in their own folders."""
    for network, folder in diffusers_files.FOLDERS.items():
      place = f"{home}/{folder}" if home else folder
      kind: Kind = "unet" if network == "unet" else "autoencoder"
      if (self.directory / place / "config.json").is_file():
        self._network(kind, place)
      elif (self.directory / place).is_dir():
        raise FileNotFoundError(f"{self.directory / place}: no config.json")

  def _network(self, kind: Kind, folder: str) -> None:
    if kind not in self.wanted:
      return
    tensors = self._open(folder, kind)
    values = released.read_json(self.directory / folder / "config.json")
    if kind == "unet":
      cfg = diffusers_files.unet_config(values)
      params = _shapes(lambda: unet.UNet(cfg, rngs=nnx.Rngs(0)))
      fields = sizes.of_unet(cfg)
    else:
      latents = diffusers_files.vae_config(values)
      params = _shapes(lambda: autoencoder.Autoencoder(latents, rngs=nnx.Rngs(0)))
      fields = sizes.of_autoencoder(latents)
    rows = rows_of(kind, tensors, self.directory / folder)
    paths = {f"{kind}/{p}": s for p, s in params.items()}
    self.parts.append(Part(kind, folder, tensors, rows, paths, (), fields))

  # Files ----------------------------------------------------------------------------------------

  def _has(self, folder: str, kind: Kind) -> bool:
    place = self.directory / folder
    ends = ("safetensors", "bin")
    return any(path for s in STEMS[kind] for end in ends for path in place.glob(f"{s}*.{end}"))

  def _open(self, folder: str, kind: Kind) -> Reader:
    """The tensors of a folder: safetensors where there are any, else pickles if they may be read.

    Raises:
      FileNotFoundError: no weights. ValueError: pickles that may not be read, or damaged files.
    """
    place, missing = self.directory / folder, None
    for stem in STEMS[kind]:
      try:
        return Tensors(place, stem)
      except FileNotFoundError as error:
        if "holds neither" not in str(error):
          raise
        missing = missing or error
    for stem in STEMS[kind]:
      paths, index = pickles.find(place, stem)
      if paths and not self.allow_pickle:
        raise ValueError(
          f"{paths[0]}: a pickle, which can run code when it is read; give --allow-pickle to read "
          "its tensors (and only tensors), or fetch safetensors"
        )
      if paths:
        return pickles.Pickles(paths, index)
    assert missing is not None
    raise missing

  def _strays(self, part: Part) -> None:
    """Says which weight files beside those of a part are left out."""
    place = self.directory / part.folder
    for path in sorted([*place.glob("*.safetensors"), *place.glob("*.bin")]):
      if path not in part.tensors.files:
        self.unread.append(path)
        what = "a pickle beside the safetensors" if path.suffix == ".bin" else "no weights of it"
        self.notes.append(f"{path.relative_to(self.directory)}: skipped, {what}")


def rows_of(kind: Kind, tensors: Mapping[str, Any], home: Path) -> list[table.Row]:
  """The table of a kind, paths in full, in the naming that the tensors at hand have.

  Args:
    tensors: names that are there. home: of the network's config.json.
  """
  if kind == "model":
    return names.rows(tensors)
  if kind == "tower":
    return table.prefixed(eva_rows.rows(tensors), "", "encoder/tower/")
  values = released.read_json(home / "config.json")
  if kind == "unet":
    return table.prefixed(
      diffusers_files.unet_table(diffusers_files.unet_config(values)), "", "unet/"
    )
  rows = diffusers_files.vae_table(diffusers_files.vae_config(values))
  return table.prefixed(autoencoder_rows.adapt(rows, tensors), "", "autoencoder/")


def families(names: Iterable[str]) -> dict[str, int]:
  """How many tensors there are under the first two words of their names ("model.vae")."""
  return dict(Counter(".".join(name.split(".")[:2]) for name in names))


def _shapes(make: Callable[[], nnx.Module]) -> dict[str, Shape]:
  """{path: shape} of a module's parameters; nothing is allocated."""
  state = nnx.state(nnx.eval_shape(make))
  return {p: tuple(v.shape) for p, v in trees.flatten(nnx.to_pure_dict(state)).items()}
