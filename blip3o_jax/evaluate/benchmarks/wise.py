"""WISE: one folder of N.png, called by the prompt's number without zeros before it.

The judge looks for the file of each prompt of its three JSON files and only warns of what is not
there. The summary of natural science wants 300 rows, so one absent picture of 701 to 1000 leaves
it without a score. WiScore is (0.7 consistency + 0.2 realism + 0.1 aesthetic quality) / 2.
"""

from collections.abc import Sequence
from pathlib import Path
import re

from blip3o_jax.data import prompt_files
from blip3o_jax.evaluate.benchmarks import layout
from blip3o_jax.evaluate.benchmarks import looking
from blip3o_jax.evaluate.benchmarks.layout import Asked
from blip3o_jax.evaluate.benchmarks.layout import Entry
from blip3o_jax.evaluate.benchmarks.layout import File
from blip3o_jax.evaluate.benchmarks.layout import Report

TITLE, VERB, NUMBER = "WISE", "generate", 1
NUMBERS: tuple[int, ...] = (1,)
TOTAL = 1000
SCIENCE = range(701, 1001)


def entries(asked: Asked) -> list[Entry]:
  found = []
  for path in asked.prompts:
    for row in prompt_files.read(path):
      number = row.fields.get("prompt_id")
      if isinstance(number, bool) or not isinstance(number, int):
        raise ValueError(f"{row.where}: prompt_id is {number!r}; expected a whole number")
      found.append(Entry(str(number), row.text("Prompt"), row))
  return layout.rewritten(layout.unique(found), asked.field)


def files(entries: Sequence[Entry], asked: Asked) -> list[File]:
  return [File(f"{entry.key}.png", entry) for entry in entries]


def prepare(output: Path, found: Sequence[File], asked: Asked) -> None:
  """Nothing stands beside the pictures."""


def command(pictures: Path, asked: Asked) -> str:
  data = " and ".join(map(str, asked.prompts)) or "data/cultural_common_sense.json, ..."
  return (
    f"for each of {data}: python gpt_eval.py --json_path FILE --image_dir {pictures} --output_dir "
    "RESULTS --result_full full.json --result_scores scores.jsonl --model gpt-4o-2024-05-13 "
    "--api_key KEY"
  )


def check(pictures: Path, entries: Sequence[Entry] | None, asked: Asked) -> Report:
  report = Report(TITLE, pictures, command=command(pictures, asked))
  names = sorted(p.name for p in pictures.iterdir() if p.is_file() and looking.is_picture(p))
  numbered = {name: int(name[:-4]) for name in names if re.fullmatch(r"\d+\.png", name)}
  read = {name for name, number in numbered.items() if name == f"{number}.png"}
  report.pictures = len(names)
  report.of(
    layout.LEFT_OUT,
    [name for name in names if name not in read],
    "pictures are not called N.png by a number without zeros before it, and are not found",
  )
  if entries is None:
    wanted = [f"{i}.png" for i in range(1, TOTAL + 1)]
  else:
    wanted = [f"{entry.key}.png" for entry in entries]
    known = set(wanted)
    report.of(
      layout.LEFT_OUT,
      sorted(read - known),
      "pictures have the number of no prompt of the files",
    )
  looks = looking.look_at(pictures, sorted(read))
  looking.absent(report, wanted, looks, "the judge warns, and leaves them out of the mean")
  lacks = [name for name in wanted if int(name[:-4]) in SCIENCE and name not in read]
  report.of(
    layout.ENDS,
    lacks,
    "pictures of natural science (701 to 1000) are absent: its summary refuses fewer than 300",
  )
  looks = looking.readable(report, looks, layout.SOME_WRONG, "the judge is sent them as they are")
  report.of(
    layout.LOOK,
    [name for name, look in looks.items() if look.kind != "PNG"],
    "files are called .png and are none; the judge is told image/png",
  )
  owners = {name: name for name in looks}
  looking.alike(report, looks, owners)
  looking.one_size(report, looks)
  prompts = {f"{entry.key}.png": entry.prompt for entry in entries or ()}
  looking.said(report, looks, prompts)
  return report
