"""DPG-Bench: a flat folder, of each prompt one file, a grid of two by two, called by its id.

The scorer crops squares of side RESOLUTION out of the top left of each file: the first, the one
right of it, the one below, and the last, as many as PIC_NUM says. It never asks how large the file
is. So a grid of pictures of 1024 pixels that is scored at 512 counts four quarters of its first
picture, and one of 512 at 1024 one whole grid and three black squares; nothing complains. The id
is the name up to its first dot. Files that it cannot use are left out of the mean.
"""

from collections import defaultdict
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
import statistics

from blip3o_jax.data import prompt_files
from blip3o_jax.evaluate.benchmarks import layout
from blip3o_jax.evaluate.benchmarks import looking
from blip3o_jax.evaluate.benchmarks.layout import Asked
from blip3o_jax.evaluate.benchmarks.layout import Entry
from blip3o_jax.evaluate.benchmarks.layout import File
from blip3o_jax.evaluate.benchmarks.layout import Report
from blip3o_jax.evaluate.benchmarks.looking import Look

TITLE, VERB, NUMBER = "DPG-Bench", "generate", 4
NUMBERS: tuple[int, ...] = (1, 4)
TOTAL = 1065
_SHARP = 3.0  # a seam: how much sharper the middle lines of a file are than those near them
_GRIDS, _ONES = 0.25, 0.05  # of the files that have one: above are grids, below single pictures
_SAMPLE = 24  # pictures that are decoded to see which they are


def entries(asked: Asked) -> list[Entry]:
  """Of the folder of prompts (an item a text file), or of dpg_bench.csv (a question a row)."""
  found: dict[str, Entry] = {}
  for path in asked.prompts:
    if path.is_dir():
      for file in sorted(path.glob("*.txt")):
        text = file.read_text(encoding="utf-8-sig").strip()
        row = prompt_files.Row(str(file), {"item_id": file.stem, "text": text})
        found[file.stem] = Entry(file.stem, row.text("text"), row)
      if not found:
        raise ValueError(f"{path}: no text files, of which each is the prompt of its name")
      continue
    for row in prompt_files.read(path):
      entry = Entry(row.text("item_id"), row.text("text", "prompt"), row)
      known = found.setdefault(entry.key, entry)
      if known.prompt != entry.prompt:
        raise ValueError(
          f"{row.where}: the item {entry.key!r} has another text at {known.row.where}"
        )
  for entry in found.values():
    if "." in entry.key:
      raise ValueError(f"{entry.row.where}: the scorer cuts {entry.key!r} at its first dot")
  return layout.rewritten(layout.unique(list(found.values())), asked.field)


def files(entries: Sequence[Entry], asked: Asked) -> list[File]:
  return [File(f"{entry.key}.png", entry, 0, asked.number) for entry in entries]


def prepare(output: Path, found: Sequence[File], asked: Asked) -> None:
  """Nothing stands beside the pictures, which the scorer would take for one."""


def command(pictures: Path, asked: Asked) -> str:
  number = asked.pic_num or asked.number or NUMBER
  return _command(pictures, number, _side_of_one(pictures, number))


def _command(pictures: Path, number: int, side: int) -> str:
  return f"PIC_NUM={number} bash dpg_bench/dist_eval.sh {pictures} {side or 'SIDE_OF_ONE_TILE'}"


def _side_of_one(pictures: Path, number: int) -> int:
  """The side of a tile of the first file of a folder; 0 where there is none."""
  first = min((p for p in pictures.glob("*.png") if p.is_file()), default=None)
  if first is None:
    return 0
  (look,) = looking.look_at(pictures, [first.name]).values()
  return look.width // (1 if number == 1 else 2)


def check(pictures: Path, entries: Sequence[Entry] | None, asked: Asked) -> Report:
  report = Report(TITLE, pictures)
  found = sorted(pictures.iterdir())
  names = [path.name for path in found if looking.is_picture(path) and path.is_file()]
  report.pictures = len(names)
  report.of(
    layout.LOOK,
    [path.name for path in found if path.name not in names],
    "things that are no picture: the scorer tries each, and says that it failed",
  )
  looks = looking.look_at(pictures, names)
  looks = looking.readable(report, looks, layout.LEFT_OUT, "left out of the mean")
  _ids(report, names, entries)
  side, number = _tiles(report, pictures, looks, asked)
  owners = {name: name.split(".")[0] for name in looks}
  looking.alike(report, looks, owners)
  prompts = {entry.key: entry.prompt for entry in entries or ()}
  texts = {name: prompts[key] for name, key in owners.items() if key in prompts}
  looking.said(report, looks, texts)
  report.command = _command(pictures, number, side)
  if report.pictures:
    report.notes.append(
      "the scorer leaves out what is absent or cannot be read and does not count it as 0, skips "
      "the first question of its CSV, and takes the scores by category from the last tile only"
    )
  return report


