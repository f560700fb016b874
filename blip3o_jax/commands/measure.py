"""Measures folders of pictures: fid, clip, clip-i, clip-t.

fid: Frechet's distance between the features of two folders. clip: 100 x cosine of each picture and
its prompt, never below 0. clip-t: the cosine itself, of a picture and a text about it. clip-i: the
cosine of two pictures of the same name. The number, with all that it depends on, is written beside
the folder of the pictures.
"""

import argparse
from collections.abc import Sequence
import json
from pathlib import Path
import sys
import time
from typing import Any

import numpy as np

import blip3o_jax
from blip3o_jax import asking
from blip3o_jax import files
from blip3o_jax.evaluate import distances
from blip3o_jax.evaluate import extractors
from blip3o_jax.evaluate import measures
from blip3o_jax.evaluate.extractors import Extractor
from blip3o_jax.evaluate.measures import Folder
from blip3o_jax.evaluate.torch import clip
from blip3o_jax.evaluate.torch import frechet
from blip3o_jax.evaluate.torch import inception
from blip3o_jax.use import gathered
from blip3o_jax.use import present
from blip3o_jax.use import provenance
from blip3o_jax.use.gathered import Drawn

MEASURES = ("fid", "clip", "clip-i", "clip-t")
EXAMPLE = "blip3o evaluate fid --pictures drawn --reference real --cache real.npz"


def run(parser: argparse.ArgumentParser, args: Sequence[str]) -> int:
  """Measures, prints and writes; returns the exit status."""
  options = _options(parser, args)
  start = time.monotonic()
  output = options.output or _beside(options.pictures, f"{options.name}.json")
  of = measures.folder(options.pictures)
  if not output.absolute().parent.is_dir():
    raise FileNotFoundError(f"{output}: no such folder; nothing was measured")
  present.writable(output.absolute().parent)
  found = _fid(options, of) if options.name == "fid" else _clip(options, of)
  score = {
    "measure": options.name,
    **found,
    "version": blip3o_jax.__version__,
    "commit": provenance.commit(),
    "seconds": round(time.monotonic() - start, 3),
  }
  files.write_text(output, json.dumps(score, indent=1) + "\n")
  for line in score["warnings"]:
    print(f"warning: {line}", file=sys.stderr)
  if options.json:
    short = {name: value for name, value in score.items() if name not in ("rows", "seeds")}
    print(json.dumps({**short, "file": str(output)}, indent=1))
  else:
    error = score.get("standard_error")
    more = f" ± {error:.4f} (standard error)" if error is not None else ""
    print(f"{options.name} {score['value']:.4f}{more}, {len(of.paths)} pictures")
    print(output)
  return 0


def _beside(folder: Path, name: str) -> Path:
  """A file beside a folder: not in it, where a scorer would take it for a picture."""
  named = folder if folder.name not in ("", "..") else folder.resolve()
  return named.with_name(f"{named.name}.{name}")


def _options(parser: argparse.ArgumentParser, args: Sequence[str]) -> argparse.Namespace:
  name = args[0]
  parser.prog, parser.description = f"{parser.prog} {name}", __doc__
  parser.epilog = f"example:\n  {EXAMPLE}"
  parser.set_defaults(name=name)
  add = parser.add_argument
  add("--pictures", type=Path, required=True, metavar="DIR", help="what is measured")
  given = "uint8[B, H, W, 3] (default: Inception of the FID, or CLIP)"
  what = f"module:function or file.py:function that gives float[B, D] of {given}"
  add("--extractor", metavar="M:F", help=what)
  add("--batch", type=asking.at_least(1), default=32, help="pictures at once (default 32)")
  add(
    "--output", type=Path, metavar="FILE", help=f"of the score (default DIR.{name}.json, beside it)"
  )
  add("--json", action="store_true", help="prints what a program reads")
  if name == "fid":
    add("--reference", type=Path, required=True, metavar="DIR|FILE.npz", help="what it is far from")
    add("--cache", type=Path, metavar="FILE.npz", help="keeps the statistics of the reference")
    add("--inception", type=Path, metavar="FILE", help="weights (default: they are fetched)")
  else:
    add("--clip", type=Path, metavar="DIR", help=f"a CLIPModel (default: {clip.NAME}, fetched)")
  if name == "clip-i":
    add("--reference", type=Path, required=True, metavar="DIR", help="pictures of the same names")
  if name in ("clip", "clip-t"):
    add("--text-extractor", metavar="M:F", help="gives float[B, D] of B texts; with --extractor")
    what = (
      "a line with file and prompt a picture (default: DIR/manifest.jsonl, or what each PNG says)"
    )
    add("--manifest", type=Path, metavar="FILE", help=what)
    add("--field", default="", help="in place of the prompt, such as the caption of an edit")
  return parser.parse_args(args[1:])


