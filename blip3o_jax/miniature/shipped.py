"""The trained miniatures that ship with the package: where they are, and whether they are whole.

A system has one at most. Its folder is in the released layout, in half precision, with a card
beside the model: `card.json` (how it was trained and what it scored), the same as prose in
`README.md`, and `SHA256SUMS`. `tools/ship.py` writes it. Imports no jax.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

DEFAULT = "blip3o"  # the system whose miniature is meant where none is named
FOLDERS = "shapes_{}"
NAME = "blip3o_jax/assets/shapes"  # as messages call that one, wherever the package is installed
CARD, PROSE, SUMS = "card.json", "README.md", "SHA256SUMS"
BUDGET = 17_000_000  # bytes of all files of one together
_AGAIN = "install the package again"
_ASSETS = Path(__file__).parents[1] / "assets"


def name(system: str = DEFAULT) -> str:
  """What messages call the folder of a system's miniature."""
  return NAME if system == DEFAULT else NAME.replace("shapes", FOLDERS.format(system))


def directory(system: str = DEFAULT) -> Path:
  """The folder of a system's shipped miniature.

  Raises:
    FileNotFoundError: an installation without it.
  """
  home = _ASSETS / Path(name(system)).name
  if not (home / SUMS).is_file():
    raise FileNotFoundError(
      f"{name(system)}/{SUMS}: absent, this installation came without the trained miniature; "
      "install the package again (from a wheel or a whole checkout), or name a model with "
      "--model DIR"
    )
  return home


def systems() -> list[str]:
  """The systems whose miniatures this installation has, the default first."""
  before, _ = FOLDERS.split("{}")
  known = sorted(
    path.parent.name.removeprefix(before) for path in _ASSETS.glob(f"{before}*/{SUMS}")
  )
  return [DEFAULT] * (_ASSETS / Path(NAME).name / SUMS).is_file() + known


def verify(home: Path | None = None) -> dict[str, str]:
  """{file: sha256} of a folder with SHA256SUMS (the default's), after comparing every file.

  Raises:
    FileNotFoundError: no such folder, or a file that the list names and the folder lacks.
    ValueError: a file that is not as the list says, or that the list does not name.
  """
  home = directory() if home is None else home
  lines = (home / SUMS).read_text().splitlines()
  wanted = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
  found = sums(home)
  for name, digest in wanted.items():
    if name not in found:
      raise FileNotFoundError(f"{home / name}: absent, but {SUMS} names it; {_AGAIN}")
    if found[name] != digest:
      raise ValueError(f"{home / name}: damaged, its sha256 is not that of {SUMS}; {_AGAIN}")
  if odd := sorted(set(found) - set(wanted)):
    raise ValueError(f"{home / odd[0]}: no part of the shipped miniature, {SUMS} lacks it")
  return wanted


def sums(home: Path) -> dict[str, str]:
  """{path relative to `home`: sha256} of every file below it but the list of sums itself."""
  files = sorted(path for path in home.rglob("*") if path.is_file())
  return {
    name: hashlib.sha256(path.read_bytes()).hexdigest()
    for path in files
    if (name := path.relative_to(home).as_posix()) != SUMS
  }


def size(home: Path) -> int:
  """Bytes of all files below a folder."""
  return sum(path.stat().st_size for path in home.rglob("*") if path.is_file())


def card(system: str = DEFAULT) -> dict[str, Any]:
  """The card of a system's shipped miniature; `ship.make_card` says what is in it.

  Raises:
    FileNotFoundError: an installation without it.
  """
  return json.loads((directory(system) / CARD).read_text())
