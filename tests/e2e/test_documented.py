"""Each command of README and docs is run, page by page, in the order in which it stands there.

The words are those of the page. What a page takes as given lies in the folder in which they run:
under the names of released weights the recorded miniatures, under those of sets a few pictures.
Sizes of the released stages are the miniatures' (`tiny_stages`), paths such as /data/mine lie in
the folder, and what would go on for days is cut short (`SHORTER`). README's part about use is run
by test_readme.py, which looks at what comes of it.
"""

import importlib.util
import json
from pathlib import Path
import re
import shutil
import tarfile
from types import SimpleNamespace
from typing import Any

import checkpoints
import documented
from documented import ROOT
import extractors
import nexus_files
import numpy as np
from PIL import Image
import pyarrow
from pyarrow import parquet
import pytest
import rated

from blip3o_jax import cli
from blip3o_jax.recipes import blip3o as blip3o_recipes
from blip3o_jax.recipes import nexus_gen as nexus_recipes
from blip3o_jax.systems.blip3o import released as blip3o_files
from blip3o_jax.systems.nexus_gen import released as nexus_files_of

pytestmark = pytest.mark.slow
RECORDS, SIDE = 40, 32
# What a command is given more, so that it ends within seconds; by how it begins.
SHORTER = (
  ("generate|edit", "--steps=2"),
  ("reconstruct (?!.*converted)", "--pixel-steps=2"),
  ("reconstruct .*converted", "--steps=2 --size=32x32"),
  ("(generate|edit) .*--model converted", "--size=32x32"),
  (
    ".*--config=nexus_gen_(gen|edit)",
    "--config.data.image_size=32 --config.eval_data.image_size=32",
  ),
  ("plan --generate", "--batch=2"),
  ("plan --config=nexus_gen_(gen|edit)", "--batch-per-chip=1"),
  ("evaluate geneval", "--steps=2"),
  ("evaluate shapes (?!.*-n)", "-n=1"),
  ("evaluate (fid|clip)", f"--extractor={extractors.__file__}:colors"),
  ("evaluate clip(-t)? ", f"--text-extractor={extractors.__file__}:words"),
  ("train (?!.*--config.steps)", "--config.steps=2 --config.batch=4"),
  ("train", "--config.log.every=1 --config.log.eval_every=0 --config.log.tensorboard=False"),
  (
    "(train|encode) --config=(configs/)?(blip3o_|mine)",
    "--config.data.holdout=.2 --config.eval_data.holdout=.2 "
    "--config.data.image_size=112 --config.eval_data.image_size=112",
  ),
)
# What a page writes in general, as somebody would fill it in.
FILLED = {
  "configs/NAME.py[:ARG] --workdir=DIR [--config.FIELD=VALUE ...]": (
    "configs/shapes_generator_own.py:path=/data/own --workdir=runs/own --config.seed=1"
  ),
  "quantize=int8,qwen=DIR,tars=DIR --workdir=DIR": (
    "quantize=int8,data=pixels,qwen=DIR,tars=/data/tars --workdir=runs/int8"
  ),
  "model=blip3o_jax/assets/shapes --workdir=DIR": (
    "model=blip3o_jax/assets/shapes --workdir=runs/smoke"
  ),
  "dpg --check DIR [--prompts FILE]": "dpg --check somebodys/pictures",
  "shapes [--model DIR] [-n 50] [--output DIR]": (
    "shapes --model blip3o_jax/assets/shapes --output scores"
  ),
}


# What the pages take as given ---------------------------------------------------------------------


def pictures(folder: Path, count: int = RECORDS, ending: str = "png") -> list[str]:
  """Pictures of noise in a folder, and their names."""
  folder.mkdir(parents=True)
  names = [f"{i:04d}.{ending}" for i in range(count)]
  for i, name in enumerate(names):
    pixels = np.random.default_rng(i).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    Image.fromarray(pixels).save(folder / name)
  return names


def tars(folder: Path) -> None:
  """A set of pictures and captions."""
  for name in pictures(folder / "loose", ending="jpg"):
    (folder / "loose" / name).with_suffix(".txt").write_text(f"caption {name}")
  with tarfile.open(folder / "0.tar", "w") as tar:
    for file in sorted((folder / "loose").iterdir()):
      tar.add(file, file.name)
  shutil.rmtree(folder / "loose")


def rows(folder: Path, make: Any) -> None:
  """A list beside its pictures: a row of two of them each."""
  names = pictures(folder, 16)
  found = [make(a, b) for a, b in zip(names[::2], names[1::2], strict=True)]
  (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))


def talk(shown: str, drawn: str) -> dict[str, Any]:
  said = [("user", "<image> make the sky red"), ("assistant", "Here is the image: <image>")]
  messages = [{"role": role, "content": content} for role, content in said]
  return {"images": [shown, drawn], "messages": messages}


def edit(before: str, after: str) -> dict[str, Any]:
  return {"instruction": "make the sky red", "input_image": before, "output_image": after}


