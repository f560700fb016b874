"""Draws what a benchmark's official scorer reads, looks at such a folder, or scores.

Benchmarks: geneval, geneval2, dpg, wise, oneig, gedit, imgedit. `--prompts FILE --output DIR`
draws (and goes on with what a killed call left), `--check DIR` says what the scorer would misread.
`shapes` scores drawings, answers and edits of the embedded set. fid, clip, clip-i and clip-t
measure folders of pictures; each has a --help of its own.
"""

import argparse
from collections.abc import Mapping
from collections.abc import Sequence
import functools
import hashlib
import json
from pathlib import Path
import re
import sys
from typing import Any

import blip3o_jax
from blip3o_jax import asking
from blip3o_jax import files
from blip3o_jax.evaluate import benchmarks
from blip3o_jax.evaluate.benchmarks import layout
from blip3o_jax.evaluate.benchmarks.layout import Asked
from blip3o_jax.evaluate.benchmarks.layout import Entry
from blip3o_jax.evaluate.benchmarks.layout import File
from blip3o_jax.evaluate.benchmarks.layout import Layout

MEASURES = ("fid", "clip", "clip-i", "clip-t")
SHAPES = "shapes"
KINDS = 50  # prompts, questions and edits of each kind of the embedded set
DRAWING = ("steps", "pixel_steps", "guidance", "sampler", "size", "language", "decoder")


def run(parser: argparse.ArgumentParser, args: Sequence[str]) -> int:
  """Draws, checks or scores; returns the exit status: 1 where a check found something."""
  if args and args[0] in MEASURES:
    from blip3o_jax.commands import measure

    return measure.run(parser, args)
  _describe(parser)
  options = parser.parse_args(args)
  if options.name == SHAPES:
    return _shapes(options)
  found = benchmarks.LAYOUTS[options.name]
  if (options.check is None) == (options.output is None):
    parser.error("expected --output DIR to draw, or --check DIR to look at what is drawn")
  asked = Asked(
    number=options.number or (found.NUMBER if options.check is None else 0),
    name=options.folder or _folder(options.model),
    field=options.field,
    images=options.images,
    prompts=tuple(options.prompts or ()),
    resolution=options.resolution,
    pic_num=options.pic_num,
    friendly=options.friendly,
  )
  if asked.number and found.NUMBERS and asked.number not in found.NUMBERS:
    known = " or ".join(map(str, found.NUMBERS))
    raise ValueError(f"-n {asked.number}: {found.TITLE} has {known} pictures a prompt")
  if options.check is not None:
    return _check(found, asked, options)
  if not asked.prompts:
    parser.error("the following arguments are required: --prompts FILE")
  return _draw(found, asked, options)


