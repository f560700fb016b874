"""The README's commands and Python for the miniature, in its order, as they stand there."""

from collections.abc import Iterator
from pathlib import Path
import re
import shlex
import subprocess

import documented
import pytest

from blip3o_jax import cli
from blip3o_jax.use import picture

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
USE = README[README.index("## Use it") : README.index("## Convert")]
pytestmark = pytest.mark.slow


def blocks() -> Iterator[str]:
  """The blocks of code in the part about use."""
  for block in re.findall(r"(?:^ {4}.*\n|^\n(?= {4}))+", USE, flags=re.M):
    yield re.sub(r"^ {4}", "", block, flags=re.M).strip()


def test_use(tmp_path, monkeypatch, capsys):
  """Each command that can run without another model, then the Python, in one folder."""
  monkeypatch.chdir(tmp_path)
  found = list(blocks())
  ran = []
  for block in found:
    if block.startswith("import "):
      capsys.readouterr()
      exec(compile(block, "README.md", "exec"), {})
      assert re.fullmatch(r"(zero|one|two|three|four)", capsys.readouterr().out.strip())
      assert picture.read(tmp_path / "drawn" / "9.png")["prompt"] == "two green stars"
      ran.append("python")
      continue
    for line in block.splitlines():
      words = shlex.split(line, comments=True)
      if words[0] == "printf":
        subprocess.run(line, shell=True, check=True)
      if words[0] != "blip3o" or words[1] == "serve":
        continue
      assert cli.main(words[1:]) == 0, (line, capsys.readouterr().err)
      ran.append(words[1])
  assert {"generate", "chat", "reconstruct", "show", "evaluate", "compare", "python"} <= set(ran)
  assert (picture.read("drawn/0003.png")["seed"], picture.read("generated.png")["seed"]) == (10, 0)


def test_serve(tmp_path):
  """The server as it is started there."""
  (line,) = (x for block in blocks() for x in block.splitlines() if x.startswith("blip3o serve"))
  documented.serve(shlex.split(line, comments=True)[1:], tmp_path)
