"""`evaluate NAME --check DIR`: what a scorer would misread in a folder that anybody made."""

import json
from pathlib import Path

from checked import check
from checked import one
from checked import photo
from checked import save
from painted import pixels
from PIL import Image
import pytest
import scorers

from blip3o_jax.evaluate.benchmarks import layout
from blip3o_jax.use import jobs

# GenEval ------------------------------------------------------------------------------------------

ROWS = [
  {"tag": "counting", "include": [{"class": "cow", "count": i}], "prompt": f"{i} cows"}
  for i in range(1, 5)
]


@pytest.fixture
def geneval(tmp_path):
  """A folder that is well, with its prompts."""
  prompts = tmp_path / "p.jsonl"
  prompts.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
  for i, row in enumerate(ROWS):
    home = tmp_path / "g" / f"{i:05d}"
    for k in range(4):
      save(home / "samples" / f"{k:05d}.png", pixels(row["prompt"], k))
    (home / "metadata.jsonl").write_text(json.dumps(row))
  return tmp_path / "g", prompts


def test_a_good_folder_of_geneval(geneval):
  folder, prompts = geneval
  assert check("geneval", folder, prompts) == []
  one(check("geneval", folder), layout.LEFT_OUT, "4 of the benchmark's 553 prompts are there")


def rewrite(home: Path) -> None:
  row = json.loads((home / "metadata.jsonl").read_text())
  (home / "metadata.jsonl").write_text(json.dumps({**row, "prompt": "a herd of cows, photo"}))


def ask_less(home: Path) -> None:
  row = json.loads((home / "metadata.jsonl").read_text())
  (home / "metadata.jsonl").write_text(
    json.dumps({**row, "include": [{"class": "cow", "count": 1}]})
  )


def cut(home: Path) -> None:
  path = home / "samples" / "00001.png"
  path.write_bytes(path.read_bytes()[:-20])


def flip(home: Path) -> None:
  path = home / "samples" / "00001.png"
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


@pytest.mark.parametrize(
  ("damage", "harm", "said"),
  [
    (
      lambda h: (h / "samples" / "00003.png").unlink(),
      layout.SOME_WRONG,
      "another number of",
    ),
    (
      lambda h: (h / "samples" / "00003.png").rename(h / "samples" / "3.jpg"),
      layout.LEFT_OUT,
      "not called by a number and .png 00002/samples/3.jpg",
    ),
    (
      lambda h: save(h / "samples" / "a.png", pixels("a", 1)),
      layout.LEFT_OUT,
      "pictures are not called by a number",
    ),
    (
      lambda h: (h / "samples" / "00003.png").rename(h / "samples" / "00003.png.bak"),
      layout.SOME_WRONG,
      "read as samples though they end in something else",
    ),
    (rewrite, layout.SOME_WRONG, "prompts of metadata.jsonl are rewritten"),
    (ask_less, layout.SOME_WRONG, "ask for other objects"),
    (lambda h: (h / "metadata.jsonl").unlink(), layout.ENDS, "no metadata.jsonl"),
    (
      lambda h: (h / "metadata.jsonl").write_text('{"prompt": "3 cows"}\n{"prompt": "3 cows"}\n'),
      layout.ENDS,
      "not one JSON object",
    ),
    (cut, layout.ENDS, "cannot be read (truncated)"),
    (flip, layout.ENDS, "cannot be read (damaged"),
    (
      lambda h: (h / "samples" / "00002.png").write_bytes(b""),
      layout.ENDS,
      "cannot be read (empty)",
    ),
    (
      lambda h: (h / "samples" / "00002.png").write_bytes(b"<html>"),
      layout.ENDS,
      "cannot be read (no picture)",
    ),
    (
      lambda h: h.rename(h.with_name("p2")),
      layout.LEFT_OUT,
      "are not called by a number p2",
    ),
    (lambda h: h.rename(h.with_name("00009")), layout.SOME_WRONG, "a number beyond the prompts"),
    (
      lambda h: save(h / "samples" / "00003.png", pixels("3 cows", 0)),
      layout.SOME_WRONG,
      "equal to another of the same prompt",
    ),
    (
      lambda h: save(h / "samples" / "00003.png", pixels("1 cows", 0)),
      layout.SOME_WRONG,
      "equal to that of another prompt",
    ),
    (
      lambda h: save(h / "samples" / "00003.png", pixels("3 cows", 3, 16)),
      layout.LOOK,
      "pictures are not 8 x 8 as the other 15 are",
    ),
    (
      lambda h: save(h / "samples" / "00003.png", pixels("3 cows", 3), "three cows on grass"),
      layout.LOOK,
      "pictures were drawn from a rewritten prompt",
    ),
  ],
)
def test_what_is_wrong_with_a_folder_of_geneval(damage, harm, said, geneval):
  folder, prompts = geneval
  damage(folder / "00002")
  found = check("geneval", folder, prompts)
  assert any(h == harm and said in text for h, text in found), found
  assert all(
    "00002" in text or "00009" in text or "00000" in text or "p2" in text for _, text in found
  )


