"""What is exported: a conversion as it is, or a run's leaves on top of what it started from."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import json
from pathlib import Path
import shutil
from typing import Any

from blip3o_jax import config
from blip3o_jax.convert import manifest as records
from blip3o_jax.convert.parameters import Layers
from blip3o_jax.convert.parameters import Leaves
from blip3o_jax.convert.parameters import Released
from blip3o_jax.convert.parameters import Run
from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.systems import blip3o
from blip3o_jax.systems import pixels
from blip3o_jax.systems.blip3o import released
from blip3o_jax.systems.blip3o import save
from blip3o_jax.systems.parts import diffusers_files
from blip3o_jax.systems.parts import loading
from blip3o_jax.train import checkpoint
from blip3o_jax.weights import store

# What says that a directory holds a BLIP3-o, where it started from a Qwen2.5-VL.
OWN = (
  "architectures",
  "model_type",
  "n_query",
  "gen_vision_tower",
  "gen_hidden_size",
  "gen_pooling",
)
MAIN = ("backbone", "visual", "slots", "projector", "denoiser", "regressor", "encoder")


@dataclasses.dataclass(frozen=True)
class Found:
  """What is to be exported.

  Attributes:
    leaves: all parameters. base: a directory whose other files are copied; None without one.
    parts: as a record has them. cfg: of a whole model. decoder: of a pixel decoder that a run made.
    tokenizer: a directory to take a tokenizer from, where the base has none.
    whole: paths that are read a whole leaf at a time. extra: (folder, place) whose JSON files are
      copied to that place.
  """

  leaves: Leaves
  base: Path | None
  parts: tuple[Mapping[str, Any], ...]
  cfg: blip3o.Config | None = None
  decoder: pixels.Config | None = None
  tokenizer: Path | None = None
  whole: frozenset[str] = frozenset()
  extra: tuple[tuple[Path, str], ...] = ()

  def modules(self, part: Mapping[str, Any]) -> set[str]:
    """The top-level modules whose parameters belong to a part."""
    if part["kind"] == "model":
      apart = any(other["kind"] == "tower" for other in self.parts)
      return set(MAIN) - ({"encoder"} if apart else set())
    return {"encoder"} if part["kind"] == "tower" else {part["kind"]}

  def write_json(self, folder: Path) -> None:
    """Writes config.json and tiny.json where a run's sizes or design are not those of its base.

    Raises:
      ValueError: files that would not say what the run is.
    """
    for source, place in self.extra:
      (folder / place).mkdir(parents=True, exist_ok=True)
      for file in source.glob("*.json"):
        shutil.copy(file, folder / place / file.name)
    if self.decoder is not None:
      networks = {part["kind"] for part in self.parts} & set(diffusers_files.FOLDERS)
      save.write_decoder_json(self.decoder, folder / diffusers_files.FOLDER, networks)
    if self.cfg is None or not self.whole:
      return
    if self.tokenizer is not None:
      save.copy_tokenizer(self.tokenizer, folder)
    ids = Tokenizer.load(folder, blip3o.SPECIAL)
    wanted = released.config_json(self.cfg, eos=ids.im_end, pad=ids.pad)
    mine = released.sizes_json(self.cfg)

    def told() -> dict[str, Any]:
      return released.sizes_json(released.read(folder, "float32")[0])

    path = folder / "config.json"
    found = released.read_json(path) if path.is_file() else {}
    same = bool(found) and told() == mine
    if not same or found.get("model_type") != wanted["model_type"]:
      keys = OWN if same else wanted
      path.write_text(json.dumps({**found, **{k: wanted[k] for k in keys}}, indent=2) + "\n")
    if told() != mine:
      tiny = released.tiny_json(self.cfg, released.read_settings(folder), save.special_ids(ids))
      (folder / "tiny.json").write_text(json.dumps(tiny, indent=2) + "\n")
    if (lost := told()) != mine:
      odd = [k for k in mine if lost[k] != mine[k]]
      raise ValueError(f"config.json and tiny.json cannot tell the run's {', '.join(odd)}")


def of_converted(directory: Path) -> Found:
  """All of a converted directory.

  Raises:
    ValueError: see `store.read_record`.
  """
  leaves = store.Arrays(directory)
  cfg = None
  if any(part["kind"] == "model" for part in leaves.record["parts"]):
    cfg, _ = released.read(directory, "float32")
  return Found(leaves, directory, tuple(leaves.record["parts"]), cfg)


def of_run(run: Path, item: checkpoint.Item, step: int, tokenizer: Path) -> Found:
  """The leaves of a run's checkpoint, on top of the sources that it names.

  Args:
    item: "params" or "ema". step: -1 is the latest. tokenizer: used where no source has one.

  Raises:
    FileNotFoundError: a checkpoint or source that is not there. ValueError: a run of a system that
      has no released layout, or one without a tokenizer.
  """
  record = checkpoint.read_record(run, step)
  system = record["system"]
  if system not in ("blip3o", "pixels"):
    raise ValueError(f"{run}: trained the system {system!r}, which has no released layout")
  used = [*loading.recorded(run, record), loading.Source(str(run), "run", item, record["step"])]
  decoder, cfg = None, None
  if system == "pixels":
    decoder = config.build(pixels.Config, record["model"], "the run's model")
  else:
    cfg = config.build(blip3o.Config, record["model"], "the run's model")
  layers: list[tuple[Leaves, set[str]]] = []
  whole: set[str] = set()
  bases: list[tuple[Path, list[Mapping[str, Any]]]] = []
  for source in used:
    leaves = _leaves(source)
    mine = source.modules({p.partition("/")[0] for p in leaves})
    # What a run takes of its model's modules says nothing about the pixel decoder beside it.
    mine |= set(diffusers_files.FOLDERS)
    paths = {p for p in leaves if p.partition("/")[0] in mine and _belongs(p, cfg)}
    layers.append((leaves, paths))
    whole = whole | paths if source.kind == "run" else whole - paths
    if source.kind != "run":
      bases.append((Path(source.path), _parts(Path(source.path), leaves)))
  found, frozen = Layers(layers), frozenset(whole)
  base, parts, extra = _joined(bases)
  parts = _with_networks(parts, found)
  if cfg is None:
    return Found(found, base, tuple(parts), decoder=decoder, whole=frozen, extra=extra)
  if not any(part["kind"] == "model" for part in parts):
    parts.insert(0, {"kind": "model", "folder": "", "index": None, "files": {}})
  home = None if base is not None and (base / "config.json").is_file() else tokenizer
  if home is not None and not home.parts:
    raise ValueError(f"{run}: none of its sources is a model; give --tokenizer DIR")
  return Found(found, base, tuple(parts), cfg=cfg, tokenizer=home, whole=frozen, extra=extra)


def _joined(
  bases: Sequence[tuple[Path, list[Mapping[str, Any]]]],
) -> tuple[Path | None, list[Mapping[str, Any]], tuple[tuple[Path, str], ...]]:
  """(directory whose files are copied, parts, networks' folders copied from other directories).

  The directory is the last one that is a model, or else the last. Of the others the networks of a
  pixel decoder are taken; an EVA tower of its own goes into the main files.
  """
  if not bases:
    return None, [], ()
  models = [b for b in bases if any(part["kind"] == "model" for part in b[1])]
  base, parts = (models or list(bases))[-1]
  out, extra = list(parts), list[tuple[Path, str]]()
  others = [(place, part) for place, held in reversed(bases) for part in held]
  for directory, part in others:
    network, home = part["kind"], directory / part["folder"]
    if network not in diffusers_files.FOLDERS or any(p["kind"] == network for p in out):
      continue
    place = f"{diffusers_files.FOLDER}/{diffusers_files.FOLDERS[network]}"
    out.append({**part, "folder": place})
    extra.append((home, place))
    if part["folder"] and (home.parent / "scheduler").is_dir():
      extra.append((home.parent / "scheduler", f"{diffusers_files.FOLDER}/scheduler"))
  return base, out, tuple(extra)


def _belongs(path: str, cfg: blip3o.Config | None) -> bool:
  """Whether a run's model has a module; its sources may hold one that its design replaced."""
  module, _, rest = path.partition("/")
  if cfg is None or module not in ("denoiser", "regressor", "projector", "encoder"):
    return True
  has = {
    "denoiser": cfg.objective == "flow",
    "regressor": cfg.objective != "flow",
    "projector": cfg.projector != "identity",
    "encoder": cfg.target == "features" and (cfg.features.whiten or not rest.startswith("whiten")),
  }
  return bool(has[module])


def _leaves(source: loading.Source) -> Leaves:
  path = Path(source.path)
  if source.kind == "run":
    return Run(path, "ema" if source.item == "ema" else "params", source.step)
  return store.Arrays(path) if store.is_converted(path) else Released(path)


def _parts(directory: Path, leaves: Leaves) -> list[Mapping[str, Any]]:
  """The parts of a directory that a run started from."""
  if isinstance(leaves, Released):
    parts = leaves.origin.parts
    return [records.layout(p, set(p.tensors) - set(p.leftovers())) for p in parts]
  return list(store.read_record(directory)["parts"])


def _with_networks(parts: Sequence[Mapping[str, Any]], leaves: Leaves) -> list[Mapping[str, Any]]:
  """The parts, with those that hold the networks of a pixel decoder."""
  out = list(parts)
  for network, folder in diffusers_files.FOLDERS.items():
    held = any(p.startswith(f"{network}/") for p in leaves)
    if held and not any(part["kind"] == network for part in parts):
      place = f"{diffusers_files.FOLDER}/{folder}"
      out.append({"kind": network, "folder": place, "index": None, "files": {}})
  return out
