"""GenEval: a folder a prompt, numbered, with its metadata and its samples.

    00000/metadata.jsonl   one JSON object: tag, prompt, include, exclude
    00000/samples/0000.png, 0001.png, ...

The scorer reads folders whose names are digits and samples whose names are digits and .png; it says
nothing about others. It takes what is asked for from metadata.jsonl and never looks at a prompt
file. A task's score is the mean over its samples, the whole is the mean over the tasks.
"""

from collections import Counter
from collections.abc import Sequence
import json
from pathlib import Path
import re
from typing import Any

from blip3o_jax import files as whole
from blip3o_jax.data import prompt_files
from blip3o_jax.evaluate.benchmarks import layout
from blip3o_jax.evaluate.benchmarks import looking
from blip3o_jax.evaluate.benchmarks.layout import Asked
from blip3o_jax.evaluate.benchmarks.layout import Entry
from blip3o_jax.evaluate.benchmarks.layout import File
from blip3o_jax.evaluate.benchmarks.layout import Report

TITLE, VERB, NUMBER = "GenEval", "generate", 4
NUMBERS: tuple[int, ...] = ()
TOTAL = 553
METADATA, SAMPLES = "metadata.jsonl", "samples"


def entries(asked: Asked) -> list[Entry]:
  rows = [row for path in asked.prompts for row in prompt_files.read(path)]
  digits = max(5, len(str(len(rows) - 1)))
  found = []
  for index, row in enumerate(rows):
    prompt = row.text("prompt")
    for name, kind in (("tag", str), ("include", list)):
      if not isinstance(row.fields.get(name), kind):
        raise ValueError(
          f"{row.where}: {name} is {row.fields.get(name)!r}; expected the metadata that GenEval "
          "publishes: tag, prompt, include"
        )
    found.append(Entry(f"{index:0{digits}d}", prompt, row))
  return layout.rewritten(found, asked.field)


def files(entries: Sequence[Entry], asked: Asked) -> list[File]:
  return [
    File(f"{entry.key}/{SAMPLES}/{i:04d}.png", entry, i)
    for entry in entries
    for i in range(asked.number)
  ]


def prepare(output: Path, found: Sequence[File], asked: Asked) -> None:
  for entry in {file.entry.key: file.entry for file in found}.values():
    target = output / layout.PICTURES / entry.key / METADATA
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole.replacing(target, shared=True) as partial:
      partial.write_text(json.dumps(dict(entry.row.fields)) + "\n")


def command(pictures: Path, asked: Asked) -> str:
  return (
    f"python evaluation/evaluate_images.py {pictures} --outfile results.jsonl --model-path DETECTOR"
    " && python evaluation/summary_scores.py results.jsonl"
  )


def check(pictures: Path, entries: Sequence[Entry] | None, asked: Asked) -> Report:
  report = Report(TITLE, pictures, command=command(pictures, asked))
  folders = sorted(p for p in pictures.iterdir() if p.is_dir() and not p.name.startswith("."))
  read = [folder for folder in folders if folder.name.isdigit()]
  report.of(
    layout.LEFT_OUT,
    [folder.name for folder in folders if not folder.name.isdigit()],
    "folders are not called by a number",
  )
  found = {folder.name: _metadata(folder, report) for folder in read}
  samples = {folder.name: _samples(folder, report) for folder in read}
  names = [f"{key}/{SAMPLES}/{name}" for key, each in samples.items() for name in each]
  report.pictures = len(names)
  _counts(report, samples, asked.number or NUMBER)
  against = _against(report, found, entries)
  looks = looking.look_at(pictures, names)
  looks = looking.readable(report, looks, layout.ENDS, "the scorer ends there")
  owners = {name: str(found[name.split("/")[0]].get("prompt")) for name in looks}
  looking.alike(report, looks, owners)
  looking.one_size(report, looks)
  texts = {name: against.get(name.split("/")[0], owners[name]) for name in looks}
  looking.said(report, looks, texts)
  return report