def _ids(report: Report, names: Sequence[str], entries: Sequence[Entry] | None) -> None:
  by_id: dict[str, list[str]] = defaultdict(list)
  for name in names:
    by_id[name.split(".")[0]].append(name)
  twice = [name for each in by_id.values() if len(each) > 1 for name in each]
  report.of(layout.SOME_WRONG, twice, "files have an id that another has too; each is counted")
  if entries is None:
    if names and len(by_id) != TOTAL:
      report.add(layout.LEFT_OUT, f"{len(by_id)} of the benchmark's {TOTAL} items are there")
    return
  wanted = [entry.key for entry in entries]
  lacks = [key for key in wanted if key not in by_id]
  report.of(
    layout.LEFT_OUT,
    lacks,
    f"{{n}} of {len(wanted)} items are absent: the mean is over the rest",
  )
  odd = [name for key, each in by_id.items() if key not in set(wanted) for name in each]
  report.of(layout.LEFT_OUT, odd, "files have the id of no item (the name up to its first dot)")


def _tiles(
  report: Report, pictures: Path, looks: Mapping[str, Look], asked: Asked
) -> tuple[int, int]:
  """Finds what the scorer would crop wrongly.

  Returns:
    The side of a tile, 0 where none is known, and how many a file has.
  """
  number = asked.pic_num or NUMBER
  if not looks:
    report.add(layout.ALL_WRONG, "no picture that can be read")
    return 0, number
  looking.one_size(report, looks, layout.ALL_WRONG, ": one --resolution cannot be right for both")
  width, height = statistics.multimode(look.size for look in looks.values())[0]
  size = f"{width} x {height}"
  if width != height:
    report.add(
      layout.ALL_WRONG,
      f"the files are {size}, and the scorer crops squares: neither one square picture nor a grid "
      "of two by two of them",
    )
    return 0, number
  grid = _are_grids(pictures, looks)
  if grid is None:
    report.notes.append(
      f"whether a file is a grid or one picture of {size} cannot be seen; a grid has tiles of "
      f"{width // 2}"
    )
    grid = number != 1
  if not grid and number != 1:
    report.add(
      layout.ALL_WRONG,
      f"the files are single pictures of {size}, and PIC_NUM is {number} (its shell script's "
      f"default): at --resolution {width} three of four crops are black, at {width // 2} they are "
      f"four quarters of one picture. Pass PIC_NUM=1 and --resolution {width}, or draw grids",
    )
    _resolution(report, asked.resolution, width, width)
    return width, 1
  if grid and width % 2:
    report.add(layout.ALL_WRONG, f"a grid of {size} is not four equal tiles")
  if grid and number == 1:
    report.add(
      layout.ALL_WRONG,
      "the files are grids, and PIC_NUM is 1: one picture of four is scored, or with the side of "
      "the file the grid as if it were one picture. Pass PIC_NUM=4",
    )
  side = width // 2 if grid else width
  _resolution(report, asked.resolution, side, width)
  report.notes.append(f"pass --resolution {side} and PIC_NUM={4 if grid else 1}")
  return side, 4 if grid else 1


def _resolution(report: Report, given: int, side: int, width: int) -> None:
  """Finds a --resolution that is not the side of a tile."""
  if not given or given == side:
    return
  if side == width:
    does = "each crop is a part of a picture" if given < side else "each crop has a black border"
  elif 2 * given == side:
    does = "the scorer would see four quarters of the first picture, and of no other anything"
  elif given < side:
    does = "the scorer would see parts of the first pictures"
  elif given >= width:
    does = "the first crop would be the whole grid, and the others black"
  else:
    does = "each crop would hold parts of several pictures, or black"
  report.add(
    layout.ALL_WRONG,
    f"--resolution {given}, but a tile is {side} x {side} (the files are {width} x {width}): "
    f"{does}",
  )


def _are_grids(pictures: Path, looks: Mapping[str, Look]) -> bool | None:
  """Whether the files are grids, by what they say of themselves or by their middle lines."""
  told = {bool(look.metadata.get("grid")) for look in looks.values() if "verb" in look.metadata}
  if len(told) == 1:
    return told.pop()
  names = sorted(looks)[:: max(1, len(looks) // _SAMPLE)][:_SAMPLE]
  share = sum(min(looking.seams(pictures / name)) >= _SHARP for name in names) / len(names)
  if share >= _GRIDS:
    return True
  return False if share <= _ONES else None