def _fid(options: argparse.Namespace, of: Folder) -> dict[str, Any]:
  if options.extractor and options.inception:
    raise ValueError("--inception names weights of the default extractor; give one of the two")
  if options.cache and options.reference.suffix.lower() == ".npz":
    raise ValueError("--cache keeps the statistics of a folder; --reference is a file of them")
  library = frechet.library()
  drawn = gathered.known(of.path, of.paths)
  if grids := [each for each in drawn if each.fields.get("grid")]:
    raise ValueError(f"{grids[0].path}: a grid of pictures; expected one picture a file")
  extractor = (
    extractors.named(options.extractor)
    if options.extractor
    else inception.inception(options.inception)
  )
  other = measures.reference(options.reference, extractor, options.batch, options.cache)
  mine = measures.statistics(of, extractor, options.batch)
  value = frechet.frechet(mine, other)
  told = ((str(of.path), mine), (str(options.reference), other))
  return {
    "value": value,
    **_about(of, drawn),
    "reference": {**other.about.get("folder", {}), "count": other.count},
    "extractor": {**extractor.about, "dimension": mine.dimension},
    "library": library,
    "warnings": [line for name, each in told if (line := distances.biased(name, each))],
  }


def _clip(options: argparse.Namespace, of: Folder) -> dict[str, Any]:
  name = options.name
  texts: list[str] = []
  other: Folder | None = None
  if name == "clip-i":
    drawn = gathered.known(of.path, of.paths)
    other = _paired(of, options.reference)
  else:
    drawn = gathered.gather(of.path, of.paths, options.manifest)
    texts = [each.text(options.field) for each in drawn]
  shown, said = _pair(options)
  paths = [each.path for each in drawn] if texts else list(of.paths)
  left = measures.features(paths, shown, options.batch, f"features of {of.path}")
  if other is not None:
    what = f"features of {other.path}"
    right = measures.features(other.paths, shown, options.batch, what)
  else:
    right = measures.text_features(texts, said, options.batch)
  if left.shape[1] != right.shape[1]:
    raise ValueError(
      f"{shown.name} gives {left.shape[1]} numbers a picture, {said.name} {right.shape[1]} a text"
    )
  values = distances.cosines(left, right)
  if name == "clip":
    values = measures.SCORE * np.maximum(values, 0.0)
  about: dict[str, Any] = {"extractor": {**shown.about, "dimension": left.shape[1]}}
  if other is not None:
    about["reference"] = {**other.about, "count": len(other.paths)}
  else:
    about["text_extractor"] = said.about
  cut = said.cut()
  long = f"{cut} texts are longer than {said.name} reads; their ends were cut off"
  return {
    **measures.mean(values),
    **_about(of, drawn),
    **about,
    "field": options.field if texts else "",
    "library": _library(options),
    "warnings": [long] if cut else [],
    "rows": _rows(of, paths, values, texts),
  }


def _pair(options: argparse.Namespace) -> tuple[Extractor, Extractor]:
  """What gives features of pictures, and of texts; of clip-i the first alone is used."""
  texts = options.name != "clip-i"
  if options.clip is not None and options.extractor:
    raise ValueError("--clip and --extractor: give one of the two")
  if texts and bool(options.extractor) != bool(options.text_extractor):
    raise ValueError("--extractor and --text-extractor go together: one space for both")
  if not options.extractor:
    return clip.open_clip(options.clip)
  shown = extractors.named(options.extractor)
  return shown, extractors.named(options.text_extractor) if texts else shown


def _paired(of: Folder, path: Path) -> Folder:
  """The reference, with a picture of each name and no other."""
  other = measures.folder(path)
  names = [{p.relative_to(f.path).with_suffix("").as_posix() for p in f.paths} for f in (of, other)]
  for absent, where in ((names[0] - names[1], path), (names[1] - names[0], of.path)):
    if absent:
      raise ValueError(
        f"{where}: no picture {min(absent)}, which the other folder has; clip-i pairs pictures by "
        f"name, and {len(absent)} are without another"
      )
  if len(names[0]) != len(of.paths) or len(names[1]) != len(other.paths):
    raise ValueError(f"{of.path}, {path}: two files of one name that differ in their ending")
  return other


def _about(of: Folder, drawn: Sequence[Drawn]) -> dict[str, Any]:
  """What a score says of the pictures: how many, which, and how they were drawn."""
  return {
    "pictures": {**of.about, "count": len(of.paths), "described": len(drawn)},
    "settings": gathered.settings(drawn),
    "seeds": gathered.seeds(drawn),
  }


def _rows(
  of: Folder, paths: Sequence[Path], values: np.ndarray, texts: Sequence[str]
) -> list[dict[str, Any]]:
  rows: list[dict[str, Any]] = [
    {"file": path.relative_to(of.path).as_posix(), "value": float(value)}
    for path, value in zip(paths, values, strict=True)
  ]
  for row, text in zip(rows, texts, strict=False):
    row["text"] = text
  return rows


def _library(options: argparse.Namespace) -> str:
  if options.extractor:
    return "numpy " + np.__version__
  import transformers

  return f"transformers {transformers.__version__}"