def _metadata(folder: Path, report: Report) -> dict[str, Any]:
  """The object of a folder; {} and a finding where the scorer would fail on it."""
  path = folder / METADATA
  name = f"{folder.name}/{METADATA}"
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
    report.add(layout.ENDS, "no metadata.jsonl beside the samples", [name])
    return {}
  except (ValueError, OSError):
    report.add(
      layout.ENDS, "metadata.jsonl is not one JSON object; the scorer takes no more", [name]
    )
    return {}
  if not isinstance(value, dict):
    report.add(layout.ENDS, "metadata.jsonl is no JSON object", [name])
    return {}
  if lacks := [key for key in ("tag", "prompt") if key not in value]:
    report.add(layout.ENDS, f"metadata.jsonl lacks {' and '.join(lacks)}", [name])
  if not value.get("include"):
    report.add(
      layout.SOME_WRONG, "metadata.jsonl asks for nothing, so any picture is right", [name]
    )
  return value


def _samples(folder: Path, report: Report) -> list[str]:
  """The names that the scorer reads; finds the others."""
  home = folder / SAMPLES
  if not home.is_dir():
    report.add(layout.ENDS, "no folder samples", [f"{folder.name}/{SAMPLES}"])
    return []
  names = sorted(path.name for path in home.iterdir() if path.is_file())
  # As the scorer does, which looks at how a name begins only.
  read = [name for name in names if re.match(r"\d+\.png", name)]
  odd = [f"{folder.name}/{SAMPLES}/{name}" for name in read if not re.fullmatch(r"\d+\.png", name)]
  report.of(layout.SOME_WRONG, odd, "files are read as samples though they end in something else")
  skipped = [n for n in names if n not in read and looking.is_picture(home / n)]
  report.of(
    layout.LEFT_OUT,
    [f"{folder.name}/{SAMPLES}/{name}" for name in skipped],
    "pictures are not called by a number and .png",
  )
  return read


def _counts(report: Report, samples: dict[str, list[str]], number: int) -> None:
  counts = Counter(len(names) for names in samples.values())
  if not counts:
    report.add(layout.ALL_WRONG, "no folder that is called by a number, such as 00000")
    return
  usual = counts.most_common(1)[0][0]
  odd = [key for key, names in samples.items() if len(names) != usual]
  report.of(
    layout.SOME_WRONG,
    odd,
    f"prompts have another number of samples than the {usual} of the others; each sample "
    "counts, so such a prompt weighs more or less",
  )
  if usual != number:
    report.add(layout.LOOK, f"{usual} samples a prompt; expected {number}, or say -n {usual}")


def _against(
  report: Report, found: dict[str, dict[str, Any]], entries: Sequence[Entry] | None
) -> dict[str, str]:
  """Finds what differs from the prompts; returns {folder: the prompt of the file}."""
  if entries is None:
    if found and len(found) != TOTAL:
      report.add(layout.LEFT_OUT, f"{len(found)} of the benchmark's {TOTAL} prompts are there")
    return {}
  wanted = {int(entry.key): entry for entry in entries}
  numbers = {int(name): name for name in found}
  report.of(
    layout.LEFT_OUT,
    [entry.key for number, entry in wanted.items() if number not in numbers],
    f"{{n}} of {len(wanted)} prompts have no folder",
  )
  report.of(
    layout.SOME_WRONG,
    [name for number, name in numbers.items() if number not in wanted],
    "folders have a number beyond the prompts; they are scored too",
  )
  both = [(name, found[name], wanted[n]) for n, name in numbers.items() if n in wanted]
  other = [name for name, value, entry in both if value and value.get("prompt") != entry.prompt]
  if other:
    first = found[other[0]].get("prompt")
    report.of(
      layout.SOME_WRONG,
      other,
      f"prompts of metadata.jsonl are rewritten, or of another line ({first!r}, not "
      f"{wanted[int(other[0])].prompt!r})",
    )
  asks = [
    name
    for name, value, entry in both
    if value
    and any(value.get(key) != entry.row.fields.get(key) for key in ("tag", "include", "exclude"))
  ]
  report.of(layout.SOME_WRONG, asks, "metadata.jsonl ask for other objects than the prompts' file")
  return {name: entry.prompt for name, _, entry in both}
