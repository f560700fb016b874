"""The command and the tools as somebody calls them: help, the version, names, and one line."""

from collections.abc import Callable
from pathlib import Path
import re
import subprocess
import sys

from commands import command
import pytest

import blip3o_jax
from blip3o_jax import cli
from blip3o_jax.data import shapes
from blip3o_jax.data.shapes import scenes

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
TINY = ROOT / "tests" / "data" / "tiny-blip3o"
VERBS = tuple(cli.EXAMPLES)
# The tools that are a verb of the command, and those that need a checkout or the test extra.
WRAPPERS = {
  "convert": "convert",
  "verify": "verify",
  "inspect_checkpoint": "inspect",
  "plan": "plan",
  "index_tars": "index",
  "check_data": "check",
  "encode_features": "encode",
  "pack_arrayrecord": "pack",
}
OWN = ("null_condition", "page_pictures", "record", "ship")


def main_of(name: str) -> Callable[..., int]:
  """The call of a verb ("blip3o convert") or of a tool ("tools/convert.py")."""
  kind, _, rest = name.partition(" ")
  if kind == "blip3o":
    return lambda *args: cli.main([*rest.split(), *map(str, args)])
  return command(Path(name).stem)


EVERY = (*(f"blip3o {v}" for v in VERBS), *(f"tools/{t}.py" for t in (*WRAPPERS, *OWN)))


def test_every_tool_is_here():
  assert {p.stem for p in (ROOT / "tools").glob("*.py")} == {*WRAPPERS, *OWN}


@pytest.mark.parametrize("name", EVERY)
def test_help(name, capsys):
  with pytest.raises(SystemExit) as status:
    main_of(name)("--help")
  assert status.value.code == 0
  out = capsys.readouterr().out
  assert out.startswith("usage: ")
  verb = WRAPPERS.get(Path(name).stem)
  if verb:
    assert f"example:\n  blip3o {verb} " in out


def test_help_of_all(capsys):
  for word in ("-h", "--help"):
    assert cli.main([word]) == 0
    out = capsys.readouterr().out
    for verb in VERBS:
      assert f"  blip3o {verb} " in out
  assert cli.main([]) == 2


def test_the_module_is_the_command():
  for module in ("blip3o_jax", "blip3o_jax.cli"):
    words = [sys.executable, "-m", module, "--version"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout) == (0, f"blip3o {blip3o_jax.__version__}\n"), done.stderr


@pytest.mark.parametrize(
  ("name", "args", "message"),
  [
    (
      "tools/convert.py",
      ["import", "--source", "{here}", "--output", "/x/y"],
      "no files of a model",
    ),
    ("tools/convert.py", ["export", "--source", "{here}/a", "--output", "{here}/x"], "{here}/a: "),
    ("tools/convert.py", ["import", "--source", TINY, "--output", TINY], "exists already"),
    ("tools/inspect_checkpoint.py", ["{here}/absent"], "{here}/absent"),
    ("tools/inspect_checkpoint.py", ["{here}"], "no files of a model"),
    ("tools/inspect_checkpoint.py", ["{here}/file.txt"], "{here}/file.txt"),
    ("tools/verify.py", ["--model", TINY, "--recorded", "{here}/absent"], "{here}/absent"),
    ("tools/verify.py", ["--model", "{here}", "--recorded", "{here}/file.txt"], "{here}"),
    ("tools/plan.py", ["--config=absent.py"], "--config absent.py: no such file"),
    ("tools/plan.py", ["--config={here}/file.txt"], "file.txt: not a Python file"),
    ("tools/index_tars.py", ["{here}/absent"], "{here}/absent"),
    ("tools/index_tars.py", ["{here}"], "{here}"),
    ("tools/index_tars.py", ["{here}/file.txt"], "{here}/file.txt"),
    ("tools/record.py", ["--model", "{here}", "--output", "{here}/x"], ""),
    ("tools/ship.py", ["--workdir", "{here}"], "{here}"),
    ("blip3o train", ["--config=blip3o_4b_pretrian", "--workdir={here}"], "blip3o_4b_pretrain"),
  ],
)
def test_an_error_is_one_line(name, args, message, tmp_path, capsys, monkeypatch):
  monkeypatch.delenv("BLIP3O_TRACEBACK", raising=False)
  (tmp_path / "file.txt").write_text("no such thing")
  words = [str(a).replace("{here}", str(tmp_path)) for a in args]
  assert main_of(name)(*words) == 1
  err = capsys.readouterr().err
  # Folders of no model list below the line what each system looked for.
  (line,) = (text for text in err.splitlines() if not text.startswith("  "))
  verb = WRAPPERS.get(Path(name).stem, Path(name).stem)
  assert line.startswith((f"{verb}: ", f"blip3o {verb}: ", f"{name}: "))
  assert message.replace("{here}", str(tmp_path)) in line
  assert {p.name for p in tmp_path.iterdir()} == {"file.txt"}


