"""What every benchmark has: prompts, files, and what is wrong with a folder. Knows no model."""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
from pathlib import Path
from typing import Any
from typing import Final
from typing import Protocol

from PIL import Image

from blip3o_jax.data import images
from blip3o_jax.data.prompt_files import Row

PICTURES: Final = "images"  # the folder that a scorer is given, below the output folder

# How bad a finding is: what it does to the scores.
ALL_WRONG, ENDS, SOME_WRONG, LEFT_OUT, LOOK = 5, 4, 3, 2, 1
HARM: Final = {
  ALL_WRONG: "every score is wrong",
  ENDS: "the scorer ends with an error",
  SOME_WRONG: "some scores are wrong",
  LEFT_OUT: "left out in silence",
  LOOK: "worth a look",
}
SHOWN: Final = 5  # files that a finding names


@dataclasses.dataclass(frozen=True)
class Original:
  """A picture that is to be edited; called, it opens it.

  Attributes:
    read: gives the bytes of its file. name: of it, for errors.
    friendly: how it is read, see `data.images.rgb`.
    size: (width, height) that a model is given, of its own; None is its own.
  """

  read: Callable[[], bytes]
  name: str
  friendly: bool = True
  size: Callable[[int, int], tuple[int, int]] | None = None

  def __call__(self) -> Image.Image:
    image = images.decode(self.read(), self.name, friendly=self.friendly)
    return image if self.size is None else image.resize(self.size(*image.size))

  @property
  def metadata(self) -> dict[str, Any]:
    """What tells a call that goes on whether it is still the picture that it began with."""
    return images.identity(self.read(), self.friendly)


@dataclasses.dataclass(frozen=True)
class Entry:
  """One prompt of a benchmark.

  Attributes:
    key: by which its files and rows are found. prompt: what the benchmark asks for.
    row: where it stands, and all of its fields. text: what is drawn; differs where it is rewritten.
    image: the picture that is to be edited. source: the picture that is stored beside.
  """

  key: str
  prompt: str
  row: Row
  text: str = ""
  image: Original | None = None
  source: Original | None = None

  @property
  def said(self) -> str:
    """What the model is told."""
    return self.text or self.prompt


@dataclasses.dataclass(frozen=True)
class File:
  """One picture that a scorer reads.

  Attributes:
    name: below the folder of pictures. entry: whose. first: the number of its first picture among
      the entry's. count: of pictures in it, 1 or a square number.
    sidecar: below the output folder, where the format keeps no metadata.
  """

  name: str
  entry: Entry
  first: int = 0
  count: int = 1
  sidecar: str = ""


@dataclasses.dataclass(frozen=True)
class Asked:
  """What a person says of a benchmark.

  Attributes:
    number: pictures a prompt. name: the model's folder, where a layout has one.
    field: of the rows, whose text is drawn; "" is the prompt. images: the folder of pictures to
      edit. prompts: the files. resolution, pic_num: that the scorer of DPG-Bench is given.
    friendly: how pictures are read, see `data.images.rgb`.
  """

  number: int = 1
  name: str = "model"
  field: str = ""
  images: Path | None = None
  prompts: tuple[Path, ...] = ()
  resolution: int = 0
  pic_num: int = 0
  friendly: bool = True


@dataclasses.dataclass(frozen=True)
class Finding:
  """Something that a scorer would misread.

  Attributes:
    harm: of `HARM`. text: what it is, and what it does. files: that it is true of, by name.
  """

  harm: int
  text: str
  files: tuple[str, ...] = ()


