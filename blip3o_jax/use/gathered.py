"""Pictures of a folder with what they were asked for: by its manifest, or by what each PNG says."""

from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from typing import NamedTuple

from blip3o_jax import files
from blip3o_jax.data import prompt_files
from blip3o_jax.use import manifest
from blip3o_jax.use import picture
from blip3o_jax.use import prompts

# Fields that are of one picture, not of how a folder was drawn.
OWN = ("file", "prompt", "seed", "seeds", "about", "row", "seconds", "grid")


class Drawn(NamedTuple):
  """A picture that lies in a folder.

  Attributes:
    path: of the file. name: below the folder. where: for errors. fields: what is known of it, of
      JSON: `prompt`, `seed`, and how it was drawn, as far as somebody said it.
  """

  path: Path
  name: str
  where: str
  fields: Mapping[str, Any]

  def text(self, field: str = "") -> str:
    """The prompt, or the text of another field, of the picture or of its row of a prompts' file.

    Raises:
      ValueError: none, no text, or a picture that is a grid of several.
    """
    if self.fields.get("grid"):
      raise ValueError(f"{self.path}: a grid of pictures; expected one picture a file")
    names = (field,) if field else prompts.PROMPTS
    about = self.fields.get("about") or {}
    row = about.get("row") if isinstance(about, dict) else None
    kept = {**(row or {}), **self.fields} if field else self.fields  # what its prompts' file said
    return prompt_files.Row(self.where, kept).text(*names)


def gather(folder: Path, paths: Sequence[Path], described: Path | None = None) -> list[Drawn]:
  """The pictures of a folder with what is known of them.

  Args:
    paths: of its pictures. described: a manifest, a line with `file` and `prompt` for each; None is
      the folder's own manifest.jsonl, or without one what each PNG says of itself.

  Raises:
    FileNotFoundError, ValueError: a picture of which nothing is known, or the other way round.
  """
  own = folder / manifest.WHOLE
  described = described or (own if own.is_file() else None)
  if described is None:
    return [_of_file(folder, path) for path in paths]
  rows: dict[str, prompt_files.Row] = {}
  for row in prompt_files.read(described):
    name = row.text("file")
    if name in rows:
      raise ValueError(f"{row.where}: {name} stands at {rows[name].where} too")
    rows[name] = row
  names = {path.relative_to(folder).as_posix(): path for path in paths}
  if absent := sorted(rows.keys() - names.keys()):
    raise ValueError(
      f"{rows[absent[0]].where}: {folder / absent[0]}: no such picture{_more(absent)}"
    )
  if unknown := sorted(names.keys() - rows.keys()):
    raise ValueError(f"{described}: no line of the picture {unknown[0]}{_more(unknown)}")
  found = {name: files.without_nulls(dict(row.fields)) for name, row in rows.items()}
  return [Drawn(names[n], n, rows[n].where, found[n]) for n in sorted(rows)]


def known(folder: Path, paths: Sequence[Path]) -> list[Drawn]:
  """As `gather`, of the pictures of which something is known; [] where nothing is.

  Raises:
    ValueError: the folder's manifest is not as it should be.
  """
  if (folder / manifest.WHOLE).is_file():
    return gather(folder, paths)
  found = []
  for path in paths:
    try:
      found.append(_of_file(folder, path))
    except ValueError:
      continue
  return found


def settings(drawn: Sequence[Drawn]) -> dict[str, Any]:
  """How pictures were drawn: what all share; under `differing` the names of what they do not."""
  values: dict[str, list[Any]] = {}
  for each in drawn:
    for name, value in each.fields.items():
      if name not in OWN and value not in values.setdefault(name, []):
        values[name].append(value)
  everywhere = {n for n in values if all(n in each.fields for each in drawn)}
  alike = {n: v[0] for n, v in values.items() if len(v) == 1 and n in everywhere}
  return {**alike, "differing": sorted(values.keys() - alike.keys())}


def seeds(drawn: Sequence[Drawn]) -> list[Any]:
  """The seed of each picture, in order, or the list of a grid; None where nobody said it."""
  return [each.fields.get("seeds") or each.fields.get("seed") for each in drawn]


def _of_file(folder: Path, path: Path) -> Drawn:
  if path.suffix.lower() != ".png":
    raise ValueError(
      f"{path}: nobody says what it was asked for: it is no PNG of this package, and the folder "
      f"has no {manifest.WHOLE} with its file and prompt"
    )
  return Drawn(path, path.relative_to(folder).as_posix(), str(path), picture.read(path))


def _more(names: Sequence[str]) -> str:
  return f", and {len(names) - 1} more" if len(names) > 1 else ""
