"""Makes a page that shows two models' pictures blind, and tests what people answered on it.

A and B are folders of pictures of the same prompts, or with --prompts FILE models, whose pictures
are drawn first. The page asks the two questions of the paper's human study, keeps the answers in
the browser and gives them as a file; `blip3o compare --answers FILE...` counts them and does the
sign test.
"""

import argparse
from collections.abc import Sequence
import functools
import json
from pathlib import Path
import sys
from typing import Any

import numpy as np

import blip3o_jax
from blip3o_jax import asking
from blip3o_jax import files
from blip3o_jax.evaluate import compare
from blip3o_jax.evaluate import pictures
from blip3o_jax.evaluate.compare import Pair
from blip3o_jax.use import gathered
from blip3o_jax.use import manifest
from blip3o_jax.use import present
from blip3o_jax.use.gathered import Drawn

DRAWING = ("steps", "pixel_steps", "guidance", "sampler", "size", "language")
MEMORY = ("mesh", "int8", "offload", "tile")
PAGE, REPORT = "compare.html", "report"
LARGE = 300 * 2**20  # bytes of a page, above which browsers are slow to open it


def run(parser: argparse.ArgumentParser, args: Sequence[str]) -> int:
  """Makes the page, or counts answers; returns the exit status."""
  options = _options(parser, args)
  if options.answers is not None:
    if options.a or options.b or options.prompts:
      parser.error("--answers takes files of answers alone")
    return _score(options)
  if not options.b:
    parser.error("expected two folders of pictures, or two models with --prompts; or --answers")
  drawing = [n for n in (*DRAWING, *MEMORY, "dtype", "max_pixels") if getattr(options, n)]
  if drawing and not options.prompts:
    parser.error(f"{', '.join(drawing)}: of drawing, which needs --prompts FILE")
  options.dtype = options.dtype or "float32"
  if options.output.is_file():
    raise ValueError(f"{options.output}: is a file; name a folder")
  if not options.prompts and Path(options.a).resolve() == Path(options.b).resolve():
    raise ValueError(f"{options.a}: is A and B; name two folders")
  folders = [Path(options.a), Path(options.b)]
  if options.prompts:
    folders = _drawn(options)
  shown = [_folder(path) for path in folders]
  pairs = _pairs(folders, shown)
  present.writable(options.output)
  names = (options.a, options.b)
  about = {
    side: {"name": name, "settings": gathered.settings(drawn)}
    for side, name, drawn in zip("ab", names, shown, strict=True)
  }
  if about["a"]["settings"] == about["b"]["settings"] != {}:
    print(
      "warning: A and B were drawn by the same weights, with the same settings", file=sys.stderr
    )
  path = options.output / PAGE
  known = compare.write(path, pairs, options.seed, about, options.quality)
  size = path.stat().st_size
  print(f"{len(pairs)} pairs, comparison {known}, {files.size(size)}", file=sys.stderr)
  if size > LARGE:
    print("warning: a large page; --quality 90 makes it a tenth", file=sys.stderr)
  print(path)
  return 0


def _options(parser: argparse.ArgumentParser, args: Sequence[str]) -> argparse.Namespace:
  add = parser.add_argument
  add("a", nargs="?", metavar="A", help="a folder of pictures; a model with --prompts")
  add("b", nargs="?", metavar="B", help="the other; of models miniature is the one that ships")
  add("--answers", nargs="+", type=Path, metavar="FILE", help="that raters downloaded: counts them")
  add("--prompts", type=Path, metavar="FILE", help="as of blip3o generate; A and B are models")
  where = "of pages, reports and pictures (default comparison)"
  add("--output", type=Path, default=Path("comparison"), metavar="DIR", help=where)
  seed = "of who stands left, and of the first picture that is drawn (default 0)"
  add("--seed", type=asking.at_least(0, below=2**64), default=0, help=seed)
  quality = "1 to 100: pictures as WebP, for a smaller page (default: as they are)"
  add("--quality", type=asking.at_least(1, below=101), default=0, help=quality)
  add("--dtype", choices=("float32", "bfloat16"), help="(default float32)")
  add("--json", action="store_true", help="of --answers: prints what a program reads")
  asking.add_number(parser)
  asking.add_shown(parser)
  asking.add_drawing(parser, *DRAWING)
  asking.add_memory(parser)
  add("--batch", type=asking.at_least(1), default=8, help="pictures drawn at once (default 8)")
  return parser.parse_args(args)


