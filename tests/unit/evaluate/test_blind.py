"""`blip3o compare`: who stands where, the page's data, and the sign test over answers."""

import base64
import io
import itertools
import json
from pathlib import Path
import re

import numpy as np
from painted import Painted
from painted import pixels
from PIL import Image
import pytest
import rated
from scipy import stats

import blip3o_jax
from blip3o_jax import cli
from blip3o_jax import systems
from blip3o_jax.evaluate import compare
from blip3o_jax.use import picture

NASTY = "a </script><script>alert(1)</script> & <b>\u2028wall</b>"


def decoded(url: str) -> np.ndarray:
  data = base64.b64decode(url.partition(",")[2])
  image = Image.open(io.BytesIO(data))
  assert not set(image.info) & {"blip3o", "exif", "icc_profile"}
  return np.asarray(image)


def draw(folder: Path, prompts: list[str], first: int = 0, **more) -> Path:
  for i, prompt in enumerate(prompts):
    about = {"prompt": prompt, "seed": first + i, "fingerprint": f"blake3:{first}", **more}
    picture.write(folder / f"{i}.png", picture.encode(pixels(prompt, first + i), about))
  return folder


@pytest.mark.parametrize(
  ("wins", "losses", "p"),
  [
    (0, 0, 1.0),
    (1, 0, 1.0),
    (5, 0, 0.0625),
    (9, 1, 0.021484375),
    (1, 9, 0.021484375),
    (8, 2, 0.109375),
    (50, 50, 1.0),
    (60, 40, 0.0568879),
  ],
)
def test_sign_test_of_known_values(wins, losses, p):
  assert compare.sign_test(wins, losses) == pytest.approx(p, rel=1e-6)