def test_the_same_in_many_folders_is_one_finding(geneval):
  folder, prompts = geneval
  for path in folder.glob("*/samples/*.png"):
    path.rename(path.with_suffix(".jpg"))
  found = check("geneval", folder, prompts)
  left = [text for harm, text in found if harm == layout.LEFT_OUT]
  assert len(left) == 1
  assert left[0].count(".jpg") == 16


def test_counts_that_are_not_the_authors(geneval):
  folder, prompts = geneval
  for path in folder.glob("*/samples/0000[123].png"):
    path.unlink()
  one(check("geneval", folder, prompts), layout.LOOK, "1 samples a prompt; expected 4")
  assert check("geneval", folder, prompts, number=1) == []


# The others ---------------------------------------------------------------------------------------


def test_wise(tmp_path):
  numbers = (1, 2, 3, 701)
  prompts = tmp_path / "p.json"
  prompts.write_text(json.dumps([{"prompt_id": i, "Prompt": f"p {i}"} for i in numbers]))
  folder = tmp_path / "w"
  for i in numbers:
    save(folder / f"{i}.png", pixels(f"p {i}", i))
  assert check("wise", folder, prompts) == []
  assert "996 of 1000 files are absent" in check("wise", folder)[1][1]
  (folder / "1.png").rename(folder / "0001.png")
  (folder / "701.png").rename(folder / "701.jpg")
  Image.fromarray(pixels("p 2", 2)).save(folder / "2.png", "JPEG")
  assert set(scorers.wise(folder, json.loads(prompts.read_text()))) == {2, 3}
  said = "\n".join(f"{h} {text}" for h, text in check("wise", folder, prompts))
  assert "4 pictures of natural science (701 to 1000) are absent" in said
  assert "3 2 of 4 files are absent" in said
  assert "pictures are not called N.png" in said
  assert "0001.png 701.jpg" in said
  assert "files are called .png and are none" in said


def test_geneval2(tmp_path):
  prompts = tmp_path / "p.jsonl"
  prompts.write_text("".join(json.dumps({"prompt": f"p {i}"}) + "\n" for i in range(3)))
  places = {f"p {i}": str(save(tmp_path / "images" / f"{i}.png", pixels("p", i))) for i in range(3)}
  folder, paths = tmp_path / "images", tmp_path / "image_paths.json"
  one(check("geneval2", folder, prompts), layout.ENDS, "no image_paths.json")
  paths.write_text(json.dumps(places))
  assert check("geneval2", folder, prompts) == []
  paths.write_text(json.dumps({"p 0": places["p 0"], "p 1": places["p 0"], "P 2": "/absent.png"}))
  said = "\n".join(f"{h} {text}" for h, text in check("geneval2", folder, prompts))
  assert "4 1 of 3 paths lead to no file /absent.png" in said
  assert "4 1 of 3 prompts are no key of image_paths.json p 2" in said
  assert "3 prompts whose path is that of another prompt p 0" in said
  assert "2 keys of image_paths.json are no prompt of the file: rewritten? P 2" in said


