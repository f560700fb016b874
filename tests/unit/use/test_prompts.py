"""Files of prompts as jobs; what is wrong in one is told by its line."""

import hashlib
from pathlib import Path

import numpy as np
from painted import Painted
from painted import pixels
from PIL import Image
import pytest

import blip3o_jax
from blip3o_jax import cli
from blip3o_jax.use import manifest
from blip3o_jax.use import picture
from blip3o_jax.use import prompts


def written(path: Path, text: str) -> Path:
  path.write_text(text, encoding="utf-8")
  return path


def test_text_is_a_prompt_a_line(tmp_path):
  path = written(tmp_path / "p.txt", "\ufeffa cat\r\n\r\n  {a dog}\u2028still \n\n")
  found = prompts.jobs(path, seed=5, number=2)
  assert [(j.file, j.prompt, j.seeds) for j in found] == [
    ("00000-0.png", "a cat", (5,)),
    ("00000-1.png", "a cat", (6,)),
    ("00001-0.png", "{a dog}\u2028still", (7,)),
    ("00001-1.png", "{a dog}\u2028still", (8,)),
  ]


def test_jsonl_has_seeds_and_names(tmp_path):
  text = '{"prompt": "a", "seed": 9, "name": "x/y"}\n\n{"prompt": "b", "tag": "two"}\n"c"\n'
  found = prompts.jobs(written(tmp_path / "p.jsonl", text), seed=1)
  assert [(j.file, j.prompt, j.seeds, dict(j.about)) for j in found] == [
    ("x/y.png", "a", (9,), {}),
    ("00001.png", "b", (2,), {"row": {"tag": "two"}}),
    ("00002.png", "c", (3,), {}),
  ]


@pytest.mark.parametrize(
  ("name", "text"),
  [
    ("p.json", '["a", {"prompt": "b"}]'),
    ("p.json", '{"prompt": "a"}\n{"prompt": "b"}\n'),
    ("p.csv", 'prompt,seed\n"a",\nb,\n'),
    ("p", '["a", "b"]'),
    ("p.prompts", "a\nb"),
  ],
)
def test_other_files_of_prompts(name, text, tmp_path):
  found = prompts.jobs(written(tmp_path / name, text))
  assert [(j.prompt, j.seeds) for j in found] == [("a", (0,)), ("b", (1,))]


@pytest.mark.parametrize(
  ("name", "text", "said"),
  [
    ("p.txt", " \n\n", "p.txt: no prompts"),
    ("p.jsonl", '{"prompt": "a"}\n{"prompt": \n', r"p\.jsonl, line 2: not valid JSON"),
    ("p.jsonl", '{"prompt": "a"}\n\n{"text2": "a"}\n', r"line 3: no field 'prompt'.*it has text2"),
    ("p.jsonl", '{"prompt": 3}\n', r"line 1: prompt is 3; expected a text"),
    ("p.jsonl", "[1]\n", r"line 1: expected an object or a text"),
    ("p.jsonl", '{"prompt": "a", "seed": -1}\n', r"line 1: seed is -1"),
    ("p.jsonl", '{"prompt": "a", "seed": 1.5}\n', r"line 1: seed is 1\.5"),
    ("p.jsonl", '{"prompt": "a", "name": "../b"}\n', r"line 1: name is '\.\./b'"),
    (
      "p.jsonl",
      '{"prompt": "a", "name": "b"}\n{"prompt": "c", "name": "B"}\n',
      r"line 2: the name 'B' stands at .*line 1 too",
    ),
    ("p.json", "3", "expected a list of prompts"),
    ("p.json", '["a", ""]', "entry 1: an empty prompt"),
    ("p.csv", "prompt,seed\na,1,2\n", r"p\.csv, line 2: another number of columns"),
    ("p.txt", "version https://git-lfs.github.com/spec/v1\nsize 10\n", "git-lfs pointer"),
  ],
)
def test_errors_name_file_and_line(name, text, said, tmp_path):
  with pytest.raises(ValueError, match=said):
    prompts.jobs(written(tmp_path / name, text))


def test_bytes_that_are_no_text_and_files_that_are_not_there(tmp_path):
  (tmp_path / "p.txt").write_bytes(b"a\nb\xff\n")
  with pytest.raises(ValueError, match=r"p\.txt, line 2: not UTF-8"):
    prompts.jobs(tmp_path / "p.txt")
  with pytest.raises(FileNotFoundError, match="no such file of prompts"):
    prompts.jobs(tmp_path / "q.txt")
  with pytest.raises(ValueError, match="is a folder"):
    prompts.jobs(tmp_path)


def test_the_command_draws_a_file_and_goes_on(tmp_path, monkeypatch, capsys):
  path = written(tmp_path / "p.txt", "a cat\na dog\na cow\n")
  shown = tmp_path / "shown.png"
  Image.new("RGB", (8, 8)).save(shown)
  models = [Painted() for _ in range(5)]
  left = iter(models)
  monkeypatch.setattr(blip3o_jax, "load", lambda *args, **more: next(left))
  words = ["generate", "--model", "mine", "--prompts", str(path), "--output", str(tmp_path / "out")]
  words += ["-n", "2", "--seed", "7", "--image", str(shown), "--batch", "4", "--steps", "6"]
  for i in range(2):
    assert cli.main([*words, "--process", str(i), "--processes", "2"]) == 0
  assert cli.main(words) == 0
  # Files 0, 2, 4 of six, then the others, then none.
  assert [[seed for batch in m.batches for _, seed in batch] for m in models[:3]] == [
    [7, 9, 11],
    [8, 10, 12],
    [],
  ]
  assert "6 of 6 files are there already" in capsys.readouterr().err
  found = np.asarray(Image.open(tmp_path / "out" / "00001-1.png"))
  assert np.array_equal(found, pixels("a dog", 10))
  lines = manifest.read(tmp_path / "out")
  assert [line["seed"] for line in lines] == list(range(7, 13))
  assert {line["steps"] for line in lines} == {6}
  digest = hashlib.sha256(shown.read_bytes()).hexdigest()
  assert {(line["image"], line["image_sha256"]) for line in lines} == {("shown.png", digest)}
  told = picture.read(tmp_path / "out" / "00001-1.png")
  assert (told["image"], told["image_sha256"]) == ("shown.png", digest)
  # Another picture of the same name, or none, is something else.
  Image.new("RGB", (8, 8), "red").save(shown)
  capsys.readouterr()
  for other in (words, [word for word in words if word not in ("--image", str(shown))]):
    assert cli.main(other) == 1
    assert "is there with another image_sha256" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("words", "said"),
  [
    ([], "expected prompts, or --prompts FILE"),
    (["a cat", "--prompts", "p.txt"], "prompts, and --prompts FILE as well"),
    (["--prompts", "p.txt", "--output", "x.png"], "--prompts needs --output DIR"),
    (["--prompts", "p.txt"], "--prompts needs --output DIR"),
    (["--prompts", "absent.txt", "--output", "x"], "absent.txt: no such file of prompts"),
    (["--prompts", "p.txt", "--output", "x", "--process", "1"], "process 1 of 1"),
  ],
)
def test_wrong_words_of_the_command(words, said, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(blip3o_jax, "load", lambda *args, **more: Painted())
  written(tmp_path / "p.txt", "a cat")
  try:
    status = cli.main(["generate", *words])
  except SystemExit as stop:
    status = stop.code
  assert status in (1, 2)
  assert said in capsys.readouterr().err
