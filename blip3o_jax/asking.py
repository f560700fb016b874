"""What the verbs that use a model share: their options, the model that is named, and pictures."""

import argparse
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import math
from pathlib import Path
import re
import sys
import time
from typing import TYPE_CHECKING
from typing import Any
import warnings

import blip3o_jax

if TYPE_CHECKING:
  from blip3o_jax import Picture
  from blip3o_jax import Progress

EVERY = 0.1  # seconds between two looks at a bar
# Options that a verb hands over as keywords where they were given, and what they say. Which of them
# a system takes, it says itself.
DRAWING: dict[str, Mapping[str, Any]] = {
  "steps": {"help": "of the sampler that draws (0: as the model says)"},
  "pixel_steps": {"help": "of the pixel decoder, where it is another one (0: as the model says)"},
  "guidance": {"help": "scale of it; 1 is none (0: as the model says)"},
  "sampler": {"choices": ("euler", "heun"), "help": "(default: as the model says)"},
  "size": {"metavar": "HxW", "help": "height and width in pixels (default: as the model says)"},
  "language": {"help": "of the prompt's template, such as zh (default: as the model says)"},
  "decoder": {"help": "which of a model's pixel decoders (default: as the model says)"},
}


def add_options(parser: argparse.ArgumentParser) -> None:
  """The model, its type, the seed, and how pictures are read."""
  parser.add_argument(
    "--model",
    help="a directory, released, converted or of a run, or a hub id: owner/name (default: "
    "miniature, which ships with the package; miniature:SYSTEM is another system's)",
  )
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
  add_memory(parser)
  parser.add_argument(
    "--seed",
    type=at_least(0, below=2**64),
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


def add_memory(parser: argparse.ArgumentParser) -> None:
  """How the model lies in memory; see docs/memory.md."""
  add = parser.add_argument_group(
    "memory", "for models that do not fit; see docs/memory.md"
  ).add_argument
  add(
    "--mesh", metavar="AXIS=N,...", help="spreads it over devices, as in training: fsdp=4,tensor=2"
  )
  add("--int8", action="store_true", help="stores blocks of language model and denoiser in int8")
  add("--offload", action="store_true", help="keeps it on the host, and on the device what is used")
  add(
    "--tile",
    type=at_least(0),
    default=0,
    metavar="PIXELS",
    help="decodes larger pictures in tiles of this side (default 0: whole)",
  )


def add_drawing(parser: argparse.ArgumentParser, *names: str) -> None:
  """Options of `DRAWING` by their names."""
  kinds: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("steps", "pixel_steps"), at_least(0)),
    "guidance": at_least(0, float),
    "size": size,
  }
  for name in names:
    flag = f"--{name.replace('_', '-')}"
    parser.add_argument(flag, type=kinds.get(name, str), **DRAWING[name])


def add_shown(parser: argparse.ArgumentParser) -> None:
  """How large a picture may be that the model looks at."""
  parser.add_argument(
    "--max-pixels",
    type=at_least(0),
    default=0,
    help="the most that a picture keeps (0: as the model says, and what the prompt has room for)",
  )


def add_texts(parser: argparse.ArgumentParser, what: str) -> None:
  """Texts, and the picture before them."""
  from blip3o_jax.data import shapes

  ask = "" if what == "prompt" else "without one, questions are read from the terminal; "
  known = f"the miniature knows: {shapes.SUMMARY} (all words: docs/miniature.md)"
  parser.add_argument(what, nargs="*", type=said, help=ask + known)
  several = " (several times: several)" if what == "question" else ""
  parser.add_argument(
    "--image",
    type=Path,
    action="append",
    help=f"a picture that each {what} begins with{several}",
  )
  add_shown(parser)


def add_number(parser: argparse.ArgumentParser) -> None:
  """How many pictures of each text."""
  parser.add_argument(
    "-n", "--number", type=at_least(1), default=1, help="pictures of each (default 1)"
  )


def add_output(parser: argparse.ArgumentParser, name: str) -> None:
  """Where pictures are written."""
  parser.add_argument(
    "--output",
    type=place,
    default=Path(name),
    metavar="FILE.png|DIR",
    help=f"one file, of several pictures a grid, or a folder with a file each (default {name})",
  )


def add_share(parser: argparse.ArgumentParser) -> None:
  """How many files are drawn at once, and by how many processes."""
  parser.add_argument(
    "--batch", type=at_least(1), default=8, help="pictures drawn at once (default 8)"
  )
  parser.add_argument(
    "--process", type=at_least(0), default=0, metavar="I", help="which this is, from 0"
  )
  parser.add_argument(
    "--processes",
    type=at_least(1),
    default=1,
    metavar="N",
    help="that share the files; none needs to know of the others (default 1)",
  )


