"""The trap of DPG-Bench's scorer, the side of a tile; and the command that checks a folder."""

import json
from pathlib import Path
import subprocess
import sys

from checked import check
from checked import one
from checked import photo
from checked import save
import numpy as np
import pytest
import scorers

from blip3o_jax import cli
from blip3o_jax.evaluate import benchmarks
from blip3o_jax.evaluate.benchmarks import layout
from blip3o_jax.evaluate.benchmarks.layout import Asked
from blip3o_jax.use import jobs

ITEMS = 6


def dpg_prompts(root: Path) -> Path:
  path = root / "dpg.csv"
  path.write_text("item_id,text\n" + "".join(f"item{i},text {i}\n" for i in range(ITEMS)))
  return path


def grids(root: Path, side: int) -> Path:
  for i in range(ITEMS):
    save(root / "g" / f"item{i}.png", jobs.tiled([photo(4 * i + k, side) for k in range(4)]))
  return root / "g"


def singles(root: Path, side: int) -> Path:
  for i in range(ITEMS):
    save(root / "s" / f"item{i}.png", photo(i, side))
  return root / "s"


def test_grids_scored_at_their_own_side_are_well(tmp_path):
  folder = grids(tmp_path, 128)
  assert check("dpg", folder, dpg_prompts(tmp_path), resolution=128) == []
  report = benchmarks.LAYOUTS["dpg"].check(folder, None, Asked(number=0))
  assert "pass --resolution 128 and PIC_NUM=4" in report.notes
  assert report.command == f"PIC_NUM=4 bash dpg_bench/dist_eval.sh {folder} 128"


def test_large_tiles_scored_at_half_their_side_are_quarters_of_the_first(tmp_path):
  """The trap itself: what the scorer's crops hold, and that the check says so."""
  folder = grids(tmp_path, 128)
  crops = scorers.dpg(folder, {f"item{i}" for i in range(ITEMS)}, 64).tiles["item2"]
  assert np.array_equal(jobs.tiled(crops), photo(8, 128))  # of the other three nothing
  found = check("dpg", folder, dpg_prompts(tmp_path), resolution=64)
  one(
    found,
    layout.ALL_WRONG,
    "--resolution 64, but a tile is 128 x 128",
    "four quarters of the first",
  )


def test_small_tiles_scored_at_the_side_of_the_file_are_one_grid_and_black(tmp_path):
  folder = grids(tmp_path, 64)
  crops = scorers.dpg(folder, {"item0"}, 128).tiles["item0"]
  assert [bool(x.any()) for x in crops] == [True, False, False, False]
  found = check("dpg", folder, dpg_prompts(tmp_path), resolution=128)
  one(found, layout.ALL_WRONG, "a tile is 64 x 64", "the whole grid, and the others black")


def test_single_pictures_where_four_are_expected(tmp_path):
  folder = singles(tmp_path, 128)
  crops = scorers.dpg(folder, {"item0"}, 128).tiles["item0"]
  assert [bool(x.any()) for x in crops] == [True, False, False, False]
  found = check("dpg", folder, dpg_prompts(tmp_path))
  one(found, layout.ALL_WRONG, "single pictures of 128 x 128", "PIC_NUM=1 and --resolution 128")
  report = benchmarks.LAYOUTS["dpg"].check(folder, None, Asked(number=0))
  assert report.command == f"PIC_NUM=1 bash dpg_bench/dist_eval.sh {folder} 128"
  assert check("dpg", folder, dpg_prompts(tmp_path), pic_num=1, resolution=128) == []
  found = check("dpg", folder, dpg_prompts(tmp_path), pic_num=1, resolution=64)
  one(found, layout.ALL_WRONG, "--resolution 64", "a part of a picture")


def test_grids_where_one_picture_is_expected(tmp_path):
  folder = grids(tmp_path, 64)
  found = check("dpg", folder, dpg_prompts(tmp_path), pic_num=1)
  one(found, layout.ALL_WRONG, "the files are grids, and PIC_NUM is 1")