def drawn(folder: Path, **fields: str) -> None:
  """Pictures as somebody's model left them, and what was asked."""
  names = pictures(folder, 6)
  lines = [{"file": n, "prompt": f"a red square {i}", **fields} for i, n in enumerate(names)]
  (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def own_pictures(home: Path) -> None:
  """The four layouts that tests/benchmarks/own_pictures.py makes of drawings that it fetches."""
  tars(home / "tars")
  names = pictures(home / "folder")
  lines = [json.dumps({"image": n, "caption": f"caption {n}"}) + "\n" for n in names]
  (home / "folder" / "list.jsonl").write_text("".join(lines))
  columns = {"image": [(home / "folder" / n).read_bytes() for n in names], "caption": names}
  (home / "parquet").mkdir()
  parquet.write_table(pyarrow.table(columns), home / "parquet" / "0.parquet")
  assert cli.main(["pack", str(home / "tars"), "--output", str(home / "arrayrecord")]) == 0


def given(home: Path, page: Path) -> None:
  """All of it, in the folder that commands are run in."""
  for name in ("BLIP3o-Model-4B", "BLIP3o/BLIP3o-Model-4B", "DIR"):
    checkpoints.copy(home / name)
  nexus_files.copy(home / "Nexus-GenV2", pickles=True)
  nexus_files.plain_qwen(home / "Qwen2.5-VL-7B-Instruct")
  for name in ("configs", "blip3o_jax", "tests"):
    (home / name).symlink_to(ROOT / name)
  for name in ("mine", "own", "pictures", "tars", "long", "short"):
    tars(home / "data" / name)
  rows(home / "data" / "talks", talk)
  rows(home / "data" / "edits", edit)
  for name in ("drawn", "edited", "real", "wanted", "runs/a", "runs/b"):
    drawn(home / name, caption="a green square")
  (home / "somebodys" / "pictures").mkdir(parents=True)
  for i in range(3):
    pixels = np.random.default_rng(i).integers(0, 256, (1024, 1024, 3), np.uint8)
    Image.fromarray(pixels).save(home / "somebodys" / "pictures" / f"item{i}.png")
  own_pictures(home / "work" / "openmoji")
  names = pictures(home / "photos", 1, "jpg")
  (home / "photos" / names[0]).rename(home / "photo.jpg")
  (home / "prompts.txt").write_text("a red circle\na blue square\n")
  columns = {"image": [(home / "photo.jpg").read_bytes()] * RECORDS}
  columns["captions"] = [
    json.dumps({"long": f"long {i}", "short": "short"}) for i in range(RECORDS)
  ]
  (home / "data" / "t2i").mkdir()
  parquet.write_table(pyarrow.table(columns), home / "data" / "t2i" / "0.parquet")
  metadata = {
    "tag": "single_object",
    "include": [{"class": "bench", "count": 1}],
    "prompt": "a bench",
  }
  (home / "evaluation_metadata.jsonl").write_text(json.dumps(metadata) + "\n")
  for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.S):
    if "def get_config" in block:
      (home / "mine.py").write_text(block.replace('"/data/', '"data/'))
  recorded = nexus_files.TINY if page.stem == "nexus-gen" else checkpoints.TINY
  shutil.copy(recorded / "io.safetensors", home / "recorded.safetensors")
  decoder = checkpoints.TINY / "diffusion-decoder" / "io.safetensors"
  shutil.copy(decoder, home / "recorded.decoder.safetensors")


@pytest.fixture
def tiny_stages(monkeypatch):
  """The released stages with the sizes of the recorded miniatures."""
  one, _ = blip3o_files.read(checkpoints.TINY, "float32")
  other, _ = nexus_files_of.read(nexus_files.TINY, "float32")
  monkeypatch.setattr(blip3o_recipes, "released_sizes", SimpleNamespace(released=lambda size: one))
  monkeypatch.setattr(nexus_recipes, "sizes", SimpleNamespace(released=lambda: other))


# The pages ----------------------------------------------------------------------------------------

README = ROOT / "README.md"
WITH = [page for page in documented.PAGES if documented.commands(page.read_text())]
# A folder of which something is found ends with 1, as its page says.
STATUS = {"evaluate dpg --check": 1}
# A run with averaged parameters, which the page exports.
BEFORE = {
  "weights": "train --config=configs/shapes_generator_own.py:path=/data/own --workdir=runs/4b"
}


def shortened(line: str) -> list[str]:
  """The words of a command, and what makes it shorter."""
  for general, filled in FILLED.items():
    line = line.replace(general, filled)
  line = re.sub(r"(?<=[=, ])/data/", "data/", line)
  found = documented.words(line)
  for pattern, more in SHORTER:
    if re.match(pattern, line):
      found += more.split()
  return found


@pytest.mark.parametrize("page", WITH, ids=[str(p.relative_to(ROOT)) for p in WITH])
def test_the_commands_of_a_page(page, tmp_path, tmp_path_factory, monkeypatch, capsys, tiny_stages):
  text = page.read_text()
  lines = documented.commands(text[text.index("## Convert") :] if page == README else text)
  plans = any(line.startswith("plan") for line in lines)
  if plans and importlib.util.find_spec("libtpu") is None:
    pytest.skip("libtpu is not installed: bash launch/test.sh --setup")
  if page.stem == "metrics":
    pytest.importorskip("torchmetrics", reason="no build of torch for this Python")
  given(tmp_path, page)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))  # of plans
  for line in [*([BEFORE[page.stem]] if page.stem in BEFORE else []), *lines]:
    if line.startswith("compare --answers"):
      for name in re.findall(r"answers-\S+json", line):
        rated.alike(Path(name), Path("comparison/compare.html"))
    if line.startswith("serve"):
      documented.serve(shortened(line), tmp_path)
      continue
    wanted = next((status for begins, status in STATUS.items() if line.startswith(begins)), 0)
    capsys.readouterr()
    found = cli.main(shortened(line))
    assert found == wanted, f"{line}\n{capsys.readouterr().err[-2000:]}"