def _describe(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  names = (*benchmarks.LAYOUTS, SHAPES, *MEASURES)
  add("name", choices=names, metavar="NAME", help=f"one of {', '.join(names)}")
  add("--prompts", nargs="+", type=Path, metavar="FILE", help="as the benchmark publishes them")
  add("--output", type=Path, metavar="DIR", help="where pictures, manifest and settings go")
  add("--check", type=Path, metavar="DIR", help="looks at a folder that anybody made")
  add("--json", action="store_true", help="prints what a program reads")
  most = "pictures a prompt (default as the authors do); of shapes: prompts of each kind"
  add("-n", "--number", type=asking.at_least(1), default=0, help=most)
  add("--images", type=Path, metavar="DIR", help="of an editing benchmark: the pictures to edit")
  add("--field", default="", help="of the prompts' rows, that is drawn in place of the prompt")
  add("--folder", default="", metavar="NAME", help="of the model, where a layout has one")
  check = "of --check dpg: what the scorer is given"
  add("--resolution", type=asking.at_least(1), default=0, help=check)
  add("--pic-num", type=asking.at_least(1), default=0, help=f"{check} (default 4)")
  asking.add_options(parser)
  asking.add_shown(parser)
  asking.add_drawing(parser, *DRAWING)
  asking.add_share(parser)


def _folder(model: str | None) -> str:
  """What a model is called where a layout has a folder for it."""
  name = re.sub(r"[^\w.-]+", "-", Path(model).name) if model else "miniature"
  return name.strip(".-") or "model"


def _check(found: Layout, asked: Asked, options: argparse.Namespace) -> int:
  home = options.check
  if not home.is_dir():
    raise FileNotFoundError(f"{home}: no such folder")
  pictures = home / layout.PICTURES if (home / layout.PICTURES).is_dir() else home
  entries = found.entries(asked) if asked.prompts else None
  report = found.check(pictures, entries, asked)
  print(json.dumps(report.json(), indent=1) if options.json else "\n".join(report.lines()))
  return 1 if report.findings else 0


def _draw(found: Layout, asked: Asked, options: argparse.Namespace) -> int:
  from blip3o_jax.use import jobs
  from blip3o_jax.use import present
  from blip3o_jax.use.job import How

  entries = found.entries(asked)
  if lacks := [e for e in entries if found.VERB == "edit" and e.image is None]:
    raise ValueError(f"{lacks[0].row.where}: no picture to edit; name their folder with --images")
  wanted = found.files(entries, asked)
  present.writable(options.output)
  how = How(
    verb="edit" if found.VERB == "edit" else "generate",
    options=asking.given(options, (*DRAWING, "max_pixels")),
    batch=options.batch,
    process=options.process,
    processes=options.processes,
  )
  model = asking.load(options, found.VERB)
  pictures = options.output / layout.PICTURES
  about = {
    "benchmark": options.name,
    "prompts": _sum(entries),
    "files": [str(path) for path in asked.prompts],
    "number": asked.number,
    "field": asked.field,
    "seed": options.seed,
  }
  made = _jobs(options.name, entries, wanted, options.seed, asked.number)

  def begin() -> None:
    found.prepare(options.output, wanted[options.process :: options.processes], asked)

  say = functools.partial(print, file=sys.stderr, flush=True)
  done = jobs.run(model, made, options.output, how, about=about, begin=begin, say=say)
  command = found.command(pictures, asked)
  if options.json:
    told: dict[str, Any] = {"drawn": done.drawn, "skipped": done.skipped}
    told |= {"seconds": round(done.seconds, 3)}
    told |= {"manifest": str(done.manifest), "pictures": str(pictures), "scorer": command}
    print(json.dumps(told, indent=1))
  else:
    print(pictures)
    print(f"the official scorer: {command}", file=sys.stderr)
  return 0


def _sum(entries: Sequence[Entry]) -> str:
  """The sha256 of what is drawn, and for which key."""
  text = json.dumps([[entry.key, entry.prompt, entry.said] for entry in entries])
  return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _jobs(
  name: str, entries: Sequence[Entry], wanted: Sequence[File], seed: int, number: int
) -> list[Any]:
  """The jobs of a benchmark: picture k of prompt i has seed + i * number + k."""
  from blip3o_jax.use.job import Job

  places = {entry.key: index for index, entry in enumerate(entries)}
  found = []
  for file in wanted:
    first = seed + places[file.entry.key] * number + file.first
    about = {"benchmark": name, "key": file.entry.key}
    if file.entry.text and file.entry.text != file.entry.prompt:
      about["rewritten"] = file.entry.prompt
    sidecar = file.sidecar
    target = f"{layout.PICTURES}/{file.name}"
    seeds = tuple(range(first, first + file.count))
    original = file.entry.image
    told = {} if original is None else original.metadata
    found.append(Job(target, file.entry.said, seeds, original, about, sidecar, told))
  return found


# The embedded set ---------------------------------------------------------------------------------


def _shapes(options: argparse.Namespace) -> int:
  """Scores a model of the embedded set by pixels: drawings, answers, and edits where it can."""
  from blip3o_jax.systems.parts import memory as memories
  from blip3o_jax.use import opening
  from blip3o_jax.use import present
  from blip3o_jax.use import provenance

  if options.check is not None or options.prompts:
    raise ValueError("shapes has its own prompts, and nothing to check: no --check, no --prompts")
  if odd := [name for name in (*DRAWING, "max_pixels") if getattr(options, name)]:
    raise ValueError(f"shapes scores a model as it is: no --{odd[0].replace('_', '-')}")
  if options.output is not None:
    present.writable(options.output)
  how = {name: getattr(options, name) for name in ("offload", "int8", "tile")}
  memory = memories.asked(options.mesh, **how)
  with asking.loading(options.model):
    opened = opening.open_model(options.model, dtype=options.dtype, memory=memory, verb="generate")
  number = options.number or KINDS
  told = {
    "benchmark": SHAPES,
    "model": opened.name,
    "system": opened.system,
    "dtype": opened.dtype,
    "fingerprint": opening.fingerprint(opened.directory),
    "version": blip3o_jax.__version__,
    "commit": provenance.commit(),
    "number": number,
    "seed": options.seed,
  }
  if options.output is not None:
    present.same_settings(options.output, told)
  found = _scores(opened.model, _verbs(opened.system), number, options.seed)
  if options.output is not None:
    for name, value in (("settings.json", told), ("scores.json", {**told, "scores": found})):
      files.write_text(options.output / name, json.dumps(value, indent=1) + "\n")
  if options.json:
    print(json.dumps({**told, "scores": found}, indent=1))
    return 0
  for part, rates in found.items():
    print(f"{part}:")
    for name, rate in rates.items():
      print(f"  {name:<20} {_said(rate, name)}")
  if options.output is not None:
    print(options.output / "scores.json", file=sys.stderr)
  return 0


def _said(rate: Mapping[str, float], name: str) -> str:
  """A rate with its 95 % interval; `overall` is the mean of the kinds, not the share of all."""
  if not rate["count"]:
    return "none asked"
  of = f"{rate['correct']:.0f} of {rate['count']:.0f}"
  of = f"mean of the kinds; {of}" if name == "overall" else of
  return f"{rate['rate']:.2f}  ({rate['low']:.2f} to {rate['high']:.2f}, {of})"


def _verbs(system: str) -> tuple[str, ...]:
  from blip3o_jax import systems

  return systems.SYSTEMS[system].VERBS


def _scores(
  model: Any, verbs: Sequence[str], number: int, seed: int
) -> dict[str, dict[str, dict[str, float]]]:
  """{part: {kind: rate}}, each with its 95 % interval.

  Raises:
    ValueError: a model whose pictures are of another size than the set's.
  """
  from blip3o_jax.data import shapes
  from blip3o_jax.miniature import scores

  say = functools.partial(print, file=sys.stderr, flush=True)
  prompts = scores.test_prompts(number)
  side = shapes.SIZE
  first = model.generate([prompts[0]["prompt"]], [seed])
  if first.shape[1:] != (side, side, 3):
    high, wide = first.shape[1:3]
    raise ValueError(
      f"the model draws {wide} x {high} pixels; the embedded set has {side} x {side}"
    )
  say(f"drawing {len(prompts)} prompts")
  found = {"drawings": scores.generation(model, prompts, seed=seed)[0]}
  if "chat" in verbs:
    say(f"asking {number * len(shapes.KINDS)} questions")
    found["questions"] = scores.understanding(model, number)[0]
  if "edit" in verbs:
    say(f"editing {number * len(shapes.EDITS)} pictures")
    found["edits"] = scores.editing(model, scores.edits_of(number), seed=seed)[0]
  return found
