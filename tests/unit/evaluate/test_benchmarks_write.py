"""What `evaluate` writes is what each official scorer reads: names, counts, tiles, metadata."""

import hashlib
import io
import json
from pathlib import Path
import re

import numpy as np
from painted import Painted
from painted import pixels
from PIL import Image
import pytest
import scorers

import blip3o_jax
from blip3o_jax import cli
from blip3o_jax.evaluate import benchmarks
from blip3o_jax.evaluate.benchmarks import gedit
from blip3o_jax.use import jobs
from blip3o_jax.use import picture

GENEVAL = [
  {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a bench"},
  {
    "tag": "counting",
    "include": [{"class": "cow", "count": 3}],
    "exclude": [{"class": "cow", "count": 4}],
    "prompt": "three cows",
    "detailed": "three brown cows on a meadow",
  },
]
WISE = [
  {"prompt_id": i, "Prompt": f"prompt {i}", "Explanation": "e", "Subcategory": "s"} for i in (1, 7)
]
ONEIG = (
  "category,id,prompt_en,type,prompt_length,class\n"
  'Anime_Stylization,000,"a cat, drawn",NP,short,None\n'
  "Anime_Stylization,001,a dog,NP,short,None\n"
  "Text_Rendering,000,a sign,T,short,None\n"
)


@pytest.fixture
def evaluate(monkeypatch, tmp_path, capsys):
  """evaluate(name, *options, model=...): the exit status, the folder of pictures, and the model."""

  def call(name, *options, model=None, output="out"):
    model = model or Painted(verbs=("generate", "edit"))
    monkeypatch.setattr(blip3o_jax, "load", lambda *args, **more: model)
    words = ["evaluate", name, "--output", str(tmp_path / output), "--model", "my/model-4b"]
    status = cli.main([*words, *map(str, options)])
    return status, tmp_path / output / "images", model

  monkeypatch.setattr(jobs.provenance, "commit", lambda: "c0ffee")
  return call


def lines(path: Path, rows) -> Path:
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def clean(name: str, output: Path, *options) -> bool:
  return cli.main(["evaluate", name, "--check", str(output), *map(str, options)]) == 0


def test_geneval(evaluate, tmp_path, capsys):
  prompts = lines(tmp_path / "p.jsonl", GENEVAL)
  status, home, _ = evaluate("geneval", "--prompts", prompts, "--seed", 5)
  assert status == 0
  found = scorers.geneval(home)
  assert [row["prompt"] for row, _ in found] == ["a bench"] * 4 + ["three cows"] * 4
  for i, (row, image) in enumerate(found):
    assert row == GENEVAL[i // 4]
    assert np.array_equal(image, pixels(row["prompt"], 5 + i))
  assert "evaluate_images.py" in capsys.readouterr().err
  told = picture.read(home / "00001" / "samples" / "0002.png")
  assert (told["seed"], told["about"]) == (11, {"benchmark": "geneval", "key": "00001"})
  assert (told["fingerprint"], told["commit"], told["steps"]) == ("blake3:1", "c0ffee", 4)
  settings = json.loads((home.parent / "settings.json").read_text())
  assert settings["benchmark"] == "geneval"
  assert (settings["number"], settings["seed"], settings["commit"]) == (4, 5, "c0ffee")
  assert settings["prompts"].startswith("sha256:")
  assert clean("geneval", home.parent, "--prompts", prompts)


def test_a_rewritten_prompt_is_kept_apart(evaluate, tmp_path, capsys):
  rows = [{**row, "detailed": f"much {i}"} for i, row in enumerate(GENEVAL)]
  prompts = lines(tmp_path / "p.jsonl", rows)
  _, home, model = evaluate("geneval", "--prompts", prompts, "--field", "detailed", "-n", 1)
  assert [text for batch in model.batches for text, _ in batch] == ["much 0", "much 1"]
  assert scorers.geneval(home)[0][0]["prompt"] == "a bench"  # what is scored stays
  told = picture.read(home / "00000" / "samples" / "0000.png")
  assert (told["prompt"], told["about"]["rewritten"]) == ("much 0", "a bench")
  capsys.readouterr()
  assert not clean("geneval", home.parent, "--prompts", prompts, "-n", 1)
  assert "pictures were drawn from a rewritten prompt" in capsys.readouterr().out


def test_geneval2(evaluate, tmp_path):
  rows = [{"prompt": f"prompt {i}", "atom_count": 1, "vqa_list": [], "skills": []} for i in (0, 1)]
  prompts = lines(tmp_path / "p.jsonl", rows)
  status, home, _ = evaluate("geneval2", "--prompts", prompts)
  assert status == 0
  paths = json.loads((home.parent / "image_paths.json").read_text())
  for i, row in enumerate(rows):
    assert np.array_equal(scorers.opened(Path(paths[row["prompt"]])), pixels(row["prompt"], i))
  assert clean("geneval2", home.parent, "--prompts", prompts)


@pytest.mark.parametrize("form", ["folder", "csv"])
def test_dpg(form, evaluate, tmp_path, capsys):
  if form == "folder":
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    for name in ("COCO1", "midjourney2"):
      (prompts / f"{name}.txt").write_text(f"text of {name}\n")
  else:
    prompts = tmp_path / "dpg_bench.csv"
    rows = [f"{name},text of {name},{i}" for name in ("COCO1", "midjourney2") for i in (1, 2)]
    prompts.write_text("\n".join(["item_id,text,proposition_id", *rows]))
  status, home, model = evaluate("dpg", "--prompts", prompts, model=Painted(16))
  assert status == 0
  assert "dist_eval.sh" in (err := capsys.readouterr().err)
  assert err.rstrip().endswith(" 16")  # the side of one tile
  crops = scorers.dpg(home, {"COCO1", "midjourney2"}, 16)
  assert not crops.failed
  for i, (name, tiles) in enumerate(crops.tiles.items()):
    assert len(tiles) == 4
    for k, tile in enumerate(tiles):
      assert np.array_equal(tile, pixels(f"text of {name}", 4 * i + k, 16))
  assert [len(batch) for batch in model.batches] == [8]
  assert clean("dpg", home.parent, "--prompts", prompts, "--resolution", 16)


def test_wise(evaluate, tmp_path):
  files = [tmp_path / "culture.json", tmp_path / "science.json"]
  for path, row in zip(files, WISE, strict=True):
    path.write_text(json.dumps([row]))
  status, home, _ = evaluate("wise", "--prompts", *files)
  assert status == 0
  found = scorers.wise(home, WISE)
  assert list(found) == [1, 7]
  for i, number in enumerate(found):
    assert np.array_equal(found[number], pixels(f"prompt {number}", i))
  assert clean("wise", home.parent, "--prompts", *files)


@pytest.mark.parametrize("number", [1, 4])
def test_oneig(number, evaluate, tmp_path):
  prompts = tmp_path / "OneIG-Bench.csv"
  prompts.write_text(ONEIG)
  status, home, _ = evaluate("oneig", "--prompts", prompts, "-n", number, "--folder", "mine")
  assert status == 0
  wanted = [("anime", "000", "a cat, drawn"), ("anime", "001", "a dog"), ("text", "000", "a sign")]
  for i, (category, key, prompt) in enumerate(wanted):
    tiles = scorers.oneig(home, category, "mine", key, {1: 1, 4: 2}[number])
    assert tiles is not None
    assert len(tiles) == number
    for k, tile in enumerate(tiles):
      assert np.array_equal(tile, pixels(prompt, i * number + k))
  told = json.loads((home.parent / "metadata" / "anime" / "mine" / "001.json").read_text())
  assert told["prompt"] == "a dog"
  assert told["fingerprint"] == "blake3:1"
  assert clean("oneig", home.parent, "--prompts", prompts, "-n", number)
  again = evaluate("oneig", "--prompts", prompts, "-n", number, "--folder", "mine")[2]
  assert not again.batches


def png(width: int, height: int, level: int) -> bytes:
  out = io.BytesIO()
  Image.new("RGB", (width, height), (level, 0, 0)).save(out, "PNG")
  return out.getvalue()


def gedit_rows() -> list[dict]:
  return [
    {
      "task_type": task,
      "key": f"k{i}",
      "instruction": f"change {i}",
      "instruction_language": language,
      "Intersection_exist": True,
    }
    for i, (task, language) in enumerate([("subject-add", "en"), ("style_change", "cn")])
  ]


@pytest.mark.parametrize("form", ["parquet", "raw", "jsonl"])
def test_gedit(form, evaluate, tmp_path):
  rows, options = gedit_rows(), []
  if form == "jsonl":
    for i, row in enumerate(rows):
      (tmp_path / f"{row['key']}_SRCIMG.png").write_bytes(png(64, 32, i))
    prompts = lines(tmp_path / "info.jsonl", rows)
    options = ["--images", tmp_path]
  else:
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    for i, row in enumerate(rows):
      row["input_image_raw"] = {"bytes": png(90, 45, i), "path": None}
      if form == "parquet":
        row["input_image"] = {"bytes": png(64, 32, i), "path": None}
    prompts = tmp_path / "train.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), prompts)
  status, home, _ = evaluate("gedit", "--prompts", prompts, *options)
  assert status == 0
  for i, row in enumerate(rows):
    place = home / "model-4b" / "fullset" / row["task_type"] / row["instruction_language"]
    before, after = scorers.gedit(place, row["key"])
    assert before.shape == ((352, 768, 3) if form == "raw" else (32, 64, 3))
    assert (before[0, 0] == (i, 0, 0)).all()
    made = Image.fromarray(pixels(f"change {i}", i)).resize(before.shape[1::-1])
    assert np.array_equal(after, np.asarray(made))


@pytest.mark.parametrize(
  ("size", "wanted"),
  [
    ((512, 512), (512, 512)),
    ((1024, 1024), (512, 512)),
    ((1600, 900), (704, 384)),
    ((900, 1600), (416, 672)),
    ((300, 200), (608, 416)),
  ],
)
def test_gedit_sizes_are_multiples_of_32_near_the_area(size, wanted):
  """By the authors' rule, worked out by hand."""
  assert gedit.size_of(*size) == wanted
  wide, high = gedit.size_of(*size)
  assert wide % 32 == high % 32 == 0
  assert abs(wide * high / 512**2 - 1) < 0.1


def test_imgedit(evaluate, tmp_path, capsys):
  (tmp_path / "originals" / "animal").mkdir(parents=True)
  (tmp_path / "originals" / "animal" / "1.jpg").write_bytes(png(40, 30, 3))
  prompts = tmp_path / "basic_edit.json"
  row = {"id": "animal/1.jpg", "prompt": "make it blue", "edit_type": "adjust"}
  prompts.write_text(json.dumps({"1082": row}))
  options = ["--prompts", prompts, "--images", tmp_path / "originals"]
  status, home, _ = evaluate("imgedit", *options)
  assert status == 0
  assert np.array_equal(scorers.opened(home / "1082.png"), pixels("make it blue", 0))
  assert clean("imgedit", home.parent, *options)
  told = picture.read(home / "1082.png")
  assert told["image_sha256"] == hashlib.sha256(png(40, 30, 3)).hexdigest()
  for change in (["--no-friendly"], []):  # another reading, and another picture
    if not change:
      (tmp_path / "originals" / "animal" / "1.jpg").write_bytes(png(40, 30, 4))
    status, _, model = evaluate("imgedit", *options, *change)
    assert (status, model.batches) == (1, [])
    said = capsys.readouterr().err
    assert f"1082.png is there with another {'friendly' if change else 'image_sha256'}" in said


@pytest.mark.parametrize("name", ["gedit", "imgedit"])
def test_an_editing_benchmark_needs_a_model_that_edits(name, monkeypatch, tmp_path, capsys):
  """By the miniature BLIP3-o, which cannot; nothing is read of it, and nothing drawn."""
  if name == "gedit":
    prompts = lines(tmp_path / "info.jsonl", gedit_rows())
    for row in gedit_rows():
      (tmp_path / f"{row['key']}_SRCIMG.png").write_bytes(png(64, 32, 0))
  else:
    prompts = tmp_path / "edit.json"
    prompts.write_text(json.dumps({"1": {"id": "1.png", "prompt": "p"}}))
    (tmp_path / "1.png").write_bytes(png(8, 8, 0))
  words = ["evaluate", name, "--prompts", str(prompts), "--images", str(tmp_path)]
  words += ["--model", "miniature"]
  assert cli.main([*words, "--output", str(tmp_path / "out")]) == 1
  assert "a model of the system blip3o cannot edit" in capsys.readouterr().err
  assert not (tmp_path / "out" / "images").exists()


@pytest.mark.parametrize(
  ("name", "text", "options", "said"),
  [
    ("geneval", '{"prompt": "a", "tag": "x"}\n', [], r"line 1: include is None"),
    ("geneval", '{"prompt": "a"}\n', [], r"line 1: tag is None"),
    ("geneval2", '{"prompt": "a"}\n{"prompt": "a"}\n', [], "line 2: the prompt stands at"),
    ("geneval2", '{"prompt": "a"}\n', ["-n", 4], "-n 4: GenEval 2 has 1 pictures"),
    ("dpg", "item_id,text\na.b,c\n", [], "cuts 'a.b' at its first dot"),
    ("dpg", "item_id,text\na,c\na,d\n", [], "line 3: the item 'a' has another text"),
    ("dpg", "item_id,text\na,c\n", ["-n", 3], "-n 3: DPG-Bench has 1 or 4 pictures"),
    ("wise", '[{"prompt_id": "1", "Prompt": "a"}]', [], "entry 0: prompt_id is '1'"),
    ("wise", '[{"prompt_id": 1, "prompt": "a"}]', [], "entry 0: no field 'Prompt'"),
    ("oneig", "category,id,prompt_en\nCats,000,a\n", [], "line 2: category is 'Cats'"),
    ("oneig", "category,id,prompt_en\nPortrait,x,a\n", [], "line 2: id is 'x'"),
    ("imgedit", '{"1": {"id": "a.png", "prompt": "p"}}', [], "no picture to edit; .*--images"),
    ("gedit", '{"key": "k"}\n', [], "line 1: no field 'task_type'"),
    ("wise", '[{"prompt_id": 1, "Prompt": "a"}]', ["--field", "better"], "no field 'better'"),
  ],
)
def test_wrong_prompts_are_one_line(name, text, options, said, evaluate, tmp_path, capsys):
  path = tmp_path / {"d": "p.csv", "o": "p.csv", "g": "p.jsonl"}.get(name[0], "p.json")
  path = tmp_path / "p.json" if name == "imgedit" else path
  path.write_text(text)
  status, home, model = evaluate(name, "--prompts", path, *options)
  assert status == 1
  (line,) = [x for x in capsys.readouterr().err.splitlines() if not x.startswith("loaded")]
  assert re.search(said, line), line
  assert not home.exists()
  assert not model.batches


def test_another_set_of_prompts_leaves_the_folder_as_it_is(evaluate, tmp_path, capsys):
  prompts = lines(tmp_path / "p.jsonl", GENEVAL)
  _, home, _ = evaluate("geneval", "--prompts", prompts, "-n", 1)
  before = {p: p.read_bytes() for p in home.rglob("*") if p.is_file()}
  other = lines(tmp_path / "q.jsonl", [{**GENEVAL[0], "prompt": "another"}, GENEVAL[1]])
  status, _, model = evaluate("geneval", "--prompts", other, "-n", 1)
  assert status == 1
  assert "the folder has another prompts" in capsys.readouterr().err
  assert not model.batches
  assert before == {p: p.read_bytes() for p in home.rglob("*") if p.is_file()}


def test_every_layout_has_the_names():
  for name, found in benchmarks.LAYOUTS.items():
    assert found.VERB in ("generate", "edit"), name
    assert not found.NUMBERS or found.NUMBER in found.NUMBERS
    assert found.__doc__.partition(":")[0].startswith(found.TITLE.partition("-")[0].split(" ")[0])
