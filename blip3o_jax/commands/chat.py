"""Answers questions, about pictures or without one.

Questions that are given stand each for itself, unless --conversation is given too. Those that are
typed are one conversation: /new begins another, /image PATH shows a picture with the next question.

A model that draws may answer with pictures; each is written beside its answer, which holds a mark
in the place where it stands.
"""

import argparse
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import json
from pathlib import Path
import sys
from typing import TYPE_CHECKING
from typing import Any

from blip3o_jax import asking

if TYPE_CHECKING:
  from blip3o_jax import Answer

DRAWING = ("steps", "guidance", "size")
SAYING = ("length", "temperature", "top_k", "top_p", "repetition_penalty", "stop")
COMMANDS = "/new, /image PATH"


def run(parser: argparse.ArgumentParser, args: Sequence[str]) -> int:
  """Answers questions one after the other; returns the exit status."""
  _add_options(parser)
  options = parser.parse_args(args)
  images = [asking.open_image(path, options.friendly) for path in options.image or ()]
  model = asking.load(options, "chat")
  talk = Talk(model, options, images)
  if options.question:
    for question in options.question:
      if not options.conversation:
        talk.begin()
      talk.ask(question)
    return 0
  friendly, asks = options.friendly, sys.stdin.isatty()
  for line in _typed(asks):
    try:
      _obey(talk, line, lambda path: asking.open_image(path, friendly))
    except (ValueError, OSError) as error:
      if not asks:
        raise
      print(f"blip3o chat: {error}", file=sys.stderr)
  return 0


def _add_options(parser: argparse.ArgumentParser) -> None:
  at_least = asking.at_least
  asking.add_options(parser)
  asking.add_texts(parser, "question")
  parser.add_argument(
    "--conversation", action="store_true", help="remember the questions before, and their answers"
  )
  parser.add_argument("--system", metavar="TEXT", help="said before all, in place of the model's")
  parser.add_argument("--length", type=at_least(1), help="most tokens of an answer (default 64)")
  number = at_least(0, float)
  parser.add_argument(
    "--temperature",
    type=number,
    help="0 takes the likeliest token (default: as the model says, as of the next three)",
  )
  parser.add_argument("--top-k", type=at_least(0), help="draw from so many tokens; 0: from all")
  parser.add_argument("--top-p", type=number, help="draw from the likeliest of this mass, 0 to 1")
  parser.add_argument("--repetition-penalty", type=number, help="above 1 less is said again")
  parser.add_argument(
    "--stop", action="append", metavar="TEXT", help="ends an answer; may be given several times"
  )
  parser.add_argument("--json", action="store_true", help="a line of JSON for each answer")
  parser.add_argument(
    "--output",
    type=asking.png,
    default=Path("answer.png"),
    help="the picture of an answer (default answer.png); further ones are answer-2.png, ...",
  )
  asking.add_drawing(parser, *DRAWING)


class Talk:
  """A conversation, as far as it has come.

  Args:
    images: that the first question of a conversation begins with.
  """

  def __init__(self, model: Any, options: argparse.Namespace, images: Sequence[Any]):
    self._model, self._options, self._first = model, options, list(images)
    values = vars(options)
    self._asked = asking.given(options, (*DRAWING, "max_pixels"))
    self._asked |= {name: values[name] for name in SAYING if values[name] is not None}
    self._drawn = 0
    self.begin()

  def begin(self) -> None:
    """Forgets what was said."""
    system = self._options.system
    self._said = [] if system is None else [{"role": "system", "content": system}]
    self._shown = list(self._first)

  def show(self, image: Any) -> None:
    """Shows a picture with the next question."""
    self._shown.append(image)

  def ask(self, question: str) -> None:
    """Asks and prints the answer; what is wrong is not remembered."""
    parts = [{"type": "image", "image": image} for image in self._shown]
    message = {"role": "user", "content": [*parts, {"type": "text", "text": question}]}
    live = sys.stdout.isatty() and not self._options.json
    answer = self._model.chat(
      [*self._said, message],
      self._options.seed,
      hear=(lambda text: print(text, end="", flush=True)) if live else None,
      **self._asked,
    )
    self._said, self._shown = [*self._said, message, answer.message], []
    self._print(answer, live)

  def _print(self, answer: "Answer", heard: bool) -> None:
    output, paths = self._options.output, []
    for picture in answer.pictures:
      self._drawn += 1
      name = output.stem + (f"-{self._drawn}" if self._drawn > 1 else "")
      paths.append(str(picture.save(output.with_name(f"{name}{output.suffix}"))))
    if self._options.json:
      told = {name: getattr(answer, name) for name in ("text", "finish", "tokens", "prompt_tokens")}
      lines = [json.dumps({**told, "pictures": paths}, ensure_ascii=False)]
    else:
      lines = ["" if heard else answer.text, *paths]
    print("\n".join(lines), flush=True)


def _obey(talk: Talk, line: str, read: Callable[[Path], Any]) -> None:
  """What was typed: a question, or one of `COMMANDS`; raises ValueError for another command."""
  command, _, rest = line.strip().partition(" ")
  if command == "/new" and not rest:
    talk.begin()
  elif command == "/image" and rest.strip():
    talk.show(read(Path(rest.strip()).expanduser()))
  elif command.startswith("/"):
    raise ValueError(f"{line.strip()[:60]!r}: expected a question, or one of {COMMANDS}")
  else:
    talk.ask(line)


def _typed(asks: bool) -> Iterator[str]:
  """Lines typed at a terminal, until the end of input; an empty one asks nothing."""
  while True:
    try:
      line = input("> " if asks else "")
    except EOFError:
      return
    if line.strip():
      yield line
