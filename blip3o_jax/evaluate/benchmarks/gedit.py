"""GEdit-Bench: outputs and their inputs in pairs, by task and language.

    MODEL/fullset/TASK/LANGUAGE/KEY.png, KEY_SRCIMG.png

The scorer brings each output to its input's size, whatever their shapes, and passes over a pair of
which one is absent. The set has its pictures in two forms: `input_image`, of about 512 x 512 pixels
in all and sides of multiples of 32, which is what models are given, and `input_image_raw`.
"""

from collections.abc import Callable
from collections.abc import Sequence
import functools
import io
import math
from pathlib import Path
from typing import Any

from blip3o_jax import files as whole
from blip3o_jax.data import prompt_files
from blip3o_jax.data.prompt_files import Row
from blip3o_jax.evaluate.benchmarks import layout
from blip3o_jax.evaluate.benchmarks import looking
from blip3o_jax.evaluate.benchmarks.layout import Asked
from blip3o_jax.evaluate.benchmarks.layout import Entry
from blip3o_jax.evaluate.benchmarks.layout import File
from blip3o_jax.evaluate.benchmarks.layout import Original
from blip3o_jax.evaluate.benchmarks.layout import Report

TITLE, VERB, NUMBER = "GEdit-Bench", "edit", 1
NUMBERS: tuple[int, ...] = (1,)
TASKS = (
  "background_change",
  "color_alter",
  "material_alter",
  "motion_change",
  "ps_human",
  "style_change",
  "subject-add",
  "subject-remove",
  "subject-replace",
  "text_change",
  "tone_transfer",
)
LANGUAGES = ("en", "cn")
SOURCE = "_SRCIMG.png"
AREA, STEP = 512 * 512, 32


def entries(asked: Asked) -> list[Entry]:
  """Of Parquet as it is published, or of JSONL with the pictures in a folder (`asked.images`)."""
  found: dict[str, Entry] = {}
  for path in asked.prompts:
    folder = sorted(path.glob("*.parquet")) if path.is_dir() else []
    parquet = folder or ([path] if path.suffix == ".parquet" else [])
    rows = [row for p in parquet for row in _parquet(p)] if parquet else prompt_files.read(path)
    for row in rows:
      task, language = row.text("task_type"), row.text("instruction_language")
      if task not in TASKS or language not in LANGUAGES:
        raise ValueError(
          f"{row.where}: task_type {task!r} and instruction_language {language!r}; expected one of "
          f"{', '.join(TASKS)}, and en or cn"
        )
      key = f"{task}/{language}/{row.text('key')}"
      if key in found:
        raise ValueError(f"{row.where}: {key!r} stands at {found[key].row.where} too")
      image = _image(row, asked)
      found[key] = Entry(key, row.text("instruction"), row, image=image, source=image)
  return layout.rewritten(list(found.values()), asked.field)


def _parquet(path: Path) -> list[Row]:
  from blip3o_jax.data.sources import groups

  wanted = ("task_type", "key", "instruction", "instruction_language", "input_image")
  table = groups.pyarrow_parquet().ParquetFile(path)
  known = table.schema_arrow.names
  if lacks := [name for name in wanted[:4] if name not in known]:
    raise ValueError(f"{path}: no column {lacks[0]!r}; it has {', '.join(known)}")
  columns = [name for name in (*wanted, "input_image_raw") if name in known]
  if {"input_image", "input_image_raw"} <= set(columns):
    columns.remove("input_image_raw")
  values = table.read(columns=columns).to_pylist()
  return [Row(f"{path}, row {i}", value) for i, value in enumerate(values)]


def _image(row: Row, asked: Asked) -> Original | None:
  """A row's picture, as a model is given it; None where none is at hand."""
  key = row.fields["key"]
  for name in ("input_image", "input_image_raw"):
    value: Any = row.fields.get(name)
    data = value.get("bytes") if isinstance(value, dict) else None
    if isinstance(data, bytes):
      return _original(functools.partial(bytes, data), f"{row.where}, {name}", name, asked)
    if isinstance(value, str) and asked.images is not None:
      return _file(asked.images / value, row, name, asked)
  if asked.images is not None:
    return _file(asked.images / f"{key}{SOURCE}", row, "", asked)
  return None


def _file(path: Path, row: Row, name: str, asked: Asked) -> Original:
  if not path.is_file():
    raise FileNotFoundError(f"{path}: no such picture, which {row.where} wants edited")
  return _original(path.read_bytes, str(path), name, asked)


def _original(read: Callable[[], bytes], where: str, name: str, asked: Asked) -> Original:
  """A picture of the field `name`."""
  return Original(read, where, asked.friendly, size_of if name == "input_image_raw" else None)