def given(options: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
  """Those of the options that were given: what is 0 or absent is left to the model."""
  values = vars(options)
  return {name: values[name] for name in names if values[name]}


# Types of options ---------------------------------------------------------------------------------


def at_least(
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
      finite = "" if kind is int else ", and finite"
      raise argparse.ArgumentTypeError(f"{text}: expected {least} or more{most}{finite}")
    return value

  return read


def said(text: str) -> str:
  """An argparse type: a text with a word in it."""
  if not text.strip():
    raise argparse.ArgumentTypeError(f"{text!r} is empty; say what is wanted")
  return text


def size(text: str) -> tuple[int, int]:
  """An argparse type: height and width, "512x768", or one number for a square."""
  found = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
  if found is None:
    raise argparse.ArgumentTypeError(f"{text!r}: expected height and width in pixels, as 512x768")
  return int(found[1]), int(found[2] or found[1])


def place(text: str) -> Path:
  """An argparse type: a file that ends in .png, or a folder."""
  found = Path(text)
  if found.is_dir() or not found.suffix:
    if found.is_file():
      raise argparse.ArgumentTypeError(f"{text}: is a file that does not end in .png")
    return found
  return png(text)


def png(text: str) -> Path:
  """An argparse type: a path that ends in .png, of no folder."""
  if Path(text).is_dir():
    raise argparse.ArgumentTypeError(f"{text}: is a folder; name a file in it")
  if not text.lower().endswith(".png"):
    raise argparse.ArgumentTypeError(f"{text}: expected a name that ends in .png")
  return Path(text)


# The model and pictures ---------------------------------------------------------------------------


def lying(options: argparse.Namespace) -> dict[str, Any]:
  """Keywords of `blip3o_jax.load`: the type, and `add_memory`'s options."""
  return {
    "dtype": options.dtype,
    "mesh": options.mesh,
    "weights": "int8" if options.int8 else "float",
    "offload": options.offload,
    "tile": options.tile,
  }


def load(options: argparse.Namespace, verb: str) -> Any:
  """The model that the options name.

  Raises:
    ValueError: its system has not the verb.
  """
  with loading(options.model, verb):
    return blip3o_jax.load(options.model, **lying(options), verb=verb)


@contextlib.contextmanager
def loading(model: str | None, verb: str = "") -> Iterator[None]:
  """Says which model is loaded, for what it is asked to do, and how long it took."""
  name = model
  if name is None:
    from blip3o_jax.data import shapes
    from blip3o_jax.miniature import shipped
    from blip3o_jax.use import opening

    name = shipped.name(opening.miniature(None, verb))
    text = f"no --model: the miniature that ships with the package ({name}), which knows "
    print(f"{text}{shapes.SUMMARY}", file=sys.stderr)
  start = time.monotonic()
  yield
  print(f"loaded {name} in {time.monotonic() - start:.1f} s", file=sys.stderr)


def open_image(path: Path, friendly: bool) -> Any:
  """The picture of a file as RGB, see `images.rgb`."""
  from blip3o_jax.data import images

  if path.is_dir():
    raise IsADirectoryError(f"{path}: is a folder; expected the file of a picture")
  if not path.is_file():
    raise FileNotFoundError(f"{path}: no such image file")
  with warnings.catch_warnings(action="ignore"):  # Pillow's, of damaged EXIF and of large photos
    return images.decode(path.read_bytes(), str(path), friendly=friendly)


def image_of(path: Path, friendly: bool, *, whole: bool = False) -> dict[str, Any]:
  """What metadata say of a picture's file: its name without folders, and with `whole` its sha256.

  That sum tells a call that goes on whether the picture is still the one that it began with.
  """
  from blip3o_jax.data import images

  return {"image": path.name, **images.identity(path.read_bytes() if whole else None, friendly)}


def made_of(
  pictures: Sequence["Picture"], paths: Sequence[Path], friendly: bool
) -> list["Picture"]:
  """Pictures whose metadata name the files that they were made of, one each; see `image_of`."""
  return [
    dataclasses.replace(made, settings={**made.settings, **image_of(path, friendly)})
    for made, path in zip(pictures, paths, strict=True)
  ]


def save(pictures: Sequence["Picture"], output: Path) -> list[Path]:
  """Writes pictures with their metadata, and prints where.

  Args:
    output: a file that ends in .png, of several pictures a grid; or a folder, in which each has a
      file of its own, named by its number.
  """
  from blip3o_jax.use import picture

  if output.suffix.lower() != ".png":
    found = [each.save(output / f"{i:04d}.png") for i, each in enumerate(pictures)]
  elif len(pictures) == 1:
    found = [pictures[0].save(output)]
  else:
    import numpy as np

    from blip3o_jax.train import metrics

    made = metrics.grid(np.stack([each.pixels for each in pictures]))
    metadata = {"pictures": [each.metadata for each in pictures]}
    picture.write(output, picture.encode(made, metadata))
    found = [output]
  for path in found:
    print(path, flush=True)
  return found


@contextlib.contextmanager
def bar() -> Iterator[Callable[["Progress"], None] | None]:
  """What a model calls between its steps, a bar on a terminal; None where there is none."""
  if not sys.stderr.isatty():
    yield None
    return
  from tqdm import tqdm

  with tqdm(total=1.0, bar_format="{desc} {bar} {percentage:3.0f}% {elapsed}<{remaining}") as shown:
    stages: list[str] = []  # of the batch that is drawn

    def draw(progress: "Progress") -> None:
      first, last = progress.first + 1, progress.first + progress.count
      if shown.n * progress.pictures < progress.first:
        stages.clear()
      if progress.stage not in stages:
        stages.append(progress.stage)
      which = f"{first}-{last} of {progress.pictures}" if progress.pictures > 1 else ""
      shown.set_description_str(
        f"{progress.stage} {progress.done}/{progress.total} {which}".strip()
      )
      # Two stages, taken as equally long.
      part = min(1.0, (len(stages) - 1 + progress.part) / 2)
      shown.n = max(shown.n, (progress.first + part * progress.count) / progress.pictures)
      shown.refresh()

    yield draw
    shown.n = 1.0
    shown.refresh()
