"""Answers questions, about a picture or without one.

A model that draws may answer with pictures; each is written beside its answer, which holds a mark
in the place where it stands.
"""

import argparse
from collections.abc import Iterator
from collections.abc import Sequence
from pathlib import Path
import sys

from blip3o_jax import asking


def run(parser: argparse.ArgumentParser, args: Sequence[str]) -> int:
  """Answers each question with a line; returns the exit status."""
  asking.add_options(parser)
  asking.add_texts(parser, "question")
  at_least = asking.at_least
  parser.add_argument("--length", type=at_least(1), default=64, help="most tokens of an answer")
  parser.add_argument(
    "--temperature",
    type=at_least(0, float),
    help="0 takes the likeliest token (default: as the model says)",
  )
  parser.add_argument(
    "--output",
    type=asking.png,
    default=Path("answer.png"),
    help="the picture of an answer (default answer.png); further ones are answer-2.png, ...",
  )
  options = parser.parse_args(args)
  image = asking.open_image(options.image, options.friendly) if options.image else None
  model = asking.load(options, "chat")
  asked = asking.given(options, ("max_pixels",))
  if options.temperature is not None:
    asked["temperature"] = options.temperature
  drawn = 0
  for question in options.question or _typed():
    (answer,) = model.chat([question], [image], length=options.length, seed=options.seed, **asked)
    text, pictures = (answer, ()) if isinstance(answer, str) else answer
    print(text, flush=True)
    for picture in pictures:
      drawn += 1
      name = options.output.stem + (f"-{drawn}" if drawn > 1 else "")
      asking.save([picture], options.output.with_name(f"{name}{options.output.suffix}"))
  return 0


def _typed() -> Iterator[str]:
  """Questions typed at a terminal, until the end of input; an empty line asks nothing."""
  while True:
    try:
      question = input("> " if sys.stdin.isatty() else "")
    except EOFError:
      return
    if question.strip():
      yield question