@dataclasses.dataclass
class Report:
  """What is found in a folder.

  Attributes:
    pictures: how many there are. notes: what a scorer has to be told. command: the scorer's.
  """

  benchmark: str
  folder: Path
  pictures: int = 0
  findings: list[Finding] = dataclasses.field(default_factory=list)
  notes: list[str] = dataclasses.field(default_factory=list)
  command: str = ""

  def add(self, harm: int, text: str, files: Sequence[str] = ()) -> None:
    """Adds a finding; one that is known gets the files too."""
    for i, known in enumerate(self.findings):
      if (known.harm, known.text) == (harm, text):
        self.findings[i] = Finding(harm, text, (*known.files, *files))
        return
    self.findings.append(Finding(harm, text, tuple(files)))

  def of(self, harm: int, files: Sequence[str], text: str) -> None:
    """Adds a finding of these files, where there are any; `{n}` in the text is their number."""
    if files:
      self.add(harm, text.replace("{n}", str(len(files))), files)

  def sorted(self) -> list[Finding]:
    """The findings, the worst first."""
    return sorted(self.findings, key=lambda f: (-f.harm, -len(f.files)))

  def lines(self) -> list[str]:
    """As a person reads it."""
    out = [f"{self.benchmark}: {self.pictures} pictures in {self.folder}"]
    for found in self.sorted():
      many = f" ({len(found.files)})" if found.files else ""
      out.append(f"- {HARM[found.harm]}{many}: {found.text}")
      if found.files:
        more = len(found.files) - SHOWN
        names = ", ".join(found.files[:SHOWN])
        out.append(f"    {names}{f' and {more} more' if more > 0 else ''}")
    out += [f"note: {note}" for note in self.notes]
    count = len(self.findings)
    said = f"{count} finding{'s' * (count > 1)}" if count else "nothing that it would misread"
    out += [said, f"the scorer: {self.command}"]
    return out

  def json(self) -> dict[str, Any]:
    """As a program reads it."""
    findings = [
      {"harm": f.harm, "means": HARM[f.harm], "text": f.text, "count": len(f.files)}
      | {"files": list(f.files)}
      for f in self.sorted()
    ]
    return {
      "benchmark": self.benchmark,
      "folder": str(self.folder),
      "pictures": self.pictures,
      "findings": findings,
      "notes": self.notes,
      "scorer": self.command,
    }


class Layout(Protocol):
  """A benchmark: a module of this package with these names.

  Attributes:
    TITLE: as its authors write it. VERB: of the model, "generate" or "edit". NUMBER: pictures a
      prompt, as its authors do. NUMBERS: how many there may be, () for any.
  """

  TITLE: str
  VERB: str
  NUMBER: int
  NUMBERS: tuple[int, ...]

  def entries(self, asked: Asked) -> list[Entry]:
    """The prompts of the files; ValueError or FileNotFoundError names file and line."""

  def files(self, entries: Sequence[Entry], asked: Asked) -> list[File]:
    """What is drawn, prompt by prompt."""

  def prepare(self, output: Path, found: Sequence[File], asked: Asked) -> None:
    """Writes what stands beside the pictures, of these files; may be called again."""

  def command(self, pictures: Path, asked: Asked) -> str:
    """The official scorer's command."""

  def check(self, pictures: Path, entries: Sequence[Entry] | None, asked: Asked) -> Report:
    """What the scorer would misread in a folder of pictures; without prompts, less is known."""


def unique(entries: Sequence[Entry]) -> list[Entry]:
  """The entries, after a look at their keys.

  Raises:
    ValueError: a key that stands twice, or is no name of a file.
  """
  seen: dict[str, Entry] = {}
  for entry in entries:
    odd = not entry.key.strip() or entry.key in (".", "..") or not entry.key.isprintable()
    if odd or "/" in entry.key or "\\" in entry.key:
      raise ValueError(f"{entry.row.where}: {entry.key!r} cannot be the name of a file")
    if entry.key in seen:
      raise ValueError(
        f"{entry.row.where}: {entry.key!r} stands at {seen[entry.key].row.where} too"
      )
    seen[entry.key] = entry
  return list(entries)


def rewritten(entries: Sequence[Entry], field: str) -> list[Entry]:
  """The entries with the text of another field, which is what is drawn.

  Raises:
    ValueError: a row without it.
  """
  if not field:
    return list(entries)
  return [dataclasses.replace(entry, text=entry.row.text(field)) for entry in entries]
