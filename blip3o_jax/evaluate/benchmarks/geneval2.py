"""GenEval 2: one JSON object {prompt: path of its picture}; the scorer opens the paths as they are.

    image_paths.json         beside the folder of pictures
    images/00000.png, ...

The scorer looks up each prompt of geneval2_data.jsonl, letter by letter.
"""

from collections.abc import Sequence
import json
from pathlib import Path

from blip3o_jax import files as whole
from blip3o_jax.data import prompt_files
from blip3o_jax.evaluate.benchmarks import layout
from blip3o_jax.evaluate.benchmarks import looking
from blip3o_jax.evaluate.benchmarks.layout import Asked
from blip3o_jax.evaluate.benchmarks.layout import Entry
from blip3o_jax.evaluate.benchmarks.layout import File
from blip3o_jax.evaluate.benchmarks.layout import Report

TITLE, VERB, NUMBER = "GenEval 2", "generate", 1
NUMBERS: tuple[int, ...] = (1,)
TOTAL = 800
PATHS = "image_paths.json"


def entries(asked: Asked) -> list[Entry]:
  rows = [row for path in asked.prompts for row in prompt_files.read(path)]
  found: list[Entry] = []
  seen: dict[str, str] = {}
  for index, row in enumerate(rows):
    prompt = row.text("prompt")
    if prompt in seen:
      raise ValueError(f"{row.where}: the prompt stands at {seen[prompt]} too; it is the key")
    seen[prompt] = row.where
    found.append(Entry(f"{index:05d}", prompt, row))
  return layout.rewritten(found, asked.field)


def files(entries: Sequence[Entry], asked: Asked) -> list[File]:
  return [File(f"{entry.key}.png", entry) for entry in entries]


def prepare(output: Path, found: Sequence[File], asked: Asked) -> None:
  """Writes the paths of all prompts, whichever process draws them."""
  home = (output / layout.PICTURES).absolute()
  paths = {file.entry.prompt: str(home / file.name) for file in files(entries(asked), asked)}
  with whole.replacing(output / PATHS, shared=True) as partial:
    partial.write_text(json.dumps(paths, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def command(pictures: Path, asked: Asked) -> str:
  data = asked.prompts[0] if asked.prompts else "geneval2_data.jsonl"
  return (
    f"python evaluation.py --benchmark_data {data} --image_filepath_data "
    f"{pictures.parent / PATHS} --method soft_tifa_gm --output_file score_lists.json"
  )


def check(pictures: Path, entries: Sequence[Entry] | None, asked: Asked) -> Report:
  report = Report(TITLE, pictures, command=command(pictures, asked))
  source = next((p for p in (pictures.parent / PATHS, pictures / PATHS) if p.is_file()), None)
  if source is None:
    report.add(
      layout.ENDS, f"no {PATHS}, the JSON object of prompts and paths that the scorer reads"
    )
    return report
  try:
    paths = json.loads(source.read_text(encoding="utf-8"))
  except ValueError:
    paths = None
  if not isinstance(paths, dict) or not all(isinstance(v, str) for v in paths.values()):
    report.add(layout.ENDS, f"{PATHS} is not a JSON object of prompts and paths", [source.name])
    return report
  report.pictures = len(paths)
  relative = [path for path in paths.values() if not Path(path).is_absolute()]
  report.of(layout.LOOK, relative, "paths are relative: they hold in the scorer's own folder only")
  places = {prompt: Path(path) for prompt, path in paths.items()}
  there = {str(p) for p in places.values() if p.is_file()}
  gone = [str(p) for p in places.values() if str(p) not in there]
  report.of(layout.ENDS, gone, f"{{n}} of {len(paths)} paths lead to no file")
  _prompts(report, list(paths), entries)
  looks = looking.look_at(Path(), sorted(there))
  looks = looking.readable(report, looks, layout.ENDS, "the scorer ends there")
  owners = {str(place): prompt for prompt, place in places.items()}
  shared = [prompt for prompt, place in places.items() if owners[str(place)] != prompt]
  report.of(layout.SOME_WRONG, shared, "prompts whose path is that of another prompt")
  looking.alike(report, looks, owners)
  looking.one_size(report, looks)
  looking.said(report, looks, owners)
  return report


def _prompts(report: Report, prompts: list[str], entries: Sequence[Entry] | None) -> None:
  if entries is None:
    if len(prompts) != TOTAL:
      report.add(layout.LEFT_OUT, f"{len(prompts)} of the benchmark's {TOTAL} prompts are there")
    return
  wanted = [entry.prompt for entry in entries]
  lacks = [prompt for prompt in wanted if prompt not in set(prompts)]
  report.of(layout.ENDS, lacks, f"{{n}} of {len(wanted)} prompts are no key of {PATHS}")
  more = [prompt for prompt in prompts if prompt not in set(wanted)]
  report.of(layout.LEFT_OUT, more, f"keys of {PATHS} are no prompt of the file: rewritten?")
