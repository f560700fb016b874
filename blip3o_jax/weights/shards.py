"""Which files make one set of weights, and which copy of a tensor in them counts."""

from collections.abc import Collection
from collections.abc import Mapping
import json
from pathlib import Path
import re

from blip3o_jax import files

VARIANTS = ("", ".bf16", ".fp16")


def numbered(folder: Path, stem: str, suffix: str = ".safetensors") -> list[Path]:
  """The files STEM-0000i-of-0000n of a folder without an index, in order; [] where there are none.

  Their names say how many there are, so that a set is known to be whole.

  Raises:
    FileNotFoundError: a set of which files are absent, by name. ValueError: two sets.
  """
  variant = rf"({'|'.join(map(re.escape, VARIANTS[1:]))})?"
  rx = re.compile(rf"{re.escape(stem)}{variant}-(\d+)-of-(\d+){variant}{re.escape(suffix)}")
  sets: dict[tuple[str, str], dict[int, Path]] = {}
  for path in sorted(folder.glob(f"{stem}*{suffix}")):
    if match := rx.fullmatch(path.name):
      before, number, count, after = match.groups()
      sets.setdefault((before or after or "", count), {})[int(number)] = path
  if not sets:
    return []
  least = min(VARIANTS.index(variant) for variant, _ in sets)
  chosen = {count: found for (variant, count), found in sets.items() if variant == VARIANTS[least]}
  if len(chosen) > 1:
    what = ", ".join(f"of {int(count)} files" for count in chosen)
    raise ValueError(f"{folder}: two sets of shards, {what}, and no index says which one counts")
  (count, found), *_ = chosen.items()
  wanted = range(int(count)) if 0 in found else range(1, int(count) + 1)
  if absent := [number for number in wanted if number not in found]:
    like = next(iter(found.values())).name
    names = (re.sub(r"-\d+-of-", f"-{n:0{len(count)}d}-of-", like) for n in absent)
    raise FileNotFoundError(
      f"{folder}: no index, and of the {int(count)} shards that the names tell of "
      f"{', '.join(names)} {'is' if len(absent) == 1 else 'are'} absent; fetch the files again"
    )
  return [found[number] for number in wanted]


def missing(directory: Path) -> list[str]:
  """Weight files that a directory speaks of and lacks, at any depth, by path in it.

  Those are shards that an index or their own numbers tell of, and the weights of a network of
  diffusers that has a config.json. An index of pickles does not count beside safetensors.
  """
  out: list[str] = []
  for folder in sorted({file.parent for file in files.walk(directory)} | {directory}):
    home = folder.relative_to(directory)
    here = {path.name for path in folder.iterdir() if path.exists()}  # no link that hangs
    safe = any(".safetensors" in name for name in here)
    for index in sorted(name for name in here if ".index." in name and name.endswith(".json")):
      if ".safetensors." in index or not safe:
        out += [str(home / file) for file in _listed(folder / index) if file not in here]
    if not any(".index." in name for name in here):
      out += [str(home / file) for file in _unnumbered(here)]
    weights = any(Path(name).suffix in files.WEIGHTS or ".index." in name for name in here)
    if not weights and "config.json" in here and _is_network(folder / "config.json"):
      out.append(f"{home / '*.safetensors'}")
  return list(dict.fromkeys(out))


def _listed(index: Path) -> list[str]:
  """The files of an index; none of a damaged one, which its reader names."""
  try:
    return list(dict.fromkeys(map(str, json.loads(index.read_text())["weight_map"].values())))
  except (ValueError, KeyError, TypeError, AttributeError):
    return []


def _unnumbered(names: Collection[str]) -> list[str]:
  """The names that complete sets of numbered files."""
  out = []
  for name in sorted(names):
    if match := re.fullmatch(r"(.+-)(\d+)(-of-(\d+).*\.(?:safetensors|bin))", name):
      before, _, after, count = match.groups()
      first = f"{before}{0:0{len(count)}d}{after}" not in names
      wanted = (f"{before}{n:0{len(count)}d}{after}" for n in range(first, int(count) + first))
      out += [found for found in wanted if found not in names]
  return out


def _is_network(config: Path) -> bool:
  """Whether a config.json is of a network of diffusers, whose weights lie beside it."""
  try:
    return bool(re.search("Model|Autoencoder", json.loads(config.read_text())["_class_name"]))
  except (ValueError, KeyError, TypeError):
    return False


def placed(
  held: Mapping[Path, Collection[str]], listed: Mapping[Path, Collection[str] | None]
) -> tuple[dict[str, Path], frozenset[str]]:
  """({tensor: the file whose copy counts}, names that an index lists and that no file holds).

  Args:
    held: {file: names in it}. listed: {file: names that the index puts there}; None without one.

  Raises:
    ValueError: a name in two files of which no index chooses one, in another file than the index
      says, or in a file and not in the index.
  """
  home = {name: file for file, names in listed.items() for name in names or ()}
  anywhere = {name for names in held.values() for name in names}
  where: dict[str, Path] = {}
  for file, names in held.items():
    if listed[file] is None:
      for name in names:
        if name in where:
          raise ValueError(f"{name}: present in {where[name].name} and in {file.name}")
        where[name] = file
      continue
    moved = {name for name in listed[file] or () if name in anywhere and name not in names}
    odd = sorted(moved | {name for name in names if name not in home})
    if odd:
      raise ValueError(f"{file}: the index and the file disagree about {odd[:5]}")
    where |= {name: file for name in names if home[name] == file}
  return where, frozenset(home.keys() - anywhere)
