"""The `blip3o` command: use, train, and what `commands` has. Parses, calls, prints."""

import argparse
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import functools
import importlib
import math
import os
from pathlib import Path
import sys
import time
from typing import Any
import warnings

import blip3o_jax
from blip3o_jax import files
from blip3o_jax import joining
from blip3o_jax import runtime

EXAMPLES = {
  "train": "blip3o train --config=blip3o_4b_pretrain:qwen=DIR --workdir=runs/4b "
  "--config.data.path=/data/tars --config.optimizer.lr=3e-5",
  "generate": 'blip3o generate "a red circle left of a blue square" --seed 1',
  "chat": 'blip3o chat "how many stars are there?" --image picture.png --model DIR',
  "reconstruct": "blip3o reconstruct picture.png --model DIR --output rebuilt.png",
  "convert": "blip3o convert import --source BLIP3o-Model-4B --output converted",
  "inspect": "blip3o inspect converted",
  "verify": "blip3o verify --model converted --recorded recorded.safetensors",
  "plan": "blip3o plan --config=blip3o_8b_pretrain --topology=v5p:4x4x4 --json plan.json",
  "check": "blip3o check /data/tars --output report",
  "index": "blip3o index /data/tars",
  "encode": "blip3o encode --config=blip3o_4b_pretrain:qwen=DIR,tars=/data/tars "
  "--output /data/features",
  "pack": "blip3o pack /data/tars --output /data/packed",
}
# Not the plan: it says how long compiling takes, and JAX cannot read programs of another machine.
COMPILES = ("train", "generate", "chat", "reconstruct", "verify", "encode")


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one verb; returns the exit status. Errors of the user are one readable line."""
  args = list(sys.argv[1:] if argv is None else argv)
  verbs = {"train": train, "generate": generate, "chat": chat, "reconstruct": reconstruct}
  verbs |= {verb: functools.partial(_command, verb) for verb in EXAMPLES if verb not in verbs}
  if args == ["--version"]:
    print(f"blip3o {blip3o_jax.__version__}")
    return 0
  if not args or args[0] in ("-h", "--help"):
    lines = "\n".join(f"  {EXAMPLES[v]}" for v in verbs)
    print(f"usage: blip3o {{{','.join(verbs)}}} ...\n\nexamples:\n{lines}")
    print("\n`blip3o VERB --help` shows the options of a verb; `blip3o --version` the version.")
    return 0 if args else 2
  if args[0] not in verbs:
    print(f"blip3o: {args[0]!r} is not one of {', '.join(verbs)}", file=sys.stderr)
    return 2
  if not {"-h", "--help"} & set(args):
    runtime.prepare(programs=args[0] in COMPILES)
  try:
    return guarded(f"blip3o {args[0]}", lambda: verbs[args[0]](args[1:]))
  except KeyboardInterrupt:
    return 130


def guarded(name: str, call: Callable[[], int], *more: type[Exception]) -> int:
  """What `call` returns; an error of the user is one line after `name`, and the status 1.

  Args:
    more: errors of the user beside ValueError and OSError.
  """
  users: tuple[type[Exception], ...] = (ValueError, OSError, *more)
  try:
    return call()
  except users as error:
    if os.environ.get("BLIP3O_TRACEBACK"):
      raise
    print(f"{name}: {error}", file=sys.stderr)
    return 1


def _command(verb: str, args: list[str]) -> int:
  """Runs a verb that is a module of `commands`."""
  module = importlib.import_module(f"blip3o_jax.commands.{verb}")
  return module.run(_describe(verb, module.__doc__ or ""), args)


def train(args: list[str]) -> int:
  """Trains what a config file describes, or goes on with it."""
  parser = _describe("train", "Trains what a config file describes; a second call goes on with it.")
  parser.add_argument(
    "--config",
    required=True,
    metavar="FILE[:ARG]",
    help="a config file, or the name of a released stage, and what it is asked for",
  )
  parser.add_argument("--workdir", metavar="DIR", help="the folder of the run")
  parser.add_argument(
    "--config.FIELD", dest="_", metavar="VALUE", help="any field, e.g. --config.optimizer.lr=3e-5"
  )
  parser.add_argument("--show", action="store_true", help="print all fields and stop")
  joining.add_options(parser)
  options, overrides = parser.parse_known_args(args)
  from blip3o_jax import config
  from blip3o_jax import recipes

  if not options.show and not options.workdir:
    parser.error("the following arguments are required: --workdir")
  from blip3o_jax.train import run

  values = config.load(options.config, overrides, recipes.RELEASED)
  written = config.load(options.config, named=recipes.RELEASED)
  if said := run.shorten(values, written, overrides):
    print(f"a shorter run: {said}", file=sys.stderr)
  if options.show:
    print("\n".join(config.lines(values)))
    return 0

  def work(parsed: Any) -> Any:
    from blip3o_jax import systems
    from blip3o_jax.train import loop

    return loop.run(parsed, systems.SYSTEMS[parsed.system], options.workdir)

  status, done = joining.together("train", options, values, options.workdir, work)
  if done is None:
    return status
  if done.first == done.step:
    before = f"finished before, at step {done.step} (config.steps is {values.steps})"
    print(f"nothing was trained: the run was {before}")
  else:
    print(f"{'interrupted' if done.interrupted else 'finished'} at step {done.step}")
  return os.EX_TEMPFAIL if done.interrupted else 0  # the table of codes: docs/training.md


def _describe(verb: str, what: str) -> argparse.ArgumentParser:
  return argparse.ArgumentParser(
    prog=f"blip3o {verb}",
    description=what,
    epilog=f"example:\n  {EXAMPLES[verb]}",
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )


def _at_least(
  least: float, kind: Callable[[str], Any] = int, below: float = math.inf
) -> Callable[[str], Any]:
  """An argparse type: a number that is not below `least`, and finite."""

  def read(text: str) -> Any:
    try:
      value = kind(text)
    except ValueError:
      raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not least <= value < below:
      most = "" if below == math.inf else f", below {below}"
      raise argparse.ArgumentTypeError(f"{text}: expected {least} or more{most}, and finite")
    return value

  return read


def _said(text: str) -> str:
  """An argparse type: a text with a word in it."""
  if not text.strip():
    raise argparse.ArgumentTypeError(f"{text!r} is empty; say what is wanted")
  return text


def _parser(verb: str, what: str) -> argparse.ArgumentParser:
  parser = _describe(verb, what)
  parser.add_argument(
    "--model",
    help="a directory, released, converted or of a run, or a hub id: owner/name (default: the "
    "miniature that ships with the package)",
  )
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
  parser.add_argument(
    "--seed",
    type=_at_least(0, below=2**64),
    default=0,
    help="image i uses seed + i (default 0), below 2**64",
  )
  parser.add_argument(
    "--friendly",
    action=argparse.BooleanOptionalAction,
    default=True,
    help="pictures upright as EXIF says, what is transparent on white, 16-bit grey scaled; "
    "--no-friendly reads them as released inference does",
  )
  return parser


def _with_texts(parser: argparse.ArgumentParser, what: str) -> None:
  """Adds texts, and the picture before them, to a parser."""
  from blip3o_jax.data import shapes

  many = "+" if what == "prompt" else "*"
  ask = "" if what == "prompt" else "without one, questions are read from the terminal; "
  known = f"the miniature knows: {shapes.SUMMARY} (all words: docs/miniature.md)"
  parser.add_argument(what, nargs=many, type=_said, help=ask + known)
  parser.add_argument("--image", type=Path, help=f"a picture that each {what} begins with")
  parser.add_argument(
    "--max-pixels",
    type=_at_least(0),
    default=0,
    help="the most that a picture keeps (0: as the model says, and what the prompt has room for)",
  )


def _load(options: argparse.Namespace, verb: str) -> Any:
  """The model that the options name.

  Raises:
    ValueError: its system has not the verb.
  """
  from blip3o_jax.miniature import shipped

  name = shipped.NAME if options.model is None else options.model
  if options.model is None:
    from blip3o_jax.data import shapes

    text = f"no --model: the miniature that ships with the package ({name}), which knows "
    print(f"{text}{shapes.SUMMARY}", file=sys.stderr)
  start = time.monotonic()
  model = blip3o_jax.load(options.model, dtype=options.dtype, verb=verb)
  print(f"loaded {name} in {time.monotonic() - start:.1f} s", file=sys.stderr)
  return model


def _save(images: Any, output: Path) -> None:
  """One PNG, of several pictures a grid; written under another name and renamed."""
  from PIL import Image

  output.parent.mkdir(parents=True, exist_ok=True)
  picture = images[0]
  if len(images) > 1:
    from blip3o_jax.train import metrics

    picture = metrics.grid(images)
  with files.replacing(output) as partial:
    Image.fromarray(picture).save(partial, "PNG")
  print(output)


def generate(args: list[str]) -> int:
  """Draws pictures of prompts."""
  parser = _parser("generate", "Draws a picture of each prompt.")
  _with_texts(parser, "prompt")
  parser.add_argument("--output", type=_png, default=Path("generated.png"))
  parser.add_argument(
    "--steps", type=_at_least(0), default=0, help="of the feature sampler (0: as the model says)"
  )
  parser.add_argument(
    "--pixel-steps",
    type=_at_least(0),
    default=0,
    help="of the pixel decoder (0: as the model says)",
  )
  parser.add_argument(
    "--scale", type=_at_least(0, float), default=0.0, help="guidance (0: as the model says)"
  )
  parser.add_argument("--sampler", choices=("euler", "heun"), help="(default: as the model says)")
  options = parser.parse_args(args)
  images = [_open(options.image, options.friendly)] * len(options.prompt) if options.image else []
  model = _load(options, "generate")
  seeds = [options.seed + i for i in range(len(options.prompt))]
  given = vars(options) | {"images": images}
  known = ("images", "steps", "scale", "sampler", "pixel_steps", "max_pixels")
  asked = {name: given[name] for name in known if given[name]}
  _save(model.generate(options.prompt, seeds, **asked), options.output)
  return 0


def chat(args: list[str]) -> int:
  """Answers questions, about a picture or without one."""
  parser = _parser("chat", "Answers questions, about a picture or without one.")
  _with_texts(parser, "question")
  parser.add_argument("--length", type=_at_least(1), default=64, help="most tokens of an answer")
  parser.add_argument(
    "--temperature", type=_at_least(0, float), default=0.0, help="0 takes the likeliest token"
  )
  options = parser.parse_args(args)
  image = _open(options.image, options.friendly) if options.image else None
  model = _load(options, "chat")
  asked = {"max_pixels": options.max_pixels} if options.max_pixels else {}
  for question in options.question or _typed():
    (answer,) = model.chat(
      [question],
      [image],
      length=options.length,
      temperature=options.temperature,
      seed=options.seed,
      **asked,
    )
    print(answer, flush=True)
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


def reconstruct(args: list[str]) -> int:
  """Sends pictures through the image encoder and the pixel decoder."""
  parser = _parser("reconstruct", "Sends pictures through encoder and pixel decoder.")
  parser.add_argument("image", nargs="+", type=Path)
  parser.add_argument("--output", type=_png, default=Path("reconstructed.png"))
  parser.add_argument(
    "--pixel-steps",
    type=_at_least(0),
    default=0,
    help="of the pixel decoder (0: as the model says)",
  )
  options = parser.parse_args(args)
  images = [_open(path, options.friendly) for path in options.image]
  model = _load(options, "reconstruct")
  seeds = [options.seed + i for i in range(len(images))]
  _save(model.reconstruct(images, seeds, pixel_steps=options.pixel_steps), options.output)
  return 0


def _png(text: str) -> Path:
  """An argparse type: a path that ends in .png, of no folder."""
  if Path(text).is_dir():
    raise argparse.ArgumentTypeError(f"{text}: is a folder; name a file in it")
  if not text.lower().endswith(".png"):
    raise argparse.ArgumentTypeError(f"{text}: expected a name that ends in .png")
  return Path(text)


def _open(path: Path, friendly: bool) -> Any:
  """The picture of a file as RGB, see `images.rgb`."""
  from blip3o_jax.data import images

  if not path.is_file():
    raise FileNotFoundError(f"{path}: no such image file")
  with warnings.catch_warnings(action="ignore"):  # Pillow's, of damaged EXIF and of large photos
    return images.decode(path.read_bytes(), str(path), friendly=friendly)


if __name__ == "__main__":
  sys.exit(main())
