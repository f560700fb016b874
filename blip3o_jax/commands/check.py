"""What a set holds: layout, records, pictures, captions, padding, duplicates, damage.

Takes folders, files and addresses as they are, or a config, whose data is checked. Captions are
read one and all, pictures in a sample. Makes the index that training uses, where there is none.
"""

import argparse
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import json
import os
from pathlib import Path
import sys
from typing import Any

from blip3o_jax import config
from blip3o_jax import files
from blip3o_jax import recipes
from blip3o_jax.data import checked
from blip3o_jax.data import checking
from blip3o_jax.data import licence
from blip3o_jax.data import opening
from blip3o_jax.data import sources
from blip3o_jax.data.checking import Asked
from blip3o_jax.data.checking import Facts
from blip3o_jax.data.checking import Shown
from blip3o_jax.data.checking import Tokens
from blip3o_jax.data.options import Data
from blip3o_jax.data.records import Record
from blip3o_jax.data.records import Source
from blip3o_jax.data.sources import mixed
from blip3o_jax.data.sources import reading as reading_options
from blip3o_jax.data.sources.reading import Reading
from blip3o_jax.data.text.tokenizer import Tokenizer

Set = tuple[Facts, list[Shown]]


def run(parser: argparse.ArgumentParser, args: Sequence[str]) -> int:
  """Checks what the arguments name; returns the exit status."""
  _describe(parser)
  options, overrides = parser.parse_known_args(args)
  source = options.source[0]
  described = _is_config(source)
  if any(not word.startswith("--config.") for word in overrides) or (overrides and not described):
    parser.error(f"unrecognized arguments: {' '.join(overrides)}")
  if options.json is not None and not options.json.absolute().parent.is_dir():
    raise ValueError(f"{options.json}: no such folder; nothing was checked")
  reading = reading_options.of_options(options)
  if described:
    if len(options.source) > 1 or reading != Reading():
      raise ValueError(f"{source}: a config says itself what is read, and how; give nothing else")
    found = _of_config(source, overrides, options)
  else:
    tokens = _tokens(options.tokenizer) if options.tokenizer else None
    asked = Asked(options.sample, tokens)
    found = [
      each
      for path in options.source
      for each in _sets(Data(path=path, reading=reading), path, asked)
    ]
  _write(found, options)
  unusable = [facts["name"] for facts, _ in found if not facts["first"]]
  for name in unusable:
    print(f"blip3o check: {name}: none of the records looked at can be used", file=sys.stderr)
  return 1 if unusable else 0


def _describe(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add("source", nargs="+", metavar="CONFIG_OR_PATH", help="folders, files, addresses; or a config")
  reading_options.add_options(parser)
  add("--tokenizer", default="", metavar="DIR", help="counts tokens (default: words and bytes)")
  add("--sample", type=_count, default=1000, help="pictures to decode, 0 for all (default 1000)")
  add("--json", type=Path, metavar="FILE", help="writes the figures")
  add("--output", type=Path, metavar="DIR", help="writes report.html and report.json")
  add("--config.FIELD", dest="_", metavar="VALUE", help="any field of a config")


def _count(text: str) -> int:
  if not text.isdigit():
    raise argparse.ArgumentTypeError(f"{text!r}: expected 0 or more")
  return int(text)


def _is_config(source: str) -> bool:
  """Whether an argument is FILE.py[:ARG] or NAME[:ARG] of a released stage, and no path."""
  name = source.partition(":")[0]
  return name.endswith(".py") or (name in recipes.RELEASED and not os.path.exists(source))


def _of_config(source: str, overrides: Sequence[str], options: argparse.Namespace) -> list[Set]:
  """The sets of a config's data, with the tokens that its system makes of them."""
  os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing here computes
  from blip3o_jax import systems
  from blip3o_jax.train import run as train_run

  made = train_run.parse(config.load(source, overrides, recipes.RELEASED), systems.SYSTEMS)
  data, system = made.data, systems.SYSTEMS[made.system]
  tokens = None
  if directory := options.tokenizer or made.tokenizer:
    tokenizer = Tokenizer.load(directory, system.SPECIAL)
    transform = system.transforms(made.model, data, tokenizer)[data.buckets[0]]
    tokens = Tokens(transform.counts, transform.tokens, template=True)
  asked = Asked(options.sample, tokens, data.buckets, data.friendly)
  if not data.mixture:
    return list(_sets(data, data.path or data.source, asked, used=True))
  return [
    each
    for one in data.mixture
    for each in _sets(data.alone(one), one.name or one.path or one.split, asked, used=True)
  ]


def _sets(data: Data, name: str, asked: Asked, *, used: bool = False) -> Iterator[Set]:
  """What is found at one path: a set for each field of captions.

  Raises:
    FileNotFoundError, ValueError: nothing there, of no known layout, or no record.
  """
  layout: str = data.source
  if data.source == "files":
    layout = found = sources.layout_of(data.path, data.reading)
    data = dataclasses.replace(data, reading=dataclasses.replace(data.reading, layout=found))
  source = opening.open_source(data)
  pieces = mixed.pieces(source)
  terms = {"licence": str(licence.note(data.path))} if data.source == "files" else {}
  for piece in pieces:
    said = f"{name} ({piece.name.rpartition('.')[2]})" if len(pieces) > 1 else name
    try:
      facts, shown = checking.check(piece.source, layout, asked)
    except ValueError as error:
      raise ValueError(f"{said}: {error}") from None
    about: Facts = {"name": said, "path": data.path, **terms}
    if used:
      about["used"] = {"split": data.split, "records": _used(piece.source, data)}
    yield about | facts, shown


def _used(source: Source, data: Data) -> int:
  """How many records of a set training would use."""
  try:
    return len(opening.used(source, data))
  except ValueError:  # none, which a run refuses and a check tells
    return 0


def _tokens(directory: str) -> Tokens:
  """Tokens of texts alone."""
  tokenizer = Tokenizer.load(directory, {})

  def count(record: Record) -> int:
    return len(tokenizer.encode(checking.text_of(record)))

  return Tokens(f"texts {tokenizer.fingerprint}", count)


def _write(found: Sequence[Set], options: argparse.Namespace) -> None:
  """Prints the tables, writes the files that were asked for."""
  sets = [facts for facts, _ in found]
  for facts in sets:
    print("\n".join(checked.lines(facts)), flush=True)
  told: dict[str, Any] = sets[0]
  if len(sets) > 1:
    told = {name: sets[0][name] for name in ("layout", "first")}
    told |= {"records": sum(facts["records"] for facts in sets), "sets": sets}
  text = json.dumps(told, indent=1) + "\n"
  if options.json is not None:
    files.write_text(options.json, text)
  if options.output is not None:
    options.output.mkdir(parents=True, exist_ok=True)
    files.write_text(options.output / "report.json", text)
    files.write_text(options.output / "report.html", checked.page(found))
    print(options.output / "report.html")
