"""Serves a model over HTTP: the OpenAI API of pictures and of chat, and a page.

Only this machine can ask it, unless --host says otherwise. See docs/serving.md.
"""

import argparse
from collections.abc import Sequence
import dataclasses
import functools
import ipaddress
import os
from pathlib import Path
import sys
from typing import TYPE_CHECKING
from typing import Any

from blip3o_jax import asking

if TYPE_CHECKING:
  from blip3o_jax.serve.settings import Settings

KEY = "BLIP3O_API_KEY"
LOCAL = ("localhost", "127.0.0.1", "::1")
SHAPES = (
  "a red circle left of a blue square",
  "a green triangle above a yellow star",
  "two blue circles",
)
OF_SHAPES = ("how many circles are there?", "what color is the square?")
GENERAL = ("a cat that reads a newspaper in a cafe", "a lighthouse at dusk, oil on canvas")
OF_GENERAL = ("What is in this picture?", "What is the mood of this picture?")


def run(parser: argparse.ArgumentParser, args: Sequence[str]) -> int:
  """Serves until it is told to end; returns the exit status."""
  _add_options(parser)
  options = parser.parse_args(args)
  try:
    from blip3o_jax.serve import app as application
    from blip3o_jax.serve import serving
  except ModuleNotFoundError as error:
    if (error.name or "").startswith("blip3o_jax"):
      raise
    raise ValueError(
      f"serving needs the package {error.name}: pip install 'blip3o-jax[serve]'"
    ) from None

  settings = _settings(options)
  with serving.listen(options.host, options.port) as listening:
    if not is_loopback(options.host):
      what = "with the key" if settings.key else "and use the model, without a key"
      print(f"--host {options.host}: other machines can ask this server {what}", file=sys.stderr)
    model = asking.load(options, "")
    if model.words:
      settings = dataclasses.replace(settings, prompts=SHAPES, questions=OF_SHAPES)
    port = listening.getsockname()[1]
    shown = f"[{options.host}]" if ":" in options.host else options.host
    print(f"{settings.name}: http://{shown}:{port}", flush=True)
    say = functools.partial(print, file=sys.stderr, flush=True)
    say("warming up: programs are compiled, and requests get 503 until it is ready")
    ended = serving.run(application.create(model, settings), listening, say)
  if not ended:  # its thread is inside of a step, and would hold the process
    os._exit(0)
  return 0


def is_loopback(host: str) -> bool:
  """Whether only this machine reaches an address."""
  if host == "localhost":
    return True
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return False


def _add_options(parser: argparse.ArgumentParser) -> None:
  at_least = asking.at_least
  parser.add_argument(
    "--model",
    help="a directory, released, converted or of a run, or a hub id (default: the miniature)",
  )
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
  parser.add_argument("--name", help="of the model, for clients (default: the directory's or id)")
  parser.add_argument("--host", default="127.0.0.1", help="to listen at (default: this machine)")
  parser.add_argument(
    "--port", type=at_least(0, below=2**16), default=8000, help="0 is any free (default 8000)"
  )
  parser.add_argument(
    "--allow-host",
    action="append",
    default=[],
    metavar="NAME",
    help="a further name by which a server on this machine may be called; may be repeated",
  )
  parser.add_argument(
    "--api-key-env",
    metavar="NAME",
    help=f"the variable that holds the key which clients must send (default {KEY}, if it is set)",
  )
  numbers: tuple[tuple[str, Any, Any, str], ...] = (
    ("batch", at_least(1), 8, "pictures or answers at once, a power of two"),
    ("wait-ms", at_least(0, float), 5, "milliseconds that a batch waits for more"),
    ("queue", at_least(10), 64, "pictures and answers that may wait, before 429"),
    ("timeout", at_least(0.1, float), 120, "seconds of a request, before 504"),
    ("drain", at_least(0, float), 30, "seconds for what runs when told to end"),
    ("max-prompt", at_least(1), 32_000, "characters of a prompt or of a conversation"),
    ("max-tokens", at_least(1), 4096, "of an answer"),
    ("max-body-mib", at_least(1), 32, "of a request"),
    ("max-image-mib", at_least(1), 16, "of one encoded picture"),
    ("max-image-pixels", at_least(1), 2**24, "of one picture, by its header"),
    ("max-images", at_least(1), 16, "in one request"),
  )
  for name, kind, default, what in numbers:
    parser.add_argument(f"--{name}", type=kind, default=default, help=f"{what} (default {default})")
  parser.add_argument(
    "--remote-images",
    action="store_true",
    help="fetch pictures of a chat that are http URLs; never of private addresses",
  )
  asking.add_memory(parser)


def _settings(options: argparse.Namespace) -> "Settings":
  from blip3o_jax.serve.settings import MIB
  from blip3o_jax.serve.settings import Limits
  from blip3o_jax.serve.settings import Settings

  return Settings(
    name=options.name or _name(options.model),
    batch=options.batch,
    wait=options.wait_ms / 1000,
    queue=options.queue,
    timeout=options.timeout,
    drain=options.drain,
    key=_key(options.api_key_env),
    hosts=_hosts(options.host, options.allow_host),
    remote=options.remote_images,
    prompts=GENERAL,
    questions=OF_GENERAL,
    limits=Limits(
      prompt=options.max_prompt,
      tokens=options.max_tokens,
      body=options.max_body_mib * MIB,
      image_bytes=options.max_image_mib * MIB,
      image_pixels=options.max_image_pixels,
      images=options.max_images,
      # Of one request at least, whatever it may be.
      waiting_pixels=max(Limits.waiting_pixels, options.max_images * options.max_image_pixels),
    ),
  )


def _name(model: str | None) -> str:
  """What clients call a model: no path of this machine."""
  if model is None:
    return "blip3o-miniature"
  return Path(model).resolve().name if Path(model).exists() else model.removeprefix("hf://")


def _hosts(host: str, more: Sequence[str]) -> tuple[str, ...]:
  """Names by which the server may be called; any, where others are meant to reach it."""
  if not (is_loopback(host) or more):
    return ()
  return tuple({*LOCAL, *(name.lower() for name in (host, *more))})


def _key(name: str | None) -> str:
  key = os.environ.get(name or KEY, "").strip()
  if name and not key:
    raise ValueError(f"--api-key-env {name}: the variable is empty or not set")
  return key
