"""Draws pictures of prompts, or of a file of prompts."""

import argparse
from collections.abc import Sequence
import functools
from pathlib import Path
import sys
from typing import Any

from blip3o_jax import asking

DRAWING = ("steps", "pixel_steps", "guidance", "sampler", "size", "language")


def run(parser: argparse.ArgumentParser, args: Sequence[str]) -> int:
  """Draws and writes PNGs; returns the exit status."""
  asking.add_options(parser)
  asking.add_texts(parser, "prompt")
  asking.add_number(parser)
  asking.add_output(parser, "generated.png")
  asking.add_drawing(parser, *DRAWING)
  parser.add_argument(
    "--prompts",
    type=Path,
    metavar="FILE",
    help="draws each of a file: text, JSONL, JSON, CSV, GenEval's metadata; needs --output DIR, "
    "and goes on with what a killed call left there",
  )
  asking.add_share(parser)
  options = parser.parse_args(args)
  if options.prompt and options.prompts is not None:
    parser.error("prompts, and --prompts FILE as well: expected one of them")
  if not options.prompt and options.prompts is None:
    parser.error("expected prompts, or --prompts FILE")
  if len(options.image or ()) > 1:
    parser.error("--image several times: a prompt begins with one picture")
  if options.prompts is not None:
    if options.output.suffix.lower() == ".png":
      parser.error("--prompts needs --output DIR, a folder")
    return _many(options)
  shown = _shown(options)
  model = asking.load(options, "generate")
  with asking.bar() as progress:
    pictures = model.generate(
      options.prompt,
      options.seed,
      images_per_prompt=options.number,
      images=shown * len(options.prompt),
      progress=progress,
      every=asking.EVERY,
      **asking.given(options, (*DRAWING, "max_pixels")),
    )
  if options.image:
    pictures = asking.made_of(pictures, options.image * len(pictures), options.friendly)
  asking.save(pictures, options.output)
  return 0


def _shown(options: argparse.Namespace) -> list[Any]:
  """The picture that each prompt begins with; none where none is given."""
  return [asking.open_image(path, options.friendly) for path in options.image or ()]


def _many(options: argparse.Namespace) -> int:
  """Draws a file of prompts into a folder."""
  from blip3o_jax.use import jobs
  from blip3o_jax.use import present
  from blip3o_jax.use import prompts
  from blip3o_jax.use.job import How

  shown = next((image.copy for image in _shown(options)), None)
  image = asking.image_of(options.image[0], options.friendly, whole=True) if options.image else None
  found = prompts.jobs(
    options.prompts, seed=options.seed, number=options.number, shown=shown, image=image
  )
  present.writable(options.output)
  how = How(
    options=asking.given(options, (*DRAWING, "max_pixels")),
    batch=options.batch,
    process=options.process,
    processes=options.processes,
  )
  model = asking.load(options, "generate")
  say = functools.partial(print, file=sys.stderr, flush=True)
  done = jobs.run(model, found, options.output, how, say=say)
  print(done.manifest)
  return 0