@pytest.mark.parametrize("n", [7, 40, 333, 3000])
def test_sign_test_is_the_exact_binomial_test(n, sizes):
  for wins in {0, 1, n // 3, n // 2, n // 2 + 1, n, int(sizes.integers(n))}:
    wanted = stats.binomtest(wins, n).pvalue
    assert compare.sign_test(wins, n - wins) == pytest.approx(wanted, rel=1e-9), (wins, n)


def test_half_of_the_pairs_have_a_left_and_a_seed_repeats():
  ids = [f"{i:05d}" for i in range(101)]
  found = compare.sides(3, ids)
  assert found == compare.sides(3, ids[::-1])
  assert sum(found.left.values()) in (50, 51)
  other = compare.sides(4, ids)
  assert other.left != found.left
  assert other.order != found.order
  assert sorted(found.order) == ids
  # Not by how pairs are numbered, nor by the order in which they are shown.
  shown = [found.left[i] for i in found.order]
  assert 20 < sum(a != b for a, b in itertools.pairwise(shown)) < 80


def test_a_page_shows_each_pair_and_says_of_none_whose_it_is(tmp_path, capsys):
  prompts = ["a red wall", NASTY, "a red wall"]
  a, b = draw(tmp_path / "model-a", prompts), draw(tmp_path / "model-b", prompts, 50)
  args = [str(a), str(b), "--output", str(tmp_path / "out"), "--seed", "3"]
  assert cli.main(["compare", *args]) == 0
  page = tmp_path / "out" / "compare.html"
  assert capsys.readouterr().out.strip() == str(page)
  text = page.read_text(encoding="utf-8")
  assert "model-a" not in text
  assert "blake3" not in text
  assert "http://" not in text
  assert "https://" not in text
  assert "alert(1)</script>" not in text
  (_, about), *pairs = rated.scripts(page)
  assert sorted(about["order"]) == ["00000", "00001", "00002"]
  assert list(about["questions"]) == ["quality", "alignment"]
  left = compare.sides(3, about["order"]).left
  said = {re.search('data-id="(.*?)"', attributes)[1]: data for attributes, data in pairs}
  # By prompt and then by name: the two of one prompt stand together.
  for i, (prompt, seed) in enumerate([("a red wall", 0), ("a red wall", 2), (NASTY, 1)]):
    data = said[f"{i:05d}"]
    assert data["prompt"] == prompt
    sides = ("left", "right") if left[f"{i:05d}"] else ("right", "left")
    for side, first in zip(sides, (0, 50), strict=True):
      assert np.array_equal(decoded(data[side]), pixels(prompt, first + seed))
  # Smaller, as WebP.
  assert cli.main(["compare", *args, "--quality", "80"]) == 0
  assert rated.scripts(page)[1][1]["left"].startswith("data:image/webp;")


def test_answers_are_counted_for_whom_they_are(tmp_path, capsys):
  prompts = [f"wall {i}" for i in range(12)]
  a, b = draw(tmp_path / "a", prompts, steps=4), draw(tmp_path / "b", prompts, 50, steps=4)
  out = tmp_path / "out"
  assert cli.main(["compare", str(a), str(b), "--output", str(out)]) == 0
  page = out / "compare.html"
  ids = [f"{i:05d}" for i in range(12)]
  first = {i: ("a" if n else "b", "tie") for n, i in enumerate(ids)}
  second = dict.fromkeys(ids[:4], ("a", "b"))
  given = [
    rated.answers(tmp_path / "1.json", page, first, "one"),
    rated.answers(tmp_path / "2.json", page, second, "two"),
  ]
  capsys.readouterr()
  args = ["compare", "--output", str(out), "--answers", *map(str, given)]
  assert cli.main([*args, "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  quality, alignment = found["questions"]["quality"], found["questions"]["alignment"]
  assert {n: quality["judgements"][n] for n in ("a", "ties", "b")} == {"a": 15, "ties": 0, "b": 1}
  assert quality["judgements"]["p"] == pytest.approx(stats.binomtest(15, 16).pvalue)
  # Of the first pair one says a, one b: it is nobody's.
  assert {n: quality["pairs"][n] for n in ("a", "ties", "b")} == {"a": 11, "ties": 1, "b": 0}
  assert {n: alignment["judgements"][n] for n in ("a", "ties", "b")} == {"a": 0, "ties": 12, "b": 4}
  assert alignment["pairs"]["p"] == pytest.approx(0.125)
  assert (found["a"]["name"], found["a"]["settings"]["steps"]) == (str(a), 4)
  assert found["raters"] == ["One", "Two"]
  assert json.loads((out / "report.json").read_text()) == found
  assert "Visual quality" in (out / "report.html").read_text()
  assert cli.main(args) == 0
  told = capsys.readouterr().out
  assert "judgements: A 15, the same 0, B 1; sign test p = 5.19e-04" in told
  assert str(out / "report.html") in told


def test_answers_that_do_not_fit_are_refused(tmp_path, capsys):
  a, b = draw(tmp_path / "a", ["x", "y"]), draw(tmp_path / "b", ["x", "y"], 50)
  pages = []
  for seed in "01":
    out = tmp_path / seed
    assert cli.main(["compare", str(a), str(b), "--seed", seed, "--output", str(out)]) == 0
    pages.append(out / "compare.html")
  one = rated.answers(tmp_path / "1.json", pages[0], {"00000": ("a", "b")}, "one")
  again = rated.answers(tmp_path / "2.json", pages[0], {"00001": ("a", "b")}, "one")
  other = rated.answers(tmp_path / "3.json", pages[1], {"00000": ("a", "b")}, "two")

  def refused(*paths: Path) -> str:
    capsys.readouterr()
    out = str(tmp_path / "out")
    assert cli.main(["compare", "--output", out, "--answers", *map(str, paths)]) == 1
    return capsys.readouterr().err

  assert "2.json: of the same session" in refused(one, again)
  assert "3.json: answers about another comparison" in refused(one, other)
  assert "no such file of answers" in refused(tmp_path / "4.json")
  data = json.loads(one.read_text())
  for change, said in (
    ({"format": "x"}, "format is 'x'"),
    ({"session": None}, "session is None"),
    ({"sealed": "e30="}, "not as the page wrote it"),
    ({"answers": [{"id": "7", "quality": "left"}]}, "answers[0]: no pair"),
    ({"answers": [{"id": "00000", "quality": "up"}]}, "quality is 'up'"),
    ({"answers": data["answers"] * 2}, "answers[1]: no pair"),
  ):
    one.write_text(json.dumps({**data, **change}))
    assert said in refused(one)


@pytest.mark.parametrize(
  ("there", "said"),
  [
    (["x", "z"], "0 pictures of 'y', and 1 in"),
    (["x", "y", "y"], "2 pictures of 'y', and 1 in"),
    (["x", "y", "z"], "0 pictures of 'z', and 1 in"),
  ],
)
def test_folders_of_other_prompts_are_refused(tmp_path, capsys, there, said):
  a, b = draw(tmp_path / "a", ["x", "y"]), draw(tmp_path / "b", there)
  assert cli.main(["compare", str(a), str(b), "--output", str(tmp_path / "out")]) == 1
  assert said in capsys.readouterr().err
  assert not (tmp_path / "out").exists()


def test_pictures_of_others_by_a_manifest(tmp_path):
  a, b = draw(tmp_path / "a", ["x", "y"]), tmp_path / "b"
  b.mkdir()
  for name in ("p.jpg", "q.jpg"):
    Image.fromarray(pixels(name, 0, 32)).save(b / name)
  rows = [{"file": "p.jpg", "prompt": "y"}, {"file": "q.jpg", "prompt": "x"}]
  (b / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  assert cli.main(["compare", str(a), str(b), "--output", str(tmp_path / "out")]) == 0
  assert len(rated.scripts(tmp_path / "out" / "compare.html")) == 3


def test_models_are_drawn_first_and_not_again(tmp_path, capsys, monkeypatch):
  prompts = tmp_path / "prompts.txt"
  prompts.write_text("a red wall\na blue wall\n")
  made: list[Painted] = []

  def load(name, *, dtype, mesh, weights, offload, tile, verb):
    assert (dtype, mesh, weights, offload, tile) == ("bfloat16", "fsdp=1", "int8", True, 512)
    assert verb == "generate"
    made.append(Painted(fingerprint=f"blake3:{name}"))
    return made[-1]

  monkeypatch.setattr(blip3o_jax, "load", load)
  monkeypatch.setattr(systems, "of", lambda directory: "blip3o")
  (tmp_path / "model").mkdir()
  out = tmp_path / "out"
  args = ["compare", "miniature", str(tmp_path / "model"), "--prompts", str(prompts)]
  args += ["--output", str(out), "-n", "2", "--steps", "6", "--seed", "5"]
  args += ["--dtype", "bfloat16", "--mesh", "fsdp=1", "--int8", "--offload", "--tile", "512"]
  assert cli.main(args) == 0
  assert [len(each.batches[0]) for each in made] == [4, 4]
  assert made[0].batches == made[1].batches  # the same prompts and seeds
  assert picture.read(out / "a" / "00000-1.png")["seed"] == 6
  assert picture.read(out / "a" / "00000-1.png")["steps"] == 6
  assert len(rated.scripts(out / "compare.html")) == 5
  assert cli.main(args) == 0
  assert [each.batches for each in made[2:]] == [[], []]
  prompts.write_text("a red wall\n")
  assert cli.main(args) == 1
  assert "of other prompts; name another --output" in capsys.readouterr().err


@pytest.mark.parametrize(
  "args",
  [
    ["only"],
    ["a", "b", "--steps", "3"],
    ["a", "b", "--int8"],
    ["a", "b", "--dtype", "float32"],
    ["a", "b", "--answers", "x"],
    ["a", "b", "--quality", "101"],
  ],
)
def test_usage(args, capsys):
  with pytest.raises(SystemExit):
    cli.main(["compare", *args])
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("blip3o compare: ")


def test_two_comparisons_are_not_put_into_one_place(tmp_path, capsys):
  prompts = ["a red wall", "a blue wall"]
  a, b = draw(tmp_path / "a", prompts), draw(tmp_path / "b", prompts, 50)
  out = tmp_path / "out"
  args = ["compare", str(a), str(b), "--output", str(out)]
  assert cli.main(args) == 0
  page = (out / "compare.html").read_bytes()
  assert cli.main(args) == 0  # the same again
  assert cli.main([*args, "--seed", "1"]) == 1
  assert "compare.html: is another comparison" in capsys.readouterr().err
  assert (out / "compare.html").read_bytes() == page
  (out / "compare.html").write_text("mine")
  assert cli.main(args) == 1
  assert "is another comparison (none of ours)" in capsys.readouterr().err
  assert cli.main(["compare", str(a), str(a / ".." / "a"), "--output", str(out)]) == 1
  assert "is A and B; name two folders" in capsys.readouterr().err