def size_of(width: int, height: int) -> tuple[int, int]:
  """(width, height) of about 512 x 512 pixels in the same shape, in multiples of 32.

  As the authors have it: both sides to the nearest multiple, then the width one step towards the
  area.
  """
  ratio = width / height
  exact = math.sqrt(AREA * ratio)
  wide, high = (STEP * round(side / STEP) for side in (exact, exact / ratio))
  if wide * high != AREA:
    wide += STEP if wide * high < AREA else -STEP
  return max(wide, STEP), max(high, STEP)


def files(entries: Sequence[Entry], asked: Asked) -> list[File]:
  return [File(f"{asked.name}/fullset/{entry.key}.png", entry) for entry in entries]


def prepare(output: Path, found: Sequence[File], asked: Asked) -> None:
  """Writes the inputs beside where the outputs will be."""
  for file in found:
    target = output / layout.PICTURES / f"{file.name.removesuffix('.png')}{SOURCE}"
    if target.is_file() or file.entry.source is None:
      continue
    data = io.BytesIO()
    file.entry.source().save(data, "PNG")
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole.replacing(target, shared=True) as partial:
      partial.write_bytes(data.getvalue())


def command(pictures: Path, asked: Asked) -> str:
  return (
    f"python test_gedit_score.py --model_name {asked.name} --save_path {pictures} --backbone gpt4o,"
    " then calculate_statistics.py with the same names"
  )


def check(pictures: Path, entries: Sequence[Entry] | None, asked: Asked) -> Report:
  report = Report(TITLE, pictures, command=command(pictures, asked))
  sets = [pictures] if pictures.name == "fullset" else sorted(pictures.glob("*/fullset"))
  sets = sets or [path for path in (pictures / "fullset",) if path.is_dir()]
  if not sets:
    report.add(layout.ALL_WRONG, "no MODEL/fullset/ below the folder")
    return report
  pairs: dict[str, str] = {}  # output: input
  for home in sets:
    pairs |= _pairs(report, pictures, home, entries)
  report.pictures = len(pairs)
  looks = looking.look_at(pictures, [*pairs, *pairs.values()])
  does = "the scorer tries it again and again, and waits longer each time"
  looks = looking.readable(report, looks, layout.ENDS, does)
  whole = {a: b for a, b in pairs.items() if a in looks and b in looks}
  same = [a for a, b in whole.items() if looks[a].digest == looks[b].digest]
  report.of(layout.SOME_WRONG, same, "outputs are their inputs, unchanged")
  bent = [a for a, b in whole.items() if abs(_shape(looks[a]) / _shape(looks[b]) - 1) > 0.05]
  report.of(
    layout.SOME_WRONG, bent, "outputs have another shape than their inputs and are squeezed"
  )
  outputs = {name: looks[name] for name in pairs if name in looks and name not in same}
  looking.alike(report, outputs, {name: name for name in outputs})
  if entries is not None:
    prompts = {entry.key: entry.prompt for entry in entries}
    texts = {n: "/".join(n.split("/")[-3:]).removesuffix(".png") for n in outputs}
    known = {name: prompts[key] for name, key in texts.items() if key in prompts}
    looking.said(report, outputs, known)
  return report


def _shape(look: looking.Look) -> float:
  return look.width / look.height


def _pairs(
  report: Report, pictures: Path, home: Path, entries: Sequence[Entry] | None
) -> dict[str, str]:
  """{output: input} of the pairs that are scored; finds what is none."""

  def name(path: Path) -> str:
    return path.relative_to(pictures).as_posix()

  found = sorted(p for p in home.rglob("*") if p.is_file() and looking.is_picture(p))
  odd = [
    name(path)
    for path in found
    if len(place := path.relative_to(home).parts) != 3
    or place[0] not in TASKS
    or place[1] not in LANGUAGES
    or path.suffix != ".png"
  ]
  report.of(
    layout.LEFT_OUT, odd, "pictures are not TASK/en/KEY.png or TASK/cn/KEY.png of a known task"
  )
  good = {name(path) for path in found} - set(odd)
  inputs = {n for n in good if n.endswith(SOURCE)}
  pairs, alone = {}, []
  for output in sorted(good - inputs):
    source = f"{output.removesuffix('.png')}{SOURCE}"
    if source in inputs:
      pairs[output] = source
    else:
      alone.append(output)
  report.of(layout.LEFT_OUT, alone, f"outputs have no KEY{SOURCE} beside them")
  lonely = sorted(inputs - set(pairs.values()))
  if entries is None:
    report.of(layout.LEFT_OUT, lonely, "inputs have no output")
    return pairs
  wanted = {f"{name(home)}/{entry.key}.png" for entry in entries}
  lacks = sorted(wanted - good)
  report.of(layout.LEFT_OUT, lacks, f"{{n}} of {len(wanted)} edits are absent")
  more = sorted(set(pairs) - wanted)
  report.of(layout.LEFT_OUT, more, "outputs are those of no edit of the file")
  return pairs
