"""ImgEdit, its basic suite and its understanding-grounding-editing suite: one folder of KEY.png.

The file of edits is a JSON object {key: {id, prompt, edit_type}}, where id is the picture to edit
below the folder of originals. The judge looks for KEY.png of each key. What is absent becomes an
error in its results, on which the script that takes the mean ends.
"""

from collections.abc import Sequence
from pathlib import Path

from blip3o_jax.data import images
from blip3o_jax.data import prompt_files
from blip3o_jax.evaluate.benchmarks import layout
from blip3o_jax.evaluate.benchmarks import looking
from blip3o_jax.evaluate.benchmarks.layout import Asked
from blip3o_jax.evaluate.benchmarks.layout import Entry
from blip3o_jax.evaluate.benchmarks.layout import File
from blip3o_jax.evaluate.benchmarks.layout import Original
from blip3o_jax.evaluate.benchmarks.layout import Report

TITLE, VERB, NUMBER = "ImgEdit", "edit", 1
NUMBERS: tuple[int, ...] = (1,)
RESULT = "result.json"  # which the judge writes into the folder


def entries(asked: Asked) -> list[Entry]:
  found = []
  for path in asked.prompts:
    for row in prompt_files.read(path):
      key, place = row.text(prompt_files.KEY, "id"), row.text("id")
      image = None
      if asked.images is not None:
        source = asked.images / place
        if not source.is_file():
          raise FileNotFoundError(f"{source}: no such picture, which {row.where} wants edited")
        image = Original(source.read_bytes, str(source), asked.friendly)
      found.append(Entry(key, row.text("prompt"), row, image=image))
  return layout.rewritten(layout.unique(found), asked.field)


def files(entries: Sequence[Entry], asked: Asked) -> list[File]:
  return [File(f"{entry.key}.png", entry) for entry in entries]


def prepare(output: Path, found: Sequence[File], asked: Asked) -> None:
  """Nothing stands beside the pictures."""


def command(pictures: Path, asked: Asked) -> str:
  data = asked.prompts[0] if asked.prompts else "basic_edit.json"
  return (
    f"python basic_bench.py --result_img_folder {pictures} --edit_json {data} --origin_img_root "
    f"{asked.images or 'ORIGINALS'} --prompts_json prompts.json, then step1_get_avgscore.py and "
    "step2_typescore.py"
  )


def check(pictures: Path, entries: Sequence[Entry] | None, asked: Asked) -> Report:
  report = Report(TITLE, pictures, command=command(pictures, asked))
  found = [p for p in sorted(pictures.iterdir()) if p.is_file() and looking.is_picture(p)]
  report.pictures = len(found)
  report.of(
    layout.LEFT_OUT,
    [p.name for p in found if p.suffix != ".png"],
    "pictures do not end in .png, and are not found",
  )
  if (pictures / RESULT).is_file():
    report.add(layout.LOOK, "judged before: the next judgement writes over it", [RESULT])
  names = [p.name for p in found if p.suffix == ".png"]
  looks = looking.look_at(pictures, names)
  if entries is not None:
    wanted = [f"{entry.key}.png" for entry in entries]
    lacks = [name for name in wanted if name not in looks]
    report.of(
      layout.ENDS,
      lacks,
      f"{{n}} of {len(wanted)} edits are absent: the mean of the results ends with an error",
    )
    more = sorted(set(names) - set(wanted))
    report.of(layout.LEFT_OUT, more, "pictures are called by no key of the file")
    _unchanged(report, pictures, [e for e in entries if f"{e.key}.png" in looks])
  looks = looking.readable(report, looks, layout.SOME_WRONG, "the judge is sent them as they are")
  report.of(
    layout.LOOK,
    [name for name, look in looks.items() if look.kind != "PNG"],
    "files are called .png and are none; the judge is told image/png",
  )
  looking.alike(report, looks, {name: name for name in looks})
  looking.said(report, looks, {f"{e.key}.png": e.prompt for e in entries or ()})
  return report


def _unchanged(report: Report, pictures: Path, entries: Sequence[Entry]) -> None:
  """Finds outputs that are their inputs, where the originals are at hand."""
  same = []
  for entry in entries:
    if entry.image is None:
      continue
    try:
      before = entry.image()
      after = images.decode((pictures / f"{entry.key}.png").read_bytes(), entry.key)
    except ValueError:
      continue
    if before.size == after.size and before.tobytes() == after.tobytes():
      same.append(f"{entry.key}.png")
  report.of(layout.SOME_WRONG, same, "outputs are their inputs, unchanged")
