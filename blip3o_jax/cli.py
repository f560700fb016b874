"""The `blip3o` command: training, and the verbs that `commands` has. Parses, calls, prints."""

import argparse
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
import difflib
import functools
import importlib
import os
import sys
from typing import Any
from typing import NoReturn

import blip3o_jax
from blip3o_jax import files
from blip3o_jax import joining
from blip3o_jax import runtime

EXAMPLES = {
  "train": "blip3o train --config=blip3o_4b_pretrain:qwen=DIR --workdir=runs/4b "
  "--config.data.path=/data/tars --config.optimizer.lr=3e-5",
  "generate": 'blip3o generate "a red circle left of a blue square" --seed 1',
  "chat": 'blip3o chat "how many stars are there?" --image picture.png --model DIR',
  "edit": 'blip3o edit picture.png "make the red circle green" --output edited.png',
  "reconstruct": "blip3o reconstruct picture.png --model DIR --output rebuilt.png",
  "show": "blip3o show generated.png",
  "compare": "blip3o compare runs/a runs/b --output comparison",
  "evaluate": "blip3o evaluate geneval --prompts evaluation_metadata.jsonl --output runs/geneval",
  "serve": "blip3o serve --model DIR --port 8000",
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
COMPILES = (
  *("train", "encode", "verify", "evaluate", "compare", "serve"),
  *("generate", "chat", "edit", "reconstruct"),
)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one verb; returns the exit status. Errors of the user are one readable line."""
  args = list(sys.argv[1:] if argv is None else argv)
  verbs: dict[str, Callable[[list[str]], int]] = {"train": train}
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
    near = _nearest(args[0], verbs)
    print(f"blip3o: {args[0]!r} is not one of {', '.join(verbs)}{near}", file=sys.stderr)
    return 2
  if not {"-h", "--help"} & set(args):
    runtime.prepare(programs=args[0] in COMPILES)
  try:
    return guarded(f"blip3o {args[0]}", lambda: verbs[args[0]](args[1:]))
  except KeyboardInterrupt:
    return 130


def guarded(name: str, call: Callable[[], int], *more: type[Exception]) -> int:
  """What `call` returns; an error of the user is one line after `name`, and the status 1.

  So is a place that does not answer, with the status that asks for the same call again (75).

  Args:
    more: errors of the user beside ValueError and OSError.
  """
  users: tuple[type[Exception], ...] = (ValueError, OSError, files.Unreachable, *more)
  try:
    return call()
  except users as error:
    if os.environ.get("BLIP3O_TRACEBACK"):
      raise
    print(f"{name}: {error}", file=sys.stderr)
    return os.EX_TEMPFAIL if isinstance(error, files.Unreachable) else 1


def _command(verb: str, args: list[str]) -> int:
  """Runs a verb that is a module of `commands`."""
  with runtime.uncollected():
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


class Parser(argparse.ArgumentParser):
  """argparse's, whose errors are one line, with the nearest name of an option that is not there."""

  def error(self, message: str) -> NoReturn:
    """Ends with the status 2."""
    head, _, rest = message.partition("unrecognized arguments: ")
    if rest and not head:
      flag = rest.partition(" ")[0].partition("=")[0]
      known = [name for action in self._actions for name in action.option_strings]
      message += _nearest(flag, known) if flag.startswith("-") else ""
    self.exit(2, f"{self.prog}: {message} ({self.prog} --help shows what there is)\n")


def _nearest(name: str, known: Iterable[str]) -> str:
  found = difflib.get_close_matches(name, list(known), 1)
  return f"; did you mean {found[0]}?" if found else ""


def _describe(verb: str, what: str) -> argparse.ArgumentParser:
  return Parser(
    prog=f"blip3o {verb}",
    description=what,
    epilog=f"example:\n  {EXAMPLES[verb]}",
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )


if __name__ == "__main__":
  sys.exit(main())
