"""OneIG-Bench: a folder a category, in it one a model, in it a grid a prompt, in WebP.

    anime/MODEL/000.webp, human/MODEL/000.webp, ...

The scorer takes the file whose name begins with the prompt's id, and where two do it gives the
prompt no score: so nothing stands beside the pictures, and their metadata lies elsewhere. It cuts
each file into as many parts as `image_grid` says; parts that are black are left out.
"""

from collections import defaultdict
from collections.abc import Sequence
import math
from pathlib import Path

from blip3o_jax import files as whole
from blip3o_jax.data import prompt_files
from blip3o_jax.data.prompt_files import Row
from blip3o_jax.evaluate.benchmarks import layout
from blip3o_jax.evaluate.benchmarks import looking
from blip3o_jax.evaluate.benchmarks.layout import Asked
from blip3o_jax.evaluate.benchmarks.layout import Entry
from blip3o_jax.evaluate.benchmarks.layout import File
from blip3o_jax.evaluate.benchmarks.layout import Report

TITLE, VERB, NUMBER = "OneIG-Bench", "generate", 4
NUMBERS: tuple[int, ...] = (1, 4, 9)
FOLDERS = {
  "Anime_Stylization": "anime",
  "Portrait": "human",
  "General_Object": "object",
  "Text_Rendering": "text",
  "Knowledge_Reasoning": "reasoning",
  "Multilingualism": "multilingualism",
}
TOTALS = {"anime": 245, "human": 244, "object": 206, "text": 200, "reasoning": 225}
METADATA = "metadata"  # the folder, beside that of the pictures


def entries(asked: Asked) -> list[Entry]:
  found: dict[str, Entry] = {}
  for path in asked.prompts:
    for row in prompt_files.read(path):
      category = row.text("category")
      folder = FOLDERS.get(category.replace(" ", "_"))
      if folder is None:
        raise ValueError(
          f"{row.where}: category is {category!r}; expected one of {', '.join(FOLDERS)}"
        )
      key = f"{folder}/{_id(row)}"
      if key in found:
        raise ValueError(f"{row.where}: {key!r} stands at {found[key].row.where} too")
      found[key] = Entry(key, row.text("prompt_en", "prompt_cn", "prompt_zh", "prompt"), row)
  return layout.rewritten(list(found.values()), asked.field)


def _id(row: Row) -> str:
  """A prompt's id of three digits; tables that were opened elsewhere lose the zeros."""
  value = str(row.fields.get("id", "")).strip()
  if not value.isdigit():
    raise ValueError(f"{row.where}: id is {row.fields.get('id')!r}; expected digits, as 000")
  return value.zfill(3)


def files(entries: Sequence[Entry], asked: Asked) -> list[File]:
  found = []
  for entry in entries:
    folder, name = entry.key.split("/")
    place = f"{folder}/{asked.name}/{name}"
    found.append(File(f"{place}.webp", entry, 0, asked.number, f"{METADATA}/{place}.json"))
  return found


def prepare(output: Path, found: Sequence[File], asked: Asked) -> None:
  """Nothing stands beside the pictures."""


def command(pictures: Path, asked: Asked) -> str:
  side = math.isqrt(asked.number or NUMBER)
  return (
    f"bash run_overall.sh with IMAGE_DIR={pictures}, MODEL_NAMES=({asked.name}) and "
    f"IMAGE_GRID=({side}), in newer versions ({side},{side})"
  )


def check(pictures: Path, entries: Sequence[Entry] | None, asked: Asked) -> Report:
  report = Report(TITLE, pictures, command=command(pictures, asked))
  homes = sorted(path for path in pictures.iterdir() if path.is_dir())
  report.of(
    layout.LEFT_OUT,
    [path.name for path in homes if path.name not in FOLDERS.values()],
    f"folders are none of {', '.join(FOLDERS.values())}",
  )
  models = [
    model
    for home in homes
    if home.name in FOLDERS.values()
    for model in sorted(home.iterdir())
    if model.is_dir()
  ]
  flat = [
    f"{home.name}/{path.name}"
    for home in homes
    if home.name in FOLDERS.values()
    for path in home.iterdir()
    if path.is_file() and looking.is_picture(path)
  ]
  report.of(layout.LEFT_OUT, flat, "pictures lie in no folder of a model")
  read: dict[str, str] = {}  # the files that are scored, and whose they are
  for model in models:
    read |= _folder(report, pictures, model, entries)
  if not read:
    report.add(layout.ALL_WRONG, "no picture in CATEGORY/MODEL/, such as anime/MODEL/000.webp")
    return report
  report.pictures = len(read)
  looks = looking.look_at(pictures, sorted(read))
  looks = looking.readable(report, looks, layout.ENDS, "the scorer ends there")
  looking.alike(report, looks, read)
  looking.one_size(report, looks)
  dark = [name for name, look in looks.items() if look.black]
  report.of(layout.LEFT_OUT, dark, "files have parts that are wholly black, as failed drawings")
  side = math.isqrt(asked.number or NUMBER)
  odd = [n for n, look in looks.items() if look.width % side or look.height % side]
  report.of(layout.SOME_WRONG, odd, f"files cannot be cut into {side} x {side} equal parts")
  prompts = {entry.key: entry.prompt for entry in entries or ()}
  _said(report, pictures, looks, prompts)
  return report


def _folder(
  report: Report, pictures: Path, model: Path, entries: Sequence[Entry] | None
) -> dict[str, str]:
  """The files of a model's folder that are scored, {name: category and id}."""
  category = model.parent.name
  by_id: dict[str, list[str]] = defaultdict(list)
  for path in sorted(model.iterdir()):
    by_id[path.name[:3]].append(path.name)
  place = model.relative_to(pictures).as_posix()
  twice = [f"{place}/{n}" for names in by_id.values() if len(names) > 1 for n in names]
  report.of(
    layout.LEFT_OUT,
    twice,
    "files begin with an id that another file begins with too: the prompt gets no score",
  )
  if entries is not None:
    wanted = {e.key.split("/")[1] for e in entries if e.key.split("/")[0] == category}
    lacks = [f"{place}/{key}" for key in sorted(wanted) if key not in by_id]
    report.of(layout.LEFT_OUT, lacks, f"{{n}} of {len(wanted)} prompts of {category} have no file")
    more = [f"{place}/{n}" for key, names in by_id.items() if key not in wanted for n in names]
    report.of(layout.SOME_WRONG, more, "files have the id of no prompt; diversity counts them")
  elif category in TOTALS and len(by_id) != TOTALS[category]:
    report.add(
      layout.LEFT_OUT, f"{len(by_id)} of the {TOTALS[category]} prompts of {place} are there"
    )
  return {
    f"{place}/{names[0]}": f"{category}/{key}"
    for key, names in by_id.items()
    if len(names) == 1 and looking.is_picture(model / names[0])
  }


def _said(
  report: Report, pictures: Path, looks: dict[str, looking.Look], prompts: dict[str, str]
) -> None:
  """As `looking.said`, of what this package keeps in `METADATA`."""
  told, wanted = {}, {}
  for name in looks:
    category, _, file = name.split("/")
    path = pictures.parent / METADATA / Path(name).with_suffix(".json")
    key = f"{category}/{file[:3]}"
    if path.is_file() and key in prompts:
      told[name] = looking.Look(metadata=whole.read_json(path))
      wanted[name] = prompts[key]
  looking.said(report, told, wanted)