@pytest.mark.parametrize("verb", [v for v in VERBS if v not in ("convert", "train", "plan")])
def test_a_wrong_option_is_refused(verb, capsys):
  with pytest.raises(SystemExit) as status:
    cli.main([verb, "--no-such-option"])
  assert status.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith(f"blip3o {verb}: ")


def test_the_nearest_name_is_named(capsys):
  for words, near in (
    (["generate", "x", "--stpes", "5"], "unrecognized arguments: --stpes 5; did you mean --steps?"),
    (["generate", "x", "--stpes=5"], "unrecognized arguments: --stpes=5; did you mean --steps?"),
    (["generate", "x", "--zzz"], "unrecognized arguments: --zzz ("),
    (["show", "x", "y", "--json", "-q"], "unrecognized arguments: -q ("),
  ):
    with pytest.raises(SystemExit):
      cli.main(words)
    assert near in capsys.readouterr().err
  assert cli.main(["generat"]) == 2
  assert "; did you mean generate?" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("name", "argument"),
  [
    ("blip3o_4b_pretrain", ""),
    ("blip3o_4b_sft", "debug"),
    ("blip3o_8b_pretrain", "reference,tars=/t"),
    ("blip3o_8b_sft", "memory=small"),
  ],
)
def test_a_released_stage_by_its_name(name, argument, tmp_path, capsys, monkeypatch):
  """What its file in configs/ describes, from a folder that has no configs/."""
  shown = []
  for source in (name, f"{CONFIGS / name}.py"):
    monkeypatch.chdir(tmp_path)
    words = ["train", f"--config={source}:{argument}", f"--workdir={tmp_path}", "--show"]
    assert cli.main([*words, "--config.batch=48"]) == 0
    shown.append(capsys.readouterr().out)
  assert "--config.batch=48" in shown[0]
  assert shown[0] == shown[1]


def test_every_released_config_has_a_name():
  from blip3o_jax import recipes

  released = [p.stem for p in CONFIGS.glob("*.py") if not p.stem.startswith("shapes_")]
  assert set(recipes.RELEASED) == set(released)


def test_a_file_comes_before_a_name(tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  text = (
    "from ml_collections import ConfigDict\ndef get_config(arg): return ConfigDict({'x': arg})\n"
  )
  file = tmp_path / "mine.py"
  file.write_text(text)
  assert cli.main(["train", f"--config={file}:1", f"--workdir={tmp_path}", "--show"]) == 0
  assert capsys.readouterr().out == "--config.x='1'\n"


DOCS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_docs_type_the_command_one_way(path):
  text = path.read_text()
  assert ".venv/bin/blip3o" not in text
  for tool in WRAPPERS:
    assert f"tools/{tool}.py" not in text


def test_the_docs_say_what_the_miniature_knows():
  """The words of the embedded set, and its questions with the words of one picture in them."""
  text = (ROOT / "docs" / "miniature.md").read_text()
  text = text.partition("## What it knows")[2].partition("\n## ")[0]
  for word in (*shapes.COLORS, *shapes.SHAPES, *scenes.RELATIONS):
    assert word in text, word
  found = set(re.findall(r"`((?:how|what|is|where)[^`]*\?)`", text))
  put = [
    (rf"\b({'|'.join(shapes.COLORS)})\b", "C"),
    (rf"\b({'|'.join(shapes.SHAPES)})(s|es)?\b", "S"),
  ]

  def form(question: str) -> str:
    for pattern, word in put:
      question = re.sub(pattern, word, question)
    if question.startswith("where"):  # the three names of an object
      question = re.sub("the (C object|C S|S)", "the S", question)
    return question

  asked = [shapes.question_at(0, i, "test", kind) for kind in shapes.KINDS for i in range(60)]
  assert {form(q) for q in found} == {form(q.question) for q in asked}


def test_the_launch_scripts_show_what_an_interpreter_said(tmp_path):
  shim = tmp_path / "python3.11"
  shim.write_text("#!/bin/sh\necho 'shim: 3.11 is not installed' >&2\nexit 127\n")
  shim.chmod(0o755)
  script = f"PYTHON={shim}; . launch/environment.sh; choose_python"
  done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 1
  said = done.stderr.splitlines()
  assert said[0] == "shim: 3.11 is not installed"
  assert said[1].startswith(f"PYTHON={shim}: not a Python of 3.11")