def _folder(path: Path) -> list[Drawn]:
  found = pictures.listed(path)
  pictures.check(found)
  return gathered.gather(path, found)


def _pairs(folders: Sequence[Path], shown: Sequence[Sequence[Drawn]]) -> list[Pair]:
  """Pictures of the same prompt: the first of A with the first of B, and so on, by their names.

  Raises:
    ValueError: prompts, or numbers of their pictures, that differ.
  """
  groups: list[dict[str, list[Drawn]]] = [{}, {}]
  for group, drawn in zip(groups, shown, strict=True):
    for each in drawn:
      group.setdefault(each.text(), []).append(each)
  for mine, other, folder in ((0, 1, folders[1]), (1, 0, folders[0])):
    for prompt, found in groups[mine].items():
      there = len(groups[other].get(prompt, []))
      if there != len(found):
        raise ValueError(
          f"{folder}: {there} pictures of {prompt!r}, and {len(found)} in {folders[mine]}; a "
          "comparison needs the same prompts, as often"
        )
  pairs = [(p, *two) for p, a in groups[0].items() for two in zip(a, groups[1][p], strict=True)]
  digits = max(5, len(str(len(pairs) - 1)))
  return [
    Pair(f"{i:0{digits}d}", prompt, functools.partial(_pixels, a), functools.partial(_pixels, b))
    for i, (prompt, a, b) in enumerate(pairs)
  ]


def _pixels(drawn: Drawn) -> np.ndarray:
  return np.asarray(asking.open_image(drawn.path, True))


def _drawn(options: argparse.Namespace) -> list[Path]:
  """Draws the prompts by both models into folders of the output; what is there is not drawn again.

  Raises:
    ValueError: before anything is drawn: prompts, or a model that cannot draw or is not there.
  """
  from blip3o_jax import systems
  from blip3o_jax.use import jobs
  from blip3o_jax.use import opening
  from blip3o_jax.use import prompts
  from blip3o_jax.use.job import How
  from blip3o_jax.weights import hub

  found = prompts.jobs(options.prompts, seed=options.seed, number=options.number)
  present.writable(options.output)
  names = (options.a, options.b)
  for name in names:
    if not opening.miniature(name):
      kind = systems.of(hub.local_directory(name))
      if "generate" not in systems.SYSTEMS[kind].VERBS:
        raise ValueError(opening.unable(name, kind, "generate", systems.SYSTEMS[kind].VERBS))
  how = How(options=asking.given(options, (*DRAWING, "max_pixels")), batch=options.batch)
  folders = []
  for side, name in zip("ab", names, strict=True):
    folder = options.output / side
    print(f"{side.upper()}: {name}", file=sys.stderr)
    # Not kept: the second needs the memory.
    model: Any = blip3o_jax.load(name, **asking.lying(options), verb="generate")
    say = functools.partial(print, file=sys.stderr, flush=True)
    jobs.run(model, found, folder, how, say=say)
    drawn = {line["file"] for line in manifest.read(folder)}
    if more := sorted(drawn - {job.file for job in found}):
      raise ValueError(f"{folder / more[0]}: of other prompts; name another --output")
    folders.append(folder)
    del model
  return folders


def _score(options: argparse.Namespace) -> int:
  found = compare.score(options.answers)
  present.writable(options.output)
  found["version"] = blip3o_jax.__version__
  files.write_text(options.output / f"{REPORT}.json", json.dumps(found, indent=1) + "\n")
  files.write_text(options.output / f"{REPORT}.html", compare.report(found))
  if options.json:
    print(json.dumps(found, indent=1))
  else:
    print("\n".join(compare.lines(found)))
    print(options.output / f"{REPORT}.html")
  return 0
