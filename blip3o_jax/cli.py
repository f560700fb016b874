"""The `blip3o` command: train, generate, chat, reconstruct. Parses, calls, prints."""

import argparse
from collections.abc import Sequence
import os
from pathlib import Path
import sys
import time
from typing import Any

EXAMPLES = {
  "train": "blip3o train --config=configs/blip3o_4b_pretrain.py --workdir=runs/4b "
  "--config.data.path=/data/tars --config.optimizer.lr=3e-5",
  "generate": 'blip3o generate "a red circle left of a blue square" --model DIR --seed 1',
  "chat": 'blip3o chat "how many stars are there?" --image picture.png --model DIR',
  "reconstruct": "blip3o reconstruct picture.png --model DIR --output rebuilt.png",
}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one verb; returns the exit status. Errors of the user are one readable line."""
  args = list(sys.argv[1:] if argv is None else argv)
  verbs = {"train": train, "generate": generate, "chat": chat, "reconstruct": reconstruct}
  if not args or args[0] in ("-h", "--help"):
    lines = "\n".join(f"  {EXAMPLES[v]}" for v in verbs)
    print(f"usage: blip3o {{{','.join(verbs)}}} ...\n\nexamples:\n{lines}")
    print("\n`blip3o VERB --help` shows the options of a verb.")
    return 0 if args else 2
  if args[0] not in verbs:
    print(f"blip3o: {args[0]!r} is not one of {', '.join(verbs)}", file=sys.stderr)
    return 2
  try:
    return verbs[args[0]](args[1:])
  except (ValueError, FileNotFoundError) as error:
    if os.environ.get("BLIP3O_TRACEBACK"):
      raise
    print(f"blip3o {args[0]}: {error}", file=sys.stderr)
    return 1


def train(args: list[str]) -> int:
  """blip3o train --config=FILE[:ARG] --workdir=DIR [--config.field=value ...]."""
  from absl import flags
  from absl import logging
  from ml_collections import config_flags

  values = flags.FlagValues()
  config_flags.DEFINE_config_file(
    "config", None, "Config file, FILE or FILE:ARG.", lock_config=True, flag_values=values
  )
  flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=values)
  if not args or set(args) & {"-h", "--help"}:
    print(f"{train.__doc__}\n\nexample:\n  {EXAMPLES['train']}\n")
    print("Every field of the config is a flag; --config.train fields stand at the top level.")
    return 0
  try:
    rest = values(["blip3o", *args])[1:]
  except (flags.Error, AttributeError, KeyError) as error:
    raise ValueError(str(error)) from None
  if rest or not values.config or not values.workdir:
    raise ValueError(f"expected --config and --workdir, e.g. {EXAMPLES['train']}; got {rest}")
  from blip3o_jax import experiment

  logging.set_verbosity(logging.INFO)
  logging.use_absl_handler()
  done = experiment.run(values.config, values.workdir)
  print(f"{'interrupted' if done.interrupted else 'finished'} at step {done.step}")
  return 0


def _parser(verb: str, what: str) -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog=f"blip3o {verb}",
    description=what,
    epilog=f"example: {EXAMPLES[verb]}",
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--model", required=True, help="directory in the released layout")
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
  parser.add_argument("--seed", type=int, default=0, help="image i uses seed + i (default 0)")
  return parser


def _load(options: argparse.Namespace) -> Any:
  from blip3o_jax.systems import inference

  start = time.monotonic()
  model = inference.load(options.model, dtype=options.dtype)
  print(f"loaded {options.model} in {time.monotonic() - start:.1f} s", file=sys.stderr)
  return model


def _save(images: Any, output: Path) -> None:
  """One picture or, for several, a grid; written under another name and renamed."""
  from PIL import Image

  from blip3o_jax.train import metrics

  output.parent.mkdir(parents=True, exist_ok=True)
  picture = images[0] if len(images) == 1 else metrics.grid(images)
  partial = output.with_name(f".{output.name}.partial")
  Image.fromarray(picture).save(partial, "PNG")
  partial.replace(output)
  print(output)


def generate(args: list[str]) -> int:
  """Draws pictures of prompts."""
  parser = _parser("generate", "Draws a picture of each prompt.")
  parser.add_argument("prompt", nargs="+")
  parser.add_argument("--output", type=Path, default=Path("generated.png"))
  parser.add_argument("--steps", type=int, default=0, help="feature sampler (default: the model's)")
  parser.add_argument("--pixel-steps", type=int, default=0, help="pixel decoder's sampler")
  parser.add_argument("--scale", type=float, default=0.0, help="guidance (default: the model's)")
  parser.add_argument("--sampler", default="euler", choices=("euler", "heun"))
  options = parser.parse_args(args)
  model = _load(options)
  seeds = [options.seed + i for i in range(len(options.prompt))]
  images = model.generate(
    options.prompt,
    seeds,
    steps=options.steps,
    scale=options.scale,
    sampler=options.sampler,
    pixel_steps=options.pixel_steps,
  )
  _save(images, options.output)
  return 0


def chat(args: list[str]) -> int:
  """Answers questions, about a picture or without one."""
  parser = _parser("chat", "Answers questions, about a picture or without one.")
  parser.add_argument(
    "question", nargs="*", help="without one, questions are read from the terminal"
  )
  parser.add_argument("--image", type=Path)
  parser.add_argument("--length", type=int, default=64, help="most tokens of an answer")
  parser.add_argument("--temperature", type=float, default=0.0)
  options = parser.parse_args(args)
  image = _open(options.image) if options.image else None
  model = _load(options)
  for question in options.question or _typed():
    (answer,) = model.chat(
      [question],
      [image],
      length=options.length,
      temperature=options.temperature,
      seed=options.seed,
    )
    print(answer, flush=True)
  return 0


def _typed() -> Any:
  """Questions typed at a terminal, until the end of input."""
  while True:
    try:
      yield input("> " if sys.stdin.isatty() else "")
    except EOFError:
      return


def reconstruct(args: list[str]) -> int:
  """Sends pictures through the image encoder and the pixel decoder."""
  parser = _parser("reconstruct", "Sends pictures through encoder and pixel decoder.")
  parser.add_argument("image", nargs="+", type=Path)
  parser.add_argument("--output", type=Path, default=Path("reconstructed.png"))
  parser.add_argument("--pixel-steps", type=int, default=0)
  options = parser.parse_args(args)
  images = [_open(path) for path in options.image]
  model = _load(options)
  seeds = [options.seed + i for i in range(len(images))]
  _save(model.reconstruct(images, seeds, pixel_steps=options.pixel_steps), options.output)
  return 0


def _open(path: Path) -> Any:
  from blip3o_jax.data import transforms

  return transforms.decode(path.read_bytes(), str(path))