def test_strips_and_odd_sizes(tmp_path):
  for i in range(ITEMS):
    strip = np.concatenate([photo(4 * i + k) for k in range(4)], axis=1)
    save(tmp_path / "g" / f"item{i}.png", strip)
  found = check("dpg", tmp_path / "g", dpg_prompts(tmp_path))
  one(found, layout.ALL_WRONG, "256 x 64", "crops squares")
  save(tmp_path / "g" / "item0.png", photo(0, 48))
  found = check("dpg", tmp_path / "g", dpg_prompts(tmp_path))
  assert [h for h, _ in found] == [layout.ALL_WRONG, layout.ALL_WRONG]
  assert "one --resolution cannot be right for both item0.png" in " ".join(t for _, t in found)


def test_names_and_files_that_dpg_leaves_out(tmp_path):
  folder = grids(tmp_path, 64)
  (folder / "item0.png").unlink()
  (folder / "item1.png").rename(folder / "item1.v2.png")  # the id ends at the first dot: fine
  save(folder / "item2.jpg", jobs.tiled([photo(90 + k) for k in range(4)]))
  save(folder / "stray.png", jobs.tiled([photo(80 + k) for k in range(4)]))
  data = (folder / "item3.png").read_bytes()
  (folder / "item3.png").write_bytes(data[: len(data) // 2])
  (folder / "notes.txt").write_text("x")
  found = check("dpg", folder, dpg_prompts(tmp_path))
  texts = {text.split(":")[0] if "cannot be read" in text else text: harm for harm, text in found}
  said = "\n".join(texts)
  assert "1 of 6 items are absent" in said
  assert "files have an id that another has too; each is counted item2.jpg item2.png" in said
  assert "files have the id of no item" in said
  assert "stray.png" in said
  assert "cannot be read (truncated)" in said
  assert "things that are no picture" in said
  assert len(found) == 5
  assert [h for h, _ in found] == sorted((h for h, _ in found), reverse=True)
  ids = {f"item{i}" for i in range(ITEMS)}
  assert scorers.dpg(folder, ids, 64).failed == ["item3.png", "notes.txt", "stray.png"]


# The command --------------------------------------------------------------------------------------


def test_the_command_says_it_and_its_status_tells(tmp_path, capsys):
  folder = grids(tmp_path, 128)
  words = ["evaluate", "dpg", "--check", str(folder), "--prompts", str(dpg_prompts(tmp_path))]
  assert cli.main(words) == 0
  out = capsys.readouterr().out
  assert "nothing that it would misread" in out
  assert "note: pass --resolution 128 and PIC_NUM=4" in out
  assert cli.main([*words, "--resolution", "64"]) == 1
  assert "- every score is wrong: --resolution 64" in capsys.readouterr().out
  assert cli.main([*words, "--resolution", "64", "--json"]) == 1
  told = json.loads(capsys.readouterr().out)
  assert (told["benchmark"], told["pictures"]) == ("DPG-Bench", ITEMS)
  assert told["findings"][0]["means"] == "every score is wrong"
  assert told["scorer"].endswith(" 128")


def test_a_check_loads_no_model_and_no_jax(tmp_path):
  folder = grids(tmp_path, 64)
  code = (
    "import sys; from blip3o_jax import cli\n"
    f"cli.main(['evaluate', 'dpg', '--check', {str(folder)!r}, '--prompts', "
    f"{str(dpg_prompts(tmp_path))!r}])\n"
    "print(sorted({'jax', 'flax', 'torch', 'transformers'} & set(sys.modules)))"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
  ("words", "said"),
  [
    (["dpg", "--check", "absent"], "absent: no such folder"),
    (["dpg"], "expected --output DIR to draw, or --check DIR"),
    (["dpg", "--output", "x", "--check", "y"], "expected --output DIR to draw, or --check DIR"),
    (["dpg", "--output", "x"], "required: --prompts"),
    (["dgp", "--output", "x"], "invalid choice: 'dgp'"),
    (["shapes", "--prompts", "x"], "shapes has its own prompts"),
    (["shapes", "--steps", "3"], "no --steps"),
  ],
)
def test_wrong_words_are_told(words, said, tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  try:
    status = cli.main(["evaluate", *words])
  except SystemExit as stop:
    status = stop.code
  assert status in (1, 2)
  assert said in capsys.readouterr().err
  assert not list(tmp_path.iterdir())