def test_oneig(tmp_path):
  prompts = tmp_path / "p.csv"
  prompts.write_text(
    "category,id,prompt_en\n" + "".join(f"Portrait,{i:03d},p {i}\n" for i in range(3))
  )
  home = tmp_path / "images" / "human" / "mine"
  home.mkdir(parents=True)
  for i in range(3):
    tiles = jobs.tiled([pixels(f"p {i}", k) for k in range(4)])
    Image.fromarray(tiles).save(home / f"{i:03d}.webp", lossless=True)
  folder = tmp_path / "images"
  assert check("oneig", folder, prompts) == []
  # A file of metadata beside a picture: the scorer then finds two, and gives none a score.
  (home / "001.json").write_text("{}")
  assert scorers.oneig(folder, "human", "mine", "001", 2) is None
  found = check("oneig", folder, prompts)
  one(found, layout.LEFT_OUT, "begin with an id that another file begins with too", "001.webp")
  (home / "001.json").unlink()
  dark = jobs.tiled([pixels("p", k) * (k != 3) for k in range(4)])
  Image.fromarray(dark).save(home / "001.webp", lossless=True)
  assert len(scorers.oneig(folder, "human", "mine", "001", 2)) == 3
  one(check("oneig", folder, prompts), layout.LEFT_OUT, "parts that are wholly black", "001.webp")
  (home / "001.webp").unlink()
  one(check("oneig", folder, prompts), layout.LEFT_OUT, "1 of 3 prompts of human have no file")
  home.parent.rename(folder / "portrait")
  found = check("oneig", folder, prompts)
  assert (found[0][0], found[1][0]) == (layout.ALL_WRONG, layout.LEFT_OUT)
  assert "folders are none of anime, human" in found[1][1]


def test_gedit(tmp_path):
  home = tmp_path / "mine" / "fullset" / "subject-add" / "en"
  for i in range(3):
    save(home / f"k{i}_SRCIMG.png", photo(i, 32))
    save(home / f"k{i}.png", photo(10 + i, 32))
  assert check("gedit", tmp_path) == []
  save(home / "k0.png", photo(0, 32))
  one(check("gedit", tmp_path), layout.SOME_WRONG, "outputs are their inputs, unchanged", "k0.png")
  save(home / "k0.png", photo(9, 64)[:32])
  one(check("gedit", tmp_path), layout.SOME_WRONG, "another shape than their inputs", "k0.png")
  (home / "k0_SRCIMG.png").unlink()
  assert scorers.gedit(home, "k0") is None
  one(check("gedit", tmp_path), layout.LEFT_OUT, "no KEY_SRCIMG.png beside them", "k0.png")
  home.parent.rename(home.parent.with_name("subject_add"))
  assert "pictures are not TASK/en/KEY.png" in check("gedit", tmp_path)[0][1]


def test_imgedit(tmp_path):
  prompts = tmp_path / "e.json"
  row = {"prompt": "p", "edit_type": "adjust"}
  prompts.write_text(json.dumps({f"{i}": {"id": f"{i}.png", **row} for i in range(3)}))
  for i in range(3):
    save(tmp_path / "before" / f"{i}.png", photo(i))
    save(tmp_path / "after" / f"{i}.png", photo(10 + i))
  folder, images = tmp_path / "after", tmp_path / "before"
  assert check("imgedit", folder, prompts, images=images) == []
  save(folder / "1.png", photo(1))
  found = check("imgedit", folder, prompts, images=images)
  one(found, layout.SOME_WRONG, "outputs are their inputs, unchanged", "1.png")
  (folder / "1.png").rename(folder / "1.jpg")
  found = check("imgedit", folder, prompts, images=images)
  assert [h for h, _ in found] == [layout.ENDS, layout.LEFT_OUT]
  assert "1 of 3 edits are absent" in found[0][1]
